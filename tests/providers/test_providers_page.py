"""The page about providers says what the code does, and its examples run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from provider_server import ANTHROPIC_KEY, OPENAI_KEY, ProviderServer, Reply, ToolCall

from fhe_llm.providers import HttpSettings, anthropic, anthropic_messages, circuit, dialect, names, openai
from fhe_llm.providers import http_provider as http

PAGE = (Path(__file__).parents[2] / "docs" / "providers.md").read_text()


def table(heading: str) -> list[list[str]]:
    """Cells of the first table below a heading."""
    rows = (
        PAGE.split(f"{heading}\n", 1)[1]
        .split("\n\n|" if heading == "## Errors" else "|", 1)[1]
        .split("\n\n")[0]
    )
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows.splitlines()[2:]]


def test_the_names_and_where_their_keys_come_from() -> None:
    listed = table("# Providers")
    assert [row[0].strip("`") for row in listed] == list(names.PROVIDERS)
    for (name, kind, _, key, url), made in zip(listed, names.PROVIDERS.values(), strict=True):
        assert kind == f"`{made.__name__}`"  # type: ignore[attr-defined]
        source = (Path(http.__file__).parent / f"{made.__module__.rsplit('.', 1)[1]}.py").read_text()
        if name != "`openai-compatible`":
            assert f'"{key.strip("`")}"' in source
            assert f'"{url.strip("`")}"' in source


def test_the_settings_and_their_defaults() -> None:
    listed = {row[0].strip("`"): row[1] for row in table("## Settings")}
    assert list(listed) == list(HttpSettings.__annotations__)
    assert [listed[name] for name in ("timeout", "chunk_timeout", "max_retries")] == [
        f"{value:g}" for value in (http.TIMEOUT, http.CHUNK_TIMEOUT, http.MAX_RETRIES)
    ]


def test_the_numbers() -> None:
    assert f"After {circuit.FAILURES} failures in a row" in PAGE
    assert f"for {circuit.REST_SECONDS:g} seconds calls are refused" in PAGE
    assert f"longer than {dialect.MAX_ANSWER_BYTES >> 20} MiB" in PAGE
    assert f"{anthropic_messages.DEFAULT_MAX_TOKENS} without one" in PAGE
    assert f"version {anthropic_messages.VERSION}" in PAGE


@pytest.mark.parametrize("number", range(4))
def test_examples_run(
    number: int,
    provider_server: ProviderServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(openai, "OPENAI_URL", provider_server.openai_url)
    monkeypatch.setattr(anthropic, "ANTHROPIC_URL", provider_server.anthropic_url)
    monkeypatch.setenv("OPENAI_API_KEY", OPENAI_KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", ANTHROPIC_KEY)
    calls = (ToolCall("weather", {"place": "Bern"}),) if number == 3 else ()
    provider_server.always(Reply(text="Dear [EMAIL_1]," if number == 1 else "In May.", tool_calls=calls))
    examples = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(examples) == 4
    made: dict[str, Any] = {}
    exec(compile(examples[number], "providers.md", "exec"), made)  # the page's own code
    shown = capsys.readouterr().out
    expected = ["In May.", "Dear anna.schmidt@example.org,", "", '"Bern"']
    assert expected[number] in shown
    assert "anna.schmidt" not in provider_server.received_text()
    assert (len(provider_server.received) > 0) is (number != 2)
