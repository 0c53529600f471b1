"""``ChatPrivateProvider`` in LangChain, over the adapters, at a local server that speaks the providers' APIs."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import langchain_core.exceptions as theirs
import numpy as np
import pytest
from langchain_core.load import dumps
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langsmith.utils import get_env_var
from private_provider_kit import connection
from provider_server import (
    GPT,
    OPENAI_KEY,
    Failure,
    ProviderServer,
    Reply,
    ToolCall,
)
from pydantic import BaseModel, Field

import fhe_llm.errors as ours
from fhe_llm.privacy import Account, Budget, Pseudonymiser, TokenMechanism
from fhe_llm.privacy.embedding_table import EmbeddingTable
from fhe_llm_langchain import ChatPrivateProvider

MICRO = 10**6
WORDS = ["the", "a", "small", "old", "house", "doctor", "is", "my", "has", "letter", "please", ".", "?"]
NAMES = ("openai", "anthropic", "huggingface")


@pytest.fixture
def clear(provider_server: ProviderServer) -> Iterator[ChatPrivateProvider]:
    """A model that sends text as it is."""
    with ChatPrivateProvider(**connection(provider_server, "openai"), guarantee="none") as model:
        yield model


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    """Fifty epsilon a day."""
    opened = Account.open("alice", tmp_path / "ledger.sqlite", Budget.of(50, "epsilon", "day"))
    yield opened
    opened.ledger.close()


@pytest.fixture
def private(provider_server: ProviderServer, account: Account) -> Iterator[ChatPrivateProvider]:
    """A model behind a mechanism at one epsilon a token."""
    table = EmbeddingTable(WORDS, np.eye(len(WORDS)))
    mechanism = TokenMechanism(1.0, table=table)
    with ChatPrivateProvider(
        **connection(provider_server, "openai"), mechanism=mechanism, budget=account, public_system=True
    ) as model:
        yield model


def test_an_answer_carries_its_usage_its_end_and_its_receipt(
    private: ChatPrivateProvider, provider_server: ProviderServer
) -> None:
    provider_server.always(Reply(text="So it is.", usage=(11, 4)))
    quote = private.quote("my house is old .")
    whole = private.invoke("my house is old .")
    streamed = _sum(private.stream("my house is old ."))
    assert quote.charge == {"epsilon": 5 * MICRO}
    for message in (whole, streamed):
        assert message.text == "So it is."
        assert message.usage_metadata == {"input_tokens": 11, "output_tokens": 4, "total_tokens": 15}
        assert message.response_metadata["finish_reason"] == "stop"
        assert message.response_metadata["model_provider"] == "openai"
        receipt = message.response_metadata["release_receipt"]
        assert receipt["charge"] == {"epsilon": 5 * MICRO}
        assert receipt["guarantee"] == "differential privacy"
        assert {balance["window"] for balance in receipt["left"]} >= {"day"}
        json.dumps(message.response_metadata)
    assert isinstance(whole, AIMessage)
    assert whole.response_metadata["model_name"].startswith(GPT)
    assert whole.id is not None
    assert "house" not in repr(private)


@pytest.mark.parametrize("name", NAMES)
async def test_every_way_says_the_same(provider_server: ProviderServer, name: str) -> None:
    provider_server.always(Reply(text="One, two, three.", usage=(3, 5)))
    model = ChatPrivateProvider(**connection(provider_server, name), guarantee="none")
    ask = [SystemMessage("Count."), HumanMessage("please")]
    answers: list[Any] = [
        model.invoke(ask),
        _sum(model.stream(ask)),
        await model.ainvoke(ask),
        _sum([chunk async for chunk in model.astream(ask)]),
        model.batch([ask, ask])[1],
        (await model.abatch([ask, ask]))[1],
    ]
    assert {message.text for message in answers} == {"One, two, three."}
    assert {message.usage_metadata["total_tokens"] for message in answers} == {8}
    assert len(provider_server.received) == 8
    await model.aclose()


def test_a_chain_on_top(clear: ChatPrivateProvider, provider_server: ProviderServer) -> None:
    provider_server.always(lambda request: Reply(text=request.json["messages"][-1]["content"][::-1]))
    chain = (
        ChatPromptTemplate.from_messages([("system", "Reverse."), ("user", "{word}")])
        | clear
        | StrOutputParser()
    )
    assert chain.invoke({"word": "stressed"}) == "desserts"
    assert "".join(chain.stream({"word": "stressed"})) == "desserts"
    assert chain.batch([{"word": "on"}, {"word": "ton"}]) == ["no", "not"]


@tool
def weather(place: str) -> str:
    """The weather in a place."""
    return f"sunny in {place}"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_is_called_and_its_result_read(
    provider_server: ProviderServer, name: str, streamed: bool
) -> None:
    with ChatPrivateProvider(**connection(provider_server, name), guarantee="none") as model:
        bound = model.bind_tools([weather], tool_choice="weather")
        calls = tuple(ToolCall("weather", {"place": place}, id=f"c_{place}") for place in ("Oslo", "Rome"))
        provider_server.next(Reply(text="Let me see.", tool_calls=calls), Reply(text="Both are sunny."))
        history: list[Any] = [HumanMessage("How is the weather?")]
        answer: Any = _sum(bound.stream(history)) if streamed else bound.invoke(history)
        assert [call["args"] for call in answer.tool_calls] == [{"place": "Oslo"}, {"place": "Rome"}]
        assert answer.response_metadata["finish_reason"] == "tool_calls"
        history.append(answer)
        for call in answer.tool_calls:
            history.append(ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"]))
        assert bound.invoke(history).text == "Both are sunny."
    last = json.dumps(provider_server.received[-1].json)
    assert "c_Oslo" in last
    assert "sunny in Rome" in last


def test_a_call_that_is_no_json_is_set_apart(
    clear: ChatPrivateProvider, provider_server: ProviderServer
) -> None:
    provider_server.always(Reply(text="", tool_calls=(ToolCall("weather", '{"place": "Os', id="c1"),)))
    message: Any = clear.invoke("weather?")
    assert message.tool_calls == []
    assert [call["id"] for call in message.invalid_tool_calls] == ["c1"]


class Visit(BaseModel):
    """A visit to a ward."""

    ward: Literal["A", "B"]
    urgent: bool = Field(description="whether it cannot wait")


VISIT = {"ward": "B", "urgent": True}


@pytest.mark.parametrize("name", NAMES)
def test_a_structured_answer(provider_server: ProviderServer, name: str) -> None:
    provider_server.always(Reply(text="", tool_calls=(ToolCall("Visit", VISIT),)))
    with ChatPrivateProvider(**connection(provider_server, name), guarantee="none") as model:
        assert model.with_structured_output(Visit).invoke("when?") == Visit(ward="B", urgent=True)
        plain = model.with_structured_output(Visit.model_json_schema())
        assert plain.invoke("when?") == VISIT
        raw: Any = model.with_structured_output(Visit, include_raw=True).invoke("when?")
    assert raw["parsed"] == Visit(ward="B", urgent=True)
    assert raw["parsing_error"] is None


def test_a_structured_answer_in_the_provider_s_own_way(
    clear: ChatPrivateProvider, provider_server: ProviderServer
) -> None:
    provider_server.always(Reply(text=json.dumps(VISIT)))
    assert clear.with_structured_output(Visit, method="json_schema").invoke("when?") == Visit(**VISIT)
    wanted = provider_server.received[-1].json["response_format"]
    assert wanted["type"] == "json_schema"
    assert set(wanted["json_schema"]["schema"]["properties"]) == {"ward", "urgent"}
    assert clear.with_structured_output(method="json_mode").invoke("when?") == VISIT
    assert provider_server.received[-1].json["response_format"] == {"type": "json_object"}
    clear.bind_tools([weather], parallel_tool_calls=False).invoke("weather?")
    assert provider_server.received[-1].json["parallel_tool_calls"] is False


def test_a_structured_answer_that_does_not_fit_is_not_in_the_error(
    clear: ChatPrivateProvider, provider_server: ProviderServer
) -> None:
    provider_server.always(Reply(text="", tool_calls=(ToolCall("Visit", {"ward": "zeppelin", "urgent": 1}),)))
    with pytest.raises(Exception, match="cannot parse the answer") as caught:
        clear.with_structured_output(Visit).invoke("when?")
    behind: BaseException | None = caught.value
    while behind is not None:
        assert "zeppelin" not in f"{behind} {behind!r} {vars(behind)}"
        behind = behind.__cause__ or behind.__context__


def test_what_anthropic_does_not_have_is_refused(provider_server: ProviderServer) -> None:
    with ChatPrivateProvider(**connection(provider_server, "anthropic"), guarantee="none") as model:
        with pytest.raises(theirs.ModelInvalidRequestError, match="'response_format' with anthropic"):
            model.with_structured_output(Visit, method="json_schema")
        with pytest.raises(theirs.ModelInvalidRequestError, match="'parallel_tool_calls' with anthropic"):
            model.bind_tools([weather], parallel_tool_calls=True).invoke("weather?")
    assert provider_server.received == []


FAILURES = {
    "invalid_api_key": theirs.ModelAuthenticationError,
    "context_length_exceeded": theirs.ContextOverflowError,
    "model_not_found": theirs.ModelInvalidRequestError,
    "rate_limit": theirs.ModelRateLimitError,
    "insufficient_quota": theirs.ModelRateLimitError,
    "overloaded": theirs.ModelConnectionError,
    "server_error": theirs.ModelAPIError,
    "gateway_timeout": theirs.ModelTimeoutError,
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_failures_have_langchain_s_names(
    clear: ChatPrivateProvider, provider_server: ProviderServer, failure: str
) -> None:
    provider_server.always(Failure(name=failure))
    with pytest.raises(FAILURES[failure]) as caught:
        clear.invoke("hello")
    assert isinstance(caught.value, ours.ProviderError)
    with pytest.raises(FAILURES[failure]):
        [chunk async for chunk in clear.astream("hello")]
    await clear.aclose()


def test_the_budget_is_no_rate_limit(private: ChatPrivateProvider, provider_server: ProviderServer) -> None:
    private.invoke("the old house " * 15)
    with pytest.raises(theirs.ModelPermissionDeniedError, match=r"5 ε of 50 ε per day is left") as caught:
        private.invoke("the old house " * 2)
    assert isinstance(caught.value, ours.BudgetExhaustedError)
    assert not caught.value.is_retryable
    with pytest.raises(theirs.ModelInvalidRequestError, match="the table has nothing like them"):
        private.invoke("my zeppelin")
    assert len(provider_server.received) == 1


def test_system_messages_that_are_public_go_as_they_are(
    private: ChatPrivateProvider, provider_server: ProviderServer
) -> None:
    private.invoke([SystemMessage("Answer in rhymes"), HumanMessage("my house")])
    system, user = provider_server.received[0].json["messages"]
    assert system["content"] == "Answer in rhymes"
    assert len(user["content"].split()) <= 2


def test_identifiers_are_put_back(provider_server: ProviderServer, account: Account) -> None:
    provider_server.always(lambda request: Reply(text=f"I wrote: {request.json['messages'][-1]['content']}"))
    with ChatPrivateProvider(
        **connection(provider_server, "openai"), guarantee="none", identifiers=Pseudonymiser(), budget=account
    ) as model:
        ask = "Write to jane.doe@example.com today"
        assert model.invoke(ask).text == f"I wrote: {ask}"
        assert _sum(model.stream(ask)).text == f"I wrote: {ask}"
        assert model.quote(ask).guarantee == "none"
    assert "jane" not in provider_server.received_text()


def test_no_repr_and_no_dump_shows_a_key(provider_server: ProviderServer) -> None:
    with ChatPrivateProvider(**connection(provider_server, "openai"), guarantee="none") as model:
        for shown in (
            repr(model),
            str(model),
            dumps(model),
            str(model._identifying_params),
            str(vars(model)),
        ):
            assert OPENAI_KEY not in shown
            assert OPENAI_KEY[:12] not in shown


BAD: list[dict[str, Any]] = [
    {"provider": "nobody"},
    {"model": None},
    {"colour": "red"},
    {"guarantee": None},
    {"guarantee": "strong"},
    {"base_url": "ftp://example.org"},
    {"timeout": -1.0},
    {"max_retries": -1},
]


@pytest.mark.parametrize("wrong", BAD)
def test_what_makes_no_sense_is_refused_when_the_model_is_made(
    provider_server: ProviderServer, wrong: dict[str, Any]
) -> None:
    with pytest.raises(theirs.ModelInvalidRequestError, match=r"cannot"):
        ChatPrivateProvider(**{**connection(provider_server, "openai"), "guarantee": "none", **wrong})
    assert provider_server.received == []


def test_a_missing_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(theirs.ModelAuthenticationError, match="OPENAI_API_KEY"):
        ChatPrivateProvider(provider="openai", model=GPT, guarantee="none")


def test_tracing_is_refused_before_anything_is_paid(
    private: ChatPrivateProvider, provider_server: ProviderServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANGSMITH_TRACING", "true")
    get_env_var.cache_clear()
    try:
        with pytest.raises(theirs.ModelInvalidRequestError, match="LangSmith"):
            private.invoke("my house")
        with pytest.raises(theirs.ModelInvalidRequestError, match="LangSmith"):
            list(private.stream("my house"))
    finally:
        monkeypatch.undo()
        get_env_var.cache_clear()
    assert provider_server.received == []


def test_closing_a_stream_ends_the_request(
    clear: ChatPrivateProvider, provider_server: ProviderServer
) -> None:
    provider_server.always(Reply(text="on and on", hold=threading.Event(), after=4))
    stream: Any = clear.stream("hello")
    assert isinstance(next(stream), AIMessageChunk)
    stream.close()
    assert provider_server.received[0].hung_up.wait(20)


async def test_cancelling_ends_the_request(
    clear: ChatPrivateProvider, provider_server: ProviderServer
) -> None:
    provider_server.always(Reply(wait=60))
    task = asyncio.create_task(clear.ainvoke("hello"))
    await asyncio.to_thread(provider_server.recorder.wait_for, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(provider_server.received[0].hung_up.wait, 20)
    await clear.aclose()


def _sum(chunks: Any) -> Any:
    whole, *rest = chunks
    for chunk in rest:
        whole += chunk
    return whole
