"""``fhe-llm budget``: set a budget, see what is left, read and export what happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fhe_llm.cli.__main__ import app
from fhe_llm.privacy import SqliteLedger
from fhe_llm.privacy.events import EncryptedCall, TextInClear, TokensReplaced


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FHE_LLM_LEDGER", str(tmp_path / "ledger.sqlite"))
    return tmp_path / "ledger.sqlite"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["budget", *arguments], catch_exceptions=False)


def spend(place: Path) -> None:
    with SqliteLedger(place) as ledger:
        event = TokensReplaced(tokens=12, epsilon=0.5, unit="epsilon", mechanism="exponential")
        ledger.charge("alice", event, key="a")
        ledger.reserve("alice", event, key="b")
        ledger.charge("alice", EncryptedCall(model="m", rounds=3, bytes_up=1, bytes_down=2), key="c")
        ledger.charge("bob", TextInClear(messages=1, characters=40), key="a")


def test_a_budget_is_set_spent_and_shown(place: Path) -> None:
    assert run("set", "alice", "epsilon", "20", "--per", "day").output == "alice: 20 ε per day\n"
    spend(place)
    shown = run("show", "alice").output
    assert "12 ε spent of 20 ε per day, 6 ε of it pending, 8 ε left; refreshes 20" in shown
    assert "12 ε spent in all" in shown
    everybody: dict[str, Any] = json.loads(run("show", "--json").output)
    day = next(b for b in everybody["alice"] if b["window"] == "day")
    assert (day["spent"], day["pending"], day["limit"], day["left"]) == (
        12_000_000,
        6_000_000,
        20_000_000,
        8_000_000,
    )
    assert day["amounts_per_unit"] == 1_000_000


def test_the_history_tells_what_happened_in_order(place: Path) -> None:
    run("set", "alice", "epsilon", "20")
    spend(place)
    lines = run("history", "alice").output.splitlines()
    assert [line.split("  ")[2] for line in lines] == ["budget", "charge", "reserve", "charge"]
    assert "+6 ε  12 tokens replaced at 0.5 each (exponential)" in lines[1]
    assert "costs nothing, assuming ring-LWE" in lines[3]
    assert "40 characters left in clear: no guarantee" in run("history").output
    assert len(run("history", "--last", "1").output.splitlines()) == 1
    assert json.loads(run("history", "bob", "--json").output)["entries"][0]["event"]["characters"] == 40


def test_everything_can_be_exported_and_adds_up(place: Path) -> None:
    run("set", "alice", "epsilon", "20")
    run("set", "alice", "rho", "8", "--delta", "1e-6")
    spend(place)
    exported = json.loads(run("export", "--json").output)
    alice = exported["principals"]["alice"]
    assert {b["unit"]: b["limit"] for b in alice["budgets"]} == {"epsilon": 20_000_000, "rho": 909_706_830}
    changes = [e["change"].get("epsilon", 0) for e in exported["entries"] if e["principal"] == "alice"]
    assert sum(changes) == next(b["spent"] for b in alice["balances"] if b["unit"] == "epsilon")
    assert "bob" in exported["principals"]
    assert set(json.loads(run("export", "bob").output)["principals"]) == {"bob"}


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (("set", "alice", "epsilon", "--", "-1"), "privacy_parameter"),
        (("set", "alice", "epsilon", "nan"), "privacy_parameter"),
        (("set", "alice", "epsilons", "1"), "privacy_parameter"),
        (("set", "alice", "epsilon", "1", "--per", "fortnight"), "privacy_parameter"),
        (("set", "alice", "epsilon", "1", "--delta", "1e-6"), "request_refused"),
        (("set", "", "epsilon", "1"), "privacy_parameter"),
        (("show", "--ledger", "/nowhere/ledger.sqlite"), "ledger_unusable"),
        (("history", "--ledger", "/nowhere/ledger.sqlite"), "ledger_unusable"),
    ],
)
def test_what_makes_no_sense_is_one_line(arguments: tuple[str, ...], cause: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error[{cause}]: cannot ")
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_reading_makes_no_ledger(place: Path) -> None:
    assert run("show").exit_code == 2
    assert json.loads(run("export").stdout)["error"]["code"] == "ledger_unusable"
    assert not place.exists()
