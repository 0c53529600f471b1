"""With ``guarantee="none"`` and a :class:`Pseudonymiser`, identifiers it finds do not leave, and come back in answers:
through every class and every way to ask, in tool calls and results, with failures on the way."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from private_text_kit import FRONTS, Front, Messages, Setting, everything_of, files, leaks
from provider_server import Failure, ProviderServer, Received, Reply, ToolCall

from fhe_llm.errors import ProviderError
from fhe_llm.privacy import Pseudonymiser
from fhe_llm.providers import PrivateProviderLLM
from fhe_llm.providers.guards import PseudonymGuard

Begin = Callable[..., tuple[Setting, Front]]
Planted = dict[str, str]


def planted() -> Planted:
    """Identifiers with valid check digits that occur nowhere by chance."""
    return {
        "mail": f"q{secrets.token_hex(6)}@example.com",
        "card": _luhn(f"4{secrets.randbelow(10**14):014d}"),
        "iban": _iban(f"37040044{secrets.randbelow(10**10):010d}"),
        "phone": f"+49 170 {secrets.randbelow(10**7) + 10**7}",
    }


def _luhn(digits: str) -> str:
    doubled = [int(digit) * (2 - n % 2) for n, digit in enumerate(digits)]
    total = sum(value - 9 * (value > 9) for value in doubled)
    return digits + str(-total % 10)


def _iban(account: str) -> str:
    check = 98 - int(account + "131400") % 97
    return f"DE{check:02d}{account}"


def question(given: Planted, n: int) -> str:
    return (
        f"Question {n}: write to {given['mail']} that card {given['card']} was charged from {given['iban']}, "
        f"or call {given['phone']}."
    )


def spellings(given: Planted) -> list[str]:
    """What may not arrive: each identifier, and its digits alone."""
    return [*given.values(), given["phone"].replace(" ", ""), given["phone"].split()[-1], given["card"][4:]]


def echo(request: Received) -> Reply:
    """The model repeats what it was told, piece by piece."""
    return Reply(text=f"You said: {_last(request)}", piece=3)


def _last(request: Received) -> str:
    content: Any = request.json["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(block.get("text", "") for block in content)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fhe_llm.providers.retries.FIRST_WAIT", 0.01)
    monkeypatch.setattr("fhe_llm.providers.retries.JITTER", 0.01)


@pytest.fixture(scope="module")
def pseudonymiser() -> Pseudonymiser:
    return Pseudonymiser()


@pytest.fixture
def begin(provider_server: ProviderServer, tmp_path: Path, pseudonymiser: Pseudonymiser) -> Iterator[Begin]:
    """A principal at a provider, and a way to ask it; closed at the end."""
    opened: list[tuple[Setting, Front]] = []

    def make(way: str, provider: str = "openai") -> tuple[Setting, Front]:
        setting = Setting(provider_server, tmp_path / "ledger", provider, max_retries=1)
        guard = {"guarantee": "none", "identifiers": pseudonymiser, "budget": setting.account}
        opened.append((setting, FRONTS[way](setting, **guard)))
        return opened[-1]

    yield make
    for setting, front in opened:
        front.made[0].close()
        setting.account.ledger.close()


EVERY_WAY = [("openai", way) for way in FRONTS] + [
    ("anthropic", "core chat"),
    ("huggingface", "core astream"),
]


@pytest.mark.parametrize(("provider", "way"), EVERY_WAY)
def test_identifiers_stay_here_and_answers_have_them(
    provider_server: ProviderServer,
    begin: Begin,
    caplog: pytest.LogCaptureFixture,
    provider: str,
    way: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    setting, front = begin(way, provider)
    given = planted()
    provider_server.always(echo)
    history: Messages = [
        {"role": "system", "content": f"You help {given['mail']}."},
        {"role": "user", "content": question(given, 1)},
    ]
    first = front.ask(history)
    assert first == f"You said: {question(given, 1)}"
    history += [{"role": "assistant", "content": first}, {"role": "user", "content": question(given, 2)}]
    provider_server.next(Failure(name="overloaded", retry_after="0.01"))
    assert front.ask(history) == f"You said: {question(given, 2)}"
    provider_server.always(
        lambda request: Failure(name="server_error", status=400, message=request.body.decode())
    )
    with pytest.raises(ProviderError) as caught:
        front.ask(history)
    assert leaks({"received": provider_server.received_text().encode()}, spellings(given)) == []
    places = {
        "logs": "\n".join(f"{one.getMessage()} {vars(one)!r}" for one in caplog.records).encode(),
        "objects": "\n".join(repr(made) + str(made) for made in front.made).encode(),
        "error": everything_of(caught.value),
        **files(setting.folder),
    }
    assert leaks(places, spellings(given)) == []
    names = {entry.event.name for entry in setting.account.ledger.history("alice") if entry.event}
    assert names == {"identifiers-replaced"}


def test_tool_calls_and_results_are_changed_both_ways(provider_server: ProviderServer, begin: Begin) -> None:
    _, front = begin("core stream")
    model: PrivateProviderLLM = front.made[0]
    given = planted()

    def call(request: Received) -> Reply:
        placeholder = _last(request).split()[-1]
        return Reply(text="", tool_calls=(ToolCall("mail", {"to": placeholder, "text": "hi"}, id="c1"),))

    provider_server.next(call)
    ask: Messages = [{"role": "user", "content": f"Mail {given['mail']}"}]
    answer = [chunk.answer for chunk in model.stream(ask)][-1]
    assert answer is not None
    assert json.loads(answer.tool_calls[0].arguments) == {"to": given["mail"], "text": "hi"}
    function = {"name": "mail", "arguments": answer.tool_calls[0].arguments}
    history: Messages = [
        *ask,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": f"sent to {given['mail']} from {given['iban']}"},
    ]
    provider_server.next(echo)
    assert model.chat(history).text == f"You said: {history[-1]['content']}"
    assert leaks({"received": provider_server.received_text().encode()}, spellings(given)) == []


class _Forgetful(PseudonymGuard):
    """What a mistake would look like: the second message goes out as it is."""

    def release(self, messages: Any, pay: Any) -> Any:
        outgoing = super().release(messages, pay)
        return type(outgoing)((*outgoing.messages[:1], *messages[1:]), outgoing.event, outgoing.restoring)


def test_the_search_finds_what_leaves(
    provider_server: ProviderServer, begin: Begin, pseudonymiser: Pseudonymiser
) -> None:
    _, front = begin("core chat")
    model: PrivateProviderLLM = front.made[0]
    model._guard = _Forgetful(pseudonymiser)
    given = planted()
    front.ask([{"role": "system", "content": "Be kind."}, {"role": "user", "content": question(given, 1)}])
    found = {
        word for _, word in leaks({"received": provider_server.received_text().encode()}, spellings(given))
    }
    assert found >= set(given.values())


def test_the_planted_numbers_are_valid() -> None:
    assert _luhn("411111111111111") == "4111111111111111"
    assert _iban("370400440532013000") == "DE89370400440532013000"
