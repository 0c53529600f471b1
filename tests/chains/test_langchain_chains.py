"""Chains, agents and histories over a live proxy: what a user has today runs with one import changed."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.exceptions import ModelConnectionError
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_core.tools import tool
from pydantic import BaseModel, Field
from relay import Relay

import fhe_llm
from fhe_llm.cli.proxy_process import ProxyProcess
from fhe_llm_langchain import ChatEncrypted, EncryptedLLM, privacy_receipt


@pytest.fixture
def model(tiny_client: fhe_llm.EncryptedLLM) -> ChatEncrypted:
    return ChatEncrypted(model="tiny", client=tiny_client, max_tokens=6)


@tool
def switch(lamp: bool) -> str:
    """Switch the lamp."""
    return "on" if lamp else "off"


class Lamp(BaseModel):
    on: bool
    colour: int = Field(ge=0, le=99)


def test_a_chain_says_what_the_model_says(model: ChatEncrypted, tiny_client: fhe_llm.EncryptedLLM) -> None:
    chain = (
        ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{q}")])
        | model
        | StrOutputParser()
    )
    expected = tiny_client.chat(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "you?"}], max_tokens=6
    ).text
    assert chain.invoke({"q": "you?"}) == expected
    assert "".join(chain.stream({"q": "you?"})) == expected


async def test_a_chain_on_an_event_loop(model: ChatEncrypted) -> None:
    chain = model | StrOutputParser()
    whole = await chain.ainvoke("you?")
    assert whole == "".join([piece async for piece in chain.astream("you?")]) == chain.invoke("you?")


def test_an_answer_carries_its_usage_its_end_and_its_receipt(model: ChatEncrypted) -> None:
    answer = model.invoke("you?")
    assert answer.response_metadata["model_name"] == "tiny"
    assert answer.response_metadata["finish_reason"] in ("stop", "length")
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] <= 6
    receipt = privacy_receipt(answer)
    assert receipt.guarantee == "ciphertext"
    assert receipt.rounds > 0
    json.dumps(answer.response_metadata)
    chunks = list(model.stream("you?"))
    added = sum(chunks[1:], chunks[0])
    assert isinstance(added, AIMessageChunk)
    assert privacy_receipt(added).model == "tiny"
    assert [chunk.chunk_position for chunk in chunks[-2:]] == [None, "last"]


def test_tokens_are_counted_by_the_models_own_tokenizer(model: ChatEncrypted) -> None:
    assert model.get_num_tokens("you") == len(model.get_token_ids("you")) == 2
    asked = [HumanMessage("you?")]
    answer = model.invoke(asked)
    assert answer.usage_metadata is not None
    assert model.get_num_tokens_from_messages(asked) == answer.usage_metadata["input_tokens"]
    with_tools = model.get_num_tokens_from_messages(asked, tools=[switch])
    assert with_tools > answer.usage_metadata["input_tokens"]


def test_the_profile_says_what_the_model_can_do() -> None:
    profile = ChatEncrypted(base_url="http://127.0.0.1:9").profile
    assert profile is not None
    assert profile["max_input_tokens"] == 8192
    assert profile["tool_calling"]
    assert not profile["image_inputs"]


def test_batches(model: ChatEncrypted) -> None:
    questions = ["you?", "the other?", "you?"]
    answers = [answer.content for answer in model.batch(questions, {"max_concurrency": 2})]
    assert answers == [model.invoke(question).content for question in questions]


async def test_async_batches(model: ChatEncrypted) -> None:
    questions = ["you?", "the other?", "you?"]
    answers = [answer.content for answer in await model.abatch(questions)]
    assert answers[0] == answers[2] == model.invoke("you?").content


async def test_events_tell_of_every_piece(model: ChatEncrypted) -> None:
    pieces, kinds = "", set[str]()
    async for event in (model | StrOutputParser()).astream_events("you?", version="v2"):
        kinds.add(event["event"])
        if event["event"] == "on_chat_model_stream":
            pieces += event["data"]["chunk"].content  # type: ignore[typeddict-item]
    assert pieces == model.invoke("you?").content
    assert {"on_chat_model_start", "on_chat_model_stream", "on_chat_model_end"} <= kinds


@pytest.mark.filterwarnings("ignore::langchain_core._api.deprecation.LangChainDeprecationWarning")
def test_a_history_goes_with_every_question(model: ChatEncrypted) -> None:
    histories: dict[str, InMemoryChatMessageHistory] = {}
    prompt = ChatPromptTemplate.from_messages([MessagesPlaceholder("history"), ("human", "{q}")])
    chat = RunnableWithMessageHistory(
        prompt | model,
        lambda session: histories.setdefault(session, InMemoryChatMessageHistory()),
        input_messages_key="q",
        history_messages_key="history",
    )
    session: Any = {"configurable": {"session_id": "a"}}
    first = chat.invoke({"q": "you?"}, session)
    second = chat.invoke({"q": "again?"}, session)
    assert second.usage_metadata["input_tokens"] > first.usage_metadata["input_tokens"]
    assert second.usage_metadata["input_token_details"]["cache_read"] > 0
    assert len(histories["a"].messages) == 4


class Insist(AgentMiddleware):
    """Makes the first turn a call: a random model would not think of it."""

    def wrap_model_call(
        self, request: ModelRequest, handler: Callable[[ModelRequest], ModelResponse]
    ) -> ModelResponse:
        called = any(isinstance(message, ToolMessage) for message in request.messages)
        return handler(request.override(tool_choice=None if called else "any"))


def test_an_agent_calls_its_tool_and_reads_the_result(model: ChatEncrypted) -> None:
    agent = create_agent(model.model_copy(update={"max_tokens": 80}), [switch], middleware=[Insist()])
    messages = agent.invoke({"messages": [HumanMessage("you?")]})["messages"]
    kinds = [type(message) for message in messages]
    assert kinds == [HumanMessage, AIMessage, ToolMessage, AIMessage]
    assert messages[1].tool_calls[0]["name"] == "switch"
    assert messages[2].content in ("on", "off")


def test_text_and_calls_stream_with_tools_bound(model: ChatEncrypted) -> None:
    free = list(model.bind_tools([switch]).stream("you?"))
    assert len([chunk for chunk in free if chunk.content]) > 1
    forced = list(model.bind_tools([switch], tool_choice="any").stream("you?", max_tokens=100))
    added = sum(forced[1:], forced[0])
    assert isinstance(added, AIMessageChunk)
    assert [call["name"] for call in added.tool_calls] == ["switch"]
    assert isinstance(added.tool_calls[0]["args"]["lamp"], bool)


@pytest.mark.parametrize(
    "choice", ["switch", "any", "required", True, {"type": "function", "function": {"name": "switch"}}]
)
def test_a_forced_call_is_one(model: ChatEncrypted, choice: Any) -> None:
    answer = model.bind_tools([switch], tool_choice=choice).invoke("you?", max_tokens=100, stop=["\n"])
    assert [call["name"] for call in answer.tool_calls] == ["switch"]
    assert answer.response_metadata["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("schema", [Lamp, Lamp.model_json_schema()])
@pytest.mark.parametrize("strict", [None, True])
def test_structured_answers_fit(model: ChatEncrypted, method: str, schema: Any, strict: bool | None) -> None:
    roomy = model.model_copy(update={"max_tokens": 150, "temperature": 1.0, "seed": 3})
    shaped = roomy.with_structured_output(schema, method=method, include_raw=True, strict=strict)
    answer = shaped.invoke("you?")
    assert answer["parsing_error"] is None
    assert isinstance(answer["raw"], AIMessage)
    lamp = answer["parsed"] if schema is Lamp else Lamp(**answer["parsed"])
    assert isinstance(lamp, Lamp)


def test_an_answer_that_was_cut_off_is_not_in_the_error(model: ChatEncrypted) -> None:
    shaped = model.with_structured_output(Lamp)
    with pytest.raises(ValueError, match=r"it was cut off\. Raise max_tokens") as caught:
        shaped.invoke("you?")
    assert model.with_structured_output(Lamp, include_raw=True).invoke("you?")["raw"].content not in str(
        caught.value
    )


def test_a_model_falls_back_and_tries_again(
    model: ChatEncrypted, tiny_proxy: ProxyProcess, tmp_path: Path
) -> None:
    nobody = ChatEncrypted(model="tiny", base_url="http://127.0.0.1:9", max_retries=0, max_tokens=6)
    assert nobody.with_fallbacks([model]).invoke("you?").content == model.invoke("you?").content
    missing = ChatEncrypted(
        model="absent", base_url=tiny_proxy.base_url, cache_dir=str(tmp_path), max_tokens=6
    )
    assert missing.with_fallbacks([model]).invoke("you?").content == model.invoke("you?").content
    with (
        Relay(tiny_proxy.base_url) as relay,
        ChatEncrypted(
            model="tiny", base_url=relay.url, cache_dir=str(tmp_path / "b"), max_tokens=6, max_retries=0
        ) as cut,
    ):
        cut.invoke("you?")
        relay.cut_after(1)
        with pytest.raises(ModelConnectionError):
            cut.invoke("you?")
        relay.cut_after(1)
        again = cut.with_retry(retry_if_exception_type=(ModelConnectionError,), wait_exponential_jitter=False)
        assert again.invoke("you?").content == model.invoke("you?").content
        assert relay.cuts == 2


async def test_cancelling_stops_the_work(tiny_proxy: ProxyProcess, tmp_path: Path) -> None:
    async with ChatEncrypted(
        model="tiny", base_url=tiny_proxy.base_url, cache_dir=str(tmp_path), max_tokens=1000
    ) as model:
        first = asyncio.Event()

        async def follow() -> None:
            async for _ in model.astream("you?"):
                first.set()

        task = asyncio.create_task(follow())
        await first.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        whole = asyncio.create_task(model.ainvoke("you?"))
        await asyncio.sleep(0.2)
        whole.cancel()
        with pytest.raises(asyncio.CancelledError):
            await whole
        settled = await rounds(tiny_proxy)
        await asyncio.sleep(0.3)
        assert await rounds(tiny_proxy) == settled > 0
        assert (await model.ainvoke("you?", max_tokens=2)).usage_metadata is not None


async def rounds(proxy: ProxyProcess) -> float:
    """Rounds the proxy has answered, once what was under way is done."""
    async with httpx.AsyncClient() as client:
        await asyncio.sleep(0.2)
        text = (await client.get(proxy.base_url + "/metrics")).text
    return sum(
        float(value) for value in re.findall(r"^fhe_llm_rounds_total\{.*?\} (\S+)$", text, re.MULTILINE)
    )


async def test_blocking_calls_work_inside_a_running_loop(model: ChatEncrypted) -> None:
    assert model.invoke("you?").content == (await model.ainvoke("you?")).content


async def test_async_calls_leave_the_loop_free(model: ChatEncrypted) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    ticking = asyncio.create_task(tick())
    answer = await model.ainvoke("you?")
    ticking.cancel()
    assert answer.usage_metadata is not None
    assert ticks > 10 * privacy_receipt(answer).rounds


def test_the_text_model_continues_a_text(tiny_client: fhe_llm.EncryptedLLM) -> None:
    model = EncryptedLLM(model="tiny", client=tiny_client, max_tokens=6)
    expected = tiny_client.generate("you and", max_tokens=6).text
    assert model.invoke("you and") == "".join(model.stream("you and")) == expected
    result = model.generate(["you and", "the"])
    assert result.generations[0][0].text == expected
    assert len(result.generations) == 2
    assert result.generations[0][0].generation_info["privacy_receipt"]["guarantee"] == "ciphertext"  # type: ignore[index]


async def test_the_text_model_on_an_event_loop(tiny_client: fhe_llm.EncryptedLLM) -> None:
    model = EncryptedLLM(model="tiny", client=tiny_client, max_tokens=6)
    expected = await model.ainvoke("you and")
    assert "".join([piece async for piece in model.astream("you and")]) == expected
