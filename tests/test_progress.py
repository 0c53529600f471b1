"""The one progress bar."""

from __future__ import annotations

import io
import sys

import pytest

from fhe_llm.progress import bar, silent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_quiet_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert bar() is silent
    monkeypatch.setattr(sys, "stderr", None)
    assert bar() is silent


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
