"""Under a mechanism a prompt never leaves: what arrives at a provider is what was drawn, word for word, and no ledger,
log, error, receipt or repr holds a word of it. Through every class and every way to ask, with failures on the way.

That the search finds what is there is tested too.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from private_text_kit import (
    EPSILON,
    FRONTS,
    Canaries,
    Front,
    Messages,
    Setting,
    accounted,
    everything_of,
    files,
    leaks,
)
from provider_server import (
    ANTHROPIC_KEY,
    HUGGINGFACE_KEY,
    OPENAI_KEY,
    Failure,
    ProviderServer,
    Received,
    Reply,
)

from fhe_llm.errors import BudgetExhaustedError, FheLlmError, ProviderError
from fhe_llm.privacy import InferDpt
from fhe_llm.privacy.text_tokens import tokens_of
from fhe_llm.providers import PrivateProviderLLM
from fhe_llm.providers.guards import MechanismGuard

EVERY_WAY = [("openai", front) for front in FRONTS] + [
    (name, front) for name in ("anthropic", "huggingface") for front in FRONTS if front.startswith("core")
]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other at once."""
    monkeypatch.setattr("fhe_llm.providers.retries.FIRST_WAIT", 0.01)
    monkeypatch.setattr("fhe_llm.providers.retries.JITTER", 0.01)


Begin = Callable[..., tuple[Setting, Front]]


@pytest.fixture
def begin(provider_server: ProviderServer, tmp_path: Path) -> Iterator[Begin]:
    """A principal at a provider, and a way to ask it; closed at the end."""
    opened: list[tuple[Setting, Front]] = []

    def make(way: str, provider: str = "openai", **settings: Any) -> tuple[Setting, Front]:
        setting = Setting(provider_server, tmp_path / "ledger", provider, **settings)
        opened.append((setting, FRONTS[way](setting)))
        return opened[-1]

    yield make
    for setting, front in opened:
        front.made[0].close()
        setting.account.ledger.close()


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], bytes]:
    """Every log line of every library, with all that its record holds."""
    caplog.set_level(logging.DEBUG)

    def lines() -> bytes:
        records = [f"{record.getMessage()} {vars(record)!r}" for record in caplog.records]
        return "\n".join([caplog.text, *records]).encode()

    return lines


def conversation(setting: Setting, front: Front) -> list[BaseException]:
    """Two turns, a retry, a refusal, a broken connection and a hang-up; what was raised."""
    server, text = setting.server, setting.canaries.text
    history: Messages = [
        {"role": "system", "content": f"Be kind to {setting.canaries.strange[0]}, please."},
        {"role": "user", "content": text(0)},
    ]
    server.next(Reply(text="First, an answer."))
    assert front.ask(history) == "First, an answer."
    history += [
        {"role": "assistant", "content": "First, an answer."},
        {"role": "user", "content": text(1)},
    ]
    server.next(Failure(name="overloaded", retry_after="0.01"), Reply(text="And another."))
    assert front.ask(history) == "And another."
    raised = []
    for spoilt in (_echo, Reply(cut="in_body"), Reply(cut="before_headers", reset=True)):
        server.always(spoilt)
        with pytest.raises(FheLlmError) as caught:
            front.ask([{"role": "user", "content": text(2)}])
        raised.append(caught.value)
    server.always(Reply())
    if front.hang_up:
        held = threading.Event()
        server.next(Reply(text="It goes on and on.", hold=held, after=6))
        front.hang_up([{"role": "user", "content": text(3)}], held)
        assert server.received[-1].hung_up.wait(20)
    return raised


def _echo(request: Received) -> Failure:
    """Providers quote what they refuse."""
    said = request.body.decode()
    return Failure(name="server_error", status=400, message=f"Invalid value: {said}")


@pytest.mark.parametrize(("provider", "way"), EVERY_WAY)
def test_only_draws_leave(
    provider_server: ProviderServer,
    begin: Begin,
    logged: Callable[[], bytes],
    provider: str,
    way: str,
) -> None:
    setting, front = begin(way, provider, max_retries=1)
    raised = conversation(setting, front)
    accounted(provider_server, setting.mechanism.drawn, setting.canaries)
    places = {
        "logs": logged(),
        "objects": "\n".join(repr(made) + str(made) for made in front.made).encode(),
        **{f"error {n}": everything_of(error) for n, error in enumerate(raised)},
        **files(setting.folder),
    }
    assert leaks(places, setting.canaries.all) == []
    # nor does the draw stand anywhere but at the provider
    assert leaks(places, [text for text in setting.mechanism.drawn if text]) == []
    assert leaks(places, [OPENAI_KEY, ANTHROPIC_KEY, HUGGINGFACE_KEY]) == []
    assert "ledger.sqlite" in places


@pytest.mark.parametrize("way", ["core chat", "langchain stream", "llamaindex achat"])
def test_what_is_sent_again_is_the_same_draw(provider_server: ProviderServer, begin: Begin, way: str) -> None:
    setting, front = begin(way)
    provider_server.next(*[Failure(name="overloaded", retry_after="0.01")] * 2, Reply(text="Then."))
    assert front.ask([{"role": "user", "content": setting.canaries.text(0)}]) == "Then."
    bodies = {request.body for request in provider_server.received}
    assert len(provider_server.received) == 3
    assert len(bodies) == 1
    assert len(setting.mechanism.drawn) == 1


def test_what_was_spent_is_every_draw_and_no_retry(provider_server: ProviderServer, begin: Begin) -> None:
    setting, front = begin("core stream", max_retries=1)
    conversation(setting, front)
    tokens = sum(len(tokens_of(text)) for text in setting.mechanism.drawn)
    spent = {balance.window: balance.spent for balance in setting.account.balances()}
    assert spent["day"] == tokens * EPSILON * 10**6
    assert len(setting.mechanism.drawn) == 7  # a system message and questions 0, 1, 2, 2, 2, 3


def test_threads_share_a_model_and_no_conversation_takes_part_in_another(
    provider_server: ProviderServer, begin: Begin
) -> None:
    setting, front = begin("core chat")
    model: PrivateProviderLLM = front.made[0]
    provider_server.always(lambda request: Reply(text=f"It was {len(request.json['messages'])}."))

    def talk(n: int) -> tuple[str, str]:
        first: Messages = [{"role": "user", "content": setting.canaries.text(n) + " old" * n}]
        said = model.chat(first).text
        more: Messages = [*first, {"role": "assistant", "content": said}, {"role": "user", "content": "why?"}]
        return said, model.chat(more).text

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(talk, range(12))) == {("It was 1.", "It was 3.")}
    accounted(provider_server, setting.mechanism.drawn, setting.canaries)
    begun = [request.json["messages"] for request in provider_server.received]
    opening = {turns[0]["content"] for turns in begun if len(turns) == 1}
    assert {turns[0]["content"] for turns in begun if len(turns) == 3} == opening
    assert len(setting.mechanism.drawn) == 24
    spent = {balance.window: balance.spent for balance in setting.account.balances()}
    assert spent["day"] == sum(len(tokens_of(text)) for text in setting.mechanism.drawn) * EPSILON * 10**6


@pytest.mark.parametrize("way", ["core stream", "core achat", "langchain invoke", "llamaindex achat"])
def test_an_answer_that_holds_the_prompt_does_not_take_it_along(
    provider_server: ProviderServer, begin: Begin, way: str
) -> None:
    """The pattern of InferDPT: an answer is re-written against the original, and the conversation goes on with it."""
    setting, _ = begin(way)
    mechanism = InferDpt(setting.mechanism, lambda prompt: f"Rewritten. {prompt}")
    front = FRONTS[way](setting, mechanism=mechanism, budget=setting.account)
    provider_server.always(Reply(text="A remote answer."))
    history: Messages = [{"role": "user", "content": setting.canaries.text(0)}]
    shown = front.ask(history)
    assert setting.canaries.text(0) in shown
    assert "A remote answer." in shown
    front.ask(
        [
            *history,
            {"role": "assistant", "content": shown},
            {"role": "user", "content": setting.canaries.text(1)},
        ]
    )
    accounted(provider_server, setting.mechanism.drawn, setting.canaries)
    turns = provider_server.received[1].json["messages"]
    assert [turn["content"] for turn in turns[1:2]] == ["A remote answer."]
    front.made[0].close()


class _Leaking(MechanismGuard):
    """What a mistake would look like: the last message goes out as it is."""

    def release(self, messages: Any, pay: Any) -> Any:
        outgoing = super().release(messages, pay)
        return type(outgoing)(
            (*outgoing.messages[:-1], dict(messages[-1])),
            outgoing.event,
            outgoing.restoring,
            outgoing.before,
        )


def test_the_search_finds_a_prompt_that_leaves(provider_server: ProviderServer, begin: Begin) -> None:
    setting, front = begin("core chat")
    model: PrivateProviderLLM = front.made[0]
    model._guard = _Leaking(setting.mechanism, public_system=False)
    front.ask([{"role": "user", "content": setting.canaries.text(0)}])
    with pytest.raises(AssertionError, match="no draw brought"):
        accounted(provider_server, setting.mechanism.drawn, setting.canaries)
    everywhere = {"received": provider_server.received_bytes()}
    assert {word for _, word in leaks(everywhere, setting.canaries.all)} >= set(setting.canaries.strange[:3])


def test_the_search_finds_a_word_of_the_table_that_no_draw_brought(
    provider_server: ProviderServer, begin: Begin
) -> None:
    setting, front = begin("core chat")
    front.ask([{"role": "user", "content": setting.canaries.text(0)}])
    model: PrivateProviderLLM = front.made[0]
    model.chat("a small house", extra={"user": setting.canaries.known[0]})
    with pytest.raises(AssertionError, match="came otherwise than drawn"):
        accounted(provider_server, setting.mechanism.drawn, setting.canaries)


def test_the_search_finds_words_in_errors_files_and_other_encodings(tmp_path: Path) -> None:
    word = Canaries().strange[0]
    (tmp_path / "log").write_text(word, encoding="utf-16-le")
    assert leaks(files(tmp_path), [word.upper()]) == [("log", word.upper())]
    error = ProviderError("cannot get an answer")
    error.__context__ = ValueError(word)
    assert leaks({"error": everything_of(error)}, [word]) == [("error", word)]


def test_a_budget_that_is_used_up_lets_nothing_leave(provider_server: ProviderServer, begin: Begin) -> None:
    setting, front = begin("core chat", limit=50)
    front.ask([{"role": "user", "content": setting.canaries.text(0)}])
    with pytest.raises(BudgetExhaustedError) as caught:
        front.ask([{"role": "user", "content": setting.canaries.text(1) * 2}])
    assert len(provider_server.received) == 1
    accounted(provider_server, setting.mechanism.drawn, setting.canaries)
    assert leaks({"error": everything_of(caught.value)}, setting.canaries.all) == []
