"""The one progress bar."""

from __future__ import annotations

import io
import sys
from types import ModuleType

import pytest
from tqdm.auto import tqdm

from fhe_llm.progress import bar, silent


def open_bars() -> int:
    return len(getattr(tqdm, "_instances", ()))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_quiet_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert bar() is silent
    monkeypatch.setattr(sys, "stderr", None)
    assert bar() is silent


def test_a_notebook_is_watched_and_a_plain_process_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    assert bar() is not silent
    monkeypatch.delitem(sys.modules, "ipykernel")
    assert bar() is silent


def test_never_more_than_one_bar_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    progress, before = bar(), open_bars()
    for label in ("Downloading", "Encoding", "Prefill"):
        for done in range(4):  # left unfinished: the next label replaces it
            progress(label, done, 9)
            assert open_bars() - before == 1
    progress("Prefill", 9, 9)
    assert open_bars() == before


def test_one_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = bar()
    progress("Downloading", 0, 10)
    progress("Downloading", 10, 10)
    progress("Downloading", 10, 10)
    progress("Encoding", 3, 4)
    progress("Encoding", 2, 4)
    progress("Encoding", 9, 4)
    shown = terminal.getvalue()
    assert "Downloading" in shown
    assert "Encoding" in shown
