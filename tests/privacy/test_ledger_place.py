"""A place is a file or a Redis URL, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from ledger_kit import spent, work
from redis_process import redis_server

from fhe_llm.errors import LedgerError, PrivacyParameterError
from fhe_llm.privacy.ledger_place import open_ledger
from fhe_llm.privacy.redis_ledger import RedisLedger
from fhe_llm.privacy.sqlite_ledger import SqliteLedger


@pytest.mark.parametrize("name", ["ledger.sqlite", "a folder/of mine/ledger", "redis", "unix:", "C:\\ledger"])
def test_a_path_is_a_file(tmp_path: Path, name: str) -> None:
    for where in (tmp_path / name, str(tmp_path / name)):
        with open_ledger(where) as ledger:
            assert isinstance(ledger, SqliteLedger)
            assert ledger.path == tmp_path / name
            ledger.charge("ann", work(1), key="k")
    assert (tmp_path / name).is_file()


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with open_ledger("~/ledger"):
        assert (tmp_path / "ledger").is_file()


def test_a_redis_url_is_a_ledger_there() -> None:
    with redis_server() as server:
        for url in (f"redis://127.0.0.1:{server.port}", f"redis://localhost:{server.port}/0", server.url):
            with open_ledger(url) as ledger:
                assert isinstance(ledger, RedisLedger)
                ledger.charge("ann", work(1), key="k")
                assert spent(ledger) == {("rounds", "lifetime"): 1}
        with open_ledger(f"redis://127.0.0.1:{server.port}/1") as ledger:
            assert ledger.principals() == ()


@pytest.mark.parametrize("url", ["http://me:s3cret@host/x", "sqlite:///ledger", "redis+tls://host", "://x"])
def test_any_other_url_is_refused(url: str) -> None:
    with pytest.raises(PrivacyParameterError, match="redis://, rediss://, unix://, or a file") as refused:
        open_ledger(url)
    assert "s3cret" not in str(refused.value)


def test_a_place_that_cannot_be_used_is_a_ledger_error(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot use"):
        open_ledger(tmp_path)
    with pytest.raises(LedgerError, match="cannot use the ledger"):
        open_ledger(f"unix://{tmp_path}/nobody.sock")
