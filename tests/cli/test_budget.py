"""``fhe-llm budget``: set a budget, see what is left, read and export what happened."""

from __future__ import annotations

import json
import stat
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


def spend_with_budget(place: Path) -> None:
    run("set", "alice", "epsilon", "20")
    spend(place)


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
        (("report", "--ledger", "/nowhere/ledger.sqlite"), "ledger_unusable"),
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


def test_a_report_tells_what_left_what_is_left_and_what_to_expect(place: Path) -> None:
    run("set", "alice", "epsilon", "20", "--per", "day")
    run("set", "alice", "rho", "8", "--delta", "1e-6")
    spend(place)
    told = run("report").output
    assert "SQLite ledger, 6 entries" in told
    assert "Text with replaced tokens: 12 ε (paid by a budget); 2 events, 24 tokens" in told
    assert "1 reserved and not settled: may have left" in told
    assert "Encrypted calls: 1 event (encrypted, costs nothing)" in told
    assert "assumes ring-LWE" in told
    assert "Text in clear: 1 event (no guarantee); 1 event, 1 message, 40 characters" in told
    assert "ε · per day: 8 ε left" in told
    assert "Too little to forecast: 2 charges" in told
    assert "At δ = 1e-06: ε = 0 of 8 by zCDP" in told
    assert "bob" not in run("report", "alice").output
    assert "At δ = 0.01" in run("report", "--delta", "0.01").output


def test_a_report_is_data_too(place: Path) -> None:
    run("set", "alice", "epsilon", "20")
    spend(place)
    data = json.loads(run("report", "--json").output)
    assert set(data["principals"]) == {"alice", "bob"}
    (line,) = data["principals"]["alice"]["lines"]
    assert (line["spent"], line["left"], line["series"]["points"][-1]["spent"]) == (
        12_000_000,
        8_000_000,
        12_000_000,
    )
    assert data["principals"]["alice"]["adds_up"] is True
    assert set(json.loads(run("report", "bob", "--json").output)["principals"]) == {"bob"}


def test_a_page_is_written_in_one_step_for_its_owner_only(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spend_with_budget(place)
    monkeypatch.chdir(tmp_path)
    assert run("report", "--html").output == "wrote budget-report.html\n"
    page = tmp_path / "budget-report.html"
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert "<!doctype html>" in page.read_text()
    assert str(tmp_path) not in page.read_text()
    page.chmod(0o644)
    page.write_text("older")
    written = json.loads(run("report", "alice", "--html", "--output", str(page), "--json").output)
    assert written == {"path": str(page), "bytes": page.stat().st_size}
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert "bob" not in page.read_text()
    assert sorted(
        path.name for path in tmp_path.iterdir() if path.suffix == ".html" or "html" in path.name
    ) == ["budget-report.html"]


@pytest.mark.parametrize(
    ("arguments", "cause", "words"),
    [
        (("report", "eve"), "privacy_parameter", "the ledger has nothing of that principal"),
        (("report", "--delta", "1"), "privacy_parameter", "it must lie between 0 and 1"),
        (("report", "--output", "page.html"), "request_refused", "Add --html"),
        (
            ("report", "--html", "--output", "/nowhere/page.html"),
            "request_refused",
            "No such file or directory",
        ),
        (("report", "--html", "--output", "/"), "request_refused", "it is a folder"),
        (
            ("report", "--html", "--output", "/proc/page.html"),
            "request_refused",
            "cannot write the report to",
        ),
    ],
)
def test_a_report_that_cannot_be_made_is_one_line(
    place: Path, arguments: tuple[str, ...], cause: str, words: str
) -> None:
    spend_with_budget(place)
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error[{cause}]: cannot ")
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_password_of_a_ledger_is_in_no_report() -> None:
    pytest.importorskip("fhe_llm.privacy.redis_ledger")
    result = run("report", "--ledger", "redis://:hunter2@127.0.0.1:1/0")
    assert result.exit_code == 2
    assert "hunter2" not in result.output + result.stderr


def test_the_history_steers_no_terminal(place: Path) -> None:
    run("set", "alice", "epsilon", "20")
    with SqliteLedger(place) as ledger:
        evil = TokensReplaced(tokens=1, epsilon=1.0, unit="epsilon", mechanism="\x1b]0;gone\x07")
        ledger.charge("alice", evil, key="a")
    assert "]0;gone" in run("history").output
    assert "\x1b" not in run("history").output + run("report").output
