"""What the page about the ledger tells its reader to type works."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pages
import pytest
from redis_process import redis_server
from typer.testing import CliRunner

from fhe_llm.cli.__main__ import app
from fhe_llm.privacy import Budget, RedisLedger, SqliteLedger
from fhe_llm.privacy.events import TokensReplaced
from fhe_llm.privacy.ledger import WINDOWS

PAGE = Path(__file__).parents[2] / "docs" / "privacy-ledger.md"
TEXT = PAGE.read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_the_example_spends_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    names: dict[str, Any] = {}
    exec(compile(example, PAGE.name, "exec"), names)
    names["ledger"].close()
    with SqliteLedger("ledger.sqlite") as ledger:
        assert [b.spent for b in ledger.balances("alice") if b.budget] == [120_000_000]
        assert [entry.action for entry in ledger.history()] == ["budget", "reserve", "commit"]


@pytest.mark.parametrize("on_redis", [False, True])
def test_the_commands_show_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_redis: bool) -> None:
    with redis_server() as server:
        monkeypatch.setenv("FHE_LLM_LEDGER", server.url if on_redis else str(tmp_path / "ledger"))
        commands = [words for words in pages.invocations(PAGE, "fhe-llm") if words[0] == "budget"]
        assert {words[1] for words in commands} >= {"set", "show", "history", "export"}
        for words in commands:
            words = words[: words.index(">")] if ">" in words else words
            done = CliRunner().invoke(app, words)
            assert done.exit_code == 0, done.output
            assert "alice" in done.output


def test_a_server_with_the_settings_on_the_page_is_taken() -> None:
    (settings,) = blocks("conf")
    options = [word for line in settings.splitlines() for word in f"--{line}".split()]
    event = TokensReplaced(tokens=1, epsilon=1, unit="epsilon", mechanism="exponential")
    with redis_server("--appendonly", "no", *options) as server, RedisLedger(server.url) as ledger:
        ledger.set_budget("ann", Budget.of(1, "epsilon"))
        ledger.charge("ann", event, key="k")
        server.kill()
        server.start()
        assert ledger.charge("ann", event, key="k").replayed


def test_it_names_every_window() -> None:
    assert all(f"`{window}`" in TEXT for window in WINDOWS)
