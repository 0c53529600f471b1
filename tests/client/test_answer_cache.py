"""Sealed answers: readable with the key only, absent when changed, too old or cleared."""

from __future__ import annotations

import pickle
import sqlite3
import time
from pathlib import Path

import pytest

from fhe_llm import AnswerCache
from fhe_llm.errors import KeyRingError, RequestError, WrongPassphraseError

SECRET = "swordfish"


def test_texts_survive_and_nobody_else_reads_them(tmp_path: Path) -> None:
    with AnswerCache(tmp_path, passphrase="correct horse") as cache:
        cache.put(SECRET, "question " + SECRET, "model")
        assert cache.get("question " + SECRET, "model") == SECRET
        assert cache.get("question " + SECRET, "other") is None
    assert not any(SECRET.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    with pytest.raises(WrongPassphraseError):
        AnswerCache(tmp_path, passphrase="wrong horse")
    with AnswerCache(tmp_path, passphrase="correct horse") as again:
        assert again.get("question " + SECRET, "model") == SECRET
        again.clear()
        assert again.get("question " + SECRET, "model") is None


def test_a_changed_entry_counts_as_absent(tmp_path: Path) -> None:
    with AnswerCache(tmp_path) as cache:
        cache.put(SECRET, "a")
    (database,) = tmp_path.rglob("cache.db")
    with sqlite3.connect(database) as rows:
        changed = rows.execute(
            "UPDATE Cache SET value = zeroblob(length(value)) WHERE length(value) = 37"
        ).rowcount
    rows.close()
    assert changed
    with AnswerCache(tmp_path) as cache:
        assert cache.get("a") is None


def test_an_entry_expires(tmp_path: Path) -> None:
    with AnswerCache(tmp_path, ttl=0.2) as cache:
        cache.put(SECRET, "a")
        assert cache.get("a") == SECRET
        time.sleep(0.3)
        assert cache.get("a") is None


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="must be positive"):
        AnswerCache(tmp_path, ttl=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyRingError, match="Name another directory"):
        AnswerCache(tmp_path / "file" / "below")
    with AnswerCache(tmp_path) as cache, pytest.raises(TypeError, match="pickle"):
        pickle.dumps(cache)
