"""Bad input on the way to a closed provider: what is refused says why, costs nothing, and nothing arrives."""

from __future__ import annotations

import asyncio
import math
import os
import re
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from private_text_kit import FRONTS, Front, Setting, everything_of, leaks
from provider_server import Failure, ProviderServer, Reply

from fhe_llm.errors import (
    BudgetExhaustedError,
    FheLlmError,
    LedgerError,
    PrivacyParameterError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    UnknownTextError,
)
from fhe_llm.privacy import Account, TokenMechanism
from fhe_llm.privacy.ledger import WINDOW_MS
from fhe_llm.providers import PrivateProviderLLM
from fhe_llm_langchain.private_provider import ChatPrivateProvider
from fhe_llm_llamaindex.private_provider import PrivateProviderLLM as LlamaIndexLLM

WAYS = ("core chat", "core astream", "langchain invoke", "langchain astream", "llamaindex stream_chat")
Begin = Callable[..., tuple[Setting, Front]]


@pytest.fixture
def begin(provider_server: ProviderServer, tmp_path: Path) -> Iterator[Begin]:
    """A principal at a provider, and a way to ask it; closed at the end."""
    opened: list[tuple[Setting, Front]] = []

    def make(way: str = "core chat", **settings: Any) -> tuple[Setting, Front]:
        setting = Setting(provider_server, tmp_path / "ledger", **settings)
        opened.append((setting, FRONTS[way](setting)))
        return opened[-1]

    yield make
    for setting, front in opened:
        front.made[0].close()
        setting.account.ledger.close()


def refused(setting: Setting, front: Front, text: str, kind: type[Exception], match: str) -> Any:
    """The error, after checks that nothing arrived, nothing was spent, and it holds no word of the text."""
    before = len(setting.server.received), spent(setting)
    with pytest.raises(kind, match=match) as caught:
        front.ask([{"role": "user", "content": text}])
    assert (len(setting.server.received), spent(setting)) == before
    assert leaks({"error": everything_of(caught.value)}, setting.canaries.all) == []
    assert re.search(r"\. [A-Z]", str(caught.value)), "a message ends with what to do"
    return caught.value


def spent(setting: Setting) -> int:
    """Micro-ε."""
    return sum(b.spent for b in setting.account.balances() if b.unit == "epsilon" and b.window == "day")


@pytest.mark.parametrize("epsilon", [0, -1, math.nan, math.inf, -math.inf, "2", None, True, 1e9])
def test_an_epsilon_that_is_none(begin: Begin, epsilon: Any) -> None:
    setting, _ = begin()
    with pytest.raises(PrivacyParameterError, match=r"epsilon"):
        TokenMechanism(epsilon, table=setting.canaries.table())


@pytest.mark.parametrize("way", WAYS)
def test_a_budget_that_is_used_up(begin: Begin, way: str) -> None:
    setting, front = begin(way, limit=50)
    front.ask([{"role": "user", "content": setting.canaries.text(0)}])
    left = 50 - spent(setting) // 10**6
    error = refused(
        setting,
        front,
        setting.canaries.text(1) * 3,
        BudgetExhaustedError,
        rf"{left} ε of 50 ε per day is left. It refreshes at \d{{4}}-\d\d-\d\d",
    )
    assert error.left == left * 10**6
    assert error.refreshes_at % WINDOW_MS["day"] == 0
    # what is left can still be spent
    front.ask([{"role": "user", "content": "the house is old"}])


def test_a_principal_without_a_budget(begin: Begin) -> None:
    setting, _ = begin()
    model = PrivateProviderLLM(
        setting.provider(), mechanism=setting.mechanism, budget=Account(setting.account.ledger, "bob")
    )
    with pytest.raises(BudgetExhaustedError, match="no budget of epsilon is set"):
        model.chat("the house")
    assert setting.server.received == []
    model.close()


@pytest.mark.parametrize("make", [PrivateProviderLLM, ChatPrivateProvider, LlamaIndexLLM])
@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ({"mechanism": object()}, "no claim"),
        ({"mechanism": "exponential"}, "no claim"),
        ({"mechanism": TokenMechanism}, "no claim"),
        ({}, "give a mechanism and a budget, or guarantee='none'"),
        ({"guarantee": "strong"}, "the only one that is said is 'none'"),
        ({"guarantee": ""}, "the only one that is said is 'none'"),
    ],
)
def test_a_mechanism_that_is_none(begin: Begin, make: Any, given: dict[str, Any], cause: str) -> None:
    setting, _ = begin()
    budget = {"budget": setting.account} if "mechanism" in given else {}
    provider = setting.provider()
    arguments = {"provider": provider} if make is not PrivateProviderLLM else {}
    positional = () if arguments else (provider,)
    with pytest.raises(PrivacyParameterError, match=cause):
        make(*positional, **arguments, **given, **budget)
    assert setting.server.received == []
    provider.close()


@pytest.mark.parametrize("make", [PrivateProviderLLM, ChatPrivateProvider, LlamaIndexLLM])
def test_a_budget_that_is_none(begin: Begin, make: Any) -> None:
    setting, _ = begin()
    provider = setting.provider()
    for budget in (None, 100, "alice"):
        with pytest.raises(PrivacyParameterError, match="budget"):
            make(provider=provider, mechanism=setting.mechanism, budget=budget)
    provider.close()


@pytest.mark.parametrize("way", WAYS)
def test_text_that_the_table_does_not_know(begin: Begin, way: str) -> None:
    setting, front = begin(way, elsewhere=False)
    text = setting.canaries.text(0)
    error = refused(setting, front, text, UnknownTextError, r"cannot protect 3 of \d+ tokens")
    assert "unknown='uniform'" in str(error)
    front.ask([{"role": "user", "content": "my house is old"}])
    assert len(setting.server.received) == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_provider_that_is_down(begin: Begin, way: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    setting, front = begin(way, url=f"http://127.0.0.1:{port}/v1", max_retries=0)
    text = setting.canaries.text(0)
    with pytest.raises(ProviderUnavailableError, match="cannot") as caught:
        front.ask([{"role": "user", "content": text}])
    assert leaks({"error": everything_of(caught.value)}, setting.canaries.all) == []
    assert spent(setting) > 0, "whether anything left is not known, so it stays paid"
    assert caught.value.retryable


@pytest.mark.parametrize("way", WAYS)
def test_a_provider_that_is_slow(begin: Begin, way: str) -> None:
    setting, front = begin(way, timeout=0.2, max_retries=3)
    setting.server.always(Reply(wait=60))
    with pytest.raises(ProviderTimeoutError, match=r"0\.2 s") as caught:
        front.ask([{"role": "user", "content": setting.canaries.text(0)}])
    assert leaks({"error": everything_of(caught.value)}, setting.canaries.all) == []
    assert all(request.hung_up.wait(20) for request in setting.server.received)


@pytest.mark.parametrize("way", ["core stream", "core astream", "langchain stream"])
def test_a_stream_that_stops(begin: Begin, way: str) -> None:
    setting, front = begin(way, timeout=0.3, max_retries=0)
    setting.server.always(Reply(hold=threading.Event(), after=4))
    with pytest.raises(ProviderTimeoutError):
        front.ask([{"role": "user", "content": setting.canaries.text(0)}])
    assert setting.server.received[-1].hung_up.wait(20)


async def test_a_call_that_is_cancelled_ends_the_request(begin: Begin) -> None:
    setting, _ = begin()
    model = PrivateProviderLLM(setting.provider(), **setting.guard())
    setting.server.always(Reply(wait=60))
    task = asyncio.create_task(model.achat(setting.canaries.text(0)))
    await asyncio.to_thread(setting.server.recorder.wait_for, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(setting.server.received[0].hung_up.wait, 20)
    await model.aclose()


@pytest.mark.parametrize("way", WAYS)
def test_a_ledger_that_another_process_holds(begin: Begin, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sqlite_connections", "sqlite_file"):
        monkeypatch.setattr(f"fhe_llm.privacy.{module}.WAIT_S", 0.05)
    setting, front = begin(way)
    other = sqlite3.connect(setting.folder / "ledger.sqlite", isolation_level=None)
    try:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(LedgerError) as caught:
            front.ask([{"role": "user", "content": setting.canaries.text(0)}])
    finally:
        other.close()
    assert setting.server.received == []
    assert setting.mechanism.drawn == []
    assert leaks({"error": everything_of(caught.value)}, setting.canaries.all) == []


def test_a_ledger_that_is_spoilt_or_gone(begin: Begin) -> None:
    setting, front = begin()
    for file in setting.folder.iterdir():
        file.write_bytes(os.urandom(1 << 16))
    with pytest.raises(LedgerError):
        front.ask([{"role": "user", "content": setting.canaries.text(0)}])
    assert setting.server.received == []


def test_a_ledger_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError):
        Account.open("alice", tmp_path / "file" / "ledger.sqlite")


def test_a_request_that_the_provider_could_not_take_costs_nothing(begin: Begin) -> None:
    setting, _ = begin()
    model = PrivateProviderLLM(setting.provider(), **setting.guard())
    for wrong in ({"temperature": 9.0}, {"max_tokens": 0}, {"tool_choice": "auto"}, {"stop": [""]}):
        with pytest.raises(FheLlmError, match="cannot"):
            model.chat("the house", **wrong)  # type: ignore[arg-type]
    assert setting.server.received == []
    assert spent(setting) == 0
    model.close()


def test_a_refusal_by_the_provider_is_paid(begin: Begin) -> None:
    setting, front = begin(max_retries=0)
    setting.server.next(Failure(name="content_filter"))
    with pytest.raises(FheLlmError, match="content filter"):
        front.ask([{"role": "user", "content": "my house"}])
    assert spent(setting) == 4 * 10**6
