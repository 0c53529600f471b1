"""LlamaIndex's ``PrivateProviderLLM``, over the adapters, at a local server that speaks the providers' APIs."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llamaindex_kit import LetterEmbedding
from provider_server import (
    ANTHROPIC_KEY,
    CLAUDE,
    GPT,
    HUGGINGFACE_KEY,
    LLAMA,
    OPENAI_KEY,
    Failure,
    ProviderServer,
    Reply,
    ToolCall,
)
from pydantic import BaseModel

from fhe_llm.errors import (
    BudgetExhaustedError,
    PrivacyParameterError,
    ProviderContextError,
    ProviderLimitError,
    RequestError,
    UnknownTextError,
)
from fhe_llm.privacy import Account, Budget, Pseudonymiser, TokenMechanism
from fhe_llm.privacy.embedding_table import EmbeddingTable
from fhe_llm.providers import open_provider
from fhe_llm_llamaindex import PrivateProviderLLM

MICRO = 10**6
WORDS = ["the", "a", "small", "old", "house", "doctor", "is", "my", "has", "letter", "please", ".", "?"]
NAMES = ("openai", "anthropic", "huggingface")
CHAT = [ChatMessage("Count.", role="system"), ChatMessage("please")]
Make = Callable[..., PrivateProviderLLM]


@pytest.fixture
def make(provider_server: ProviderServer) -> Iterator[Make]:
    """Models of providers at the server, which are closed with the test."""
    made: list[PrivateProviderLLM] = []

    def model(name: str = "openai", **given: Any) -> PrivateProviderLLM:
        usual, url, key = {
            "openai": (GPT, provider_server.openai_url, OPENAI_KEY),
            "anthropic": (CLAUDE, provider_server.anthropic_url, ANTHROPIC_KEY),
            "huggingface": (LLAMA, provider_server.huggingface_url, HUGGINGFACE_KEY),
        }[name]
        guard = given if "mechanism" in given else {"guarantee": "none", **given}
        made.append(
            PrivateProviderLLM(open_provider(name, usual, api_key=key, base_url=url, max_retries=0), **guard)
        )
        return made[-1]

    yield model
    for llm in made:
        llm.close()


@pytest.fixture
def private(make: Make, tmp_path: Path) -> Iterator[PrivateProviderLLM]:
    """A model behind a mechanism at one epsilon a token, fifty a day."""
    account = Account.open("alice", tmp_path / "ledger.sqlite", Budget.of(50, "epsilon", "day"))
    mechanism = TokenMechanism(1.0, table=EmbeddingTable(WORDS, np.eye(len(WORDS))))
    yield make(mechanism=mechanism, budget=account, public_system=True)
    account.ledger.close()


@pytest.mark.parametrize("name", NAMES)
async def test_every_way_says_the_same(provider_server: ProviderServer, make: Make, name: str) -> None:
    provider_server.always(Reply(text="One, two, three.", usage=(3, 5)))
    llm = make(name)
    chats = [
        llm.chat(CHAT),
        list(llm.stream_chat(CHAT))[-1],
        await llm.achat(CHAT),
        [response async for response in await llm.astream_chat(CHAT)][-1],
    ]
    assert {response.message.content for response in chats} == {"One, two, three."}
    completions = [
        llm.complete("please"),
        list(llm.stream_complete("please"))[-1],
        await llm.acomplete("please"),
        [response async for response in await llm.astream_complete("please")][-1],
    ]
    assert {response.text for response in completions} == {"One, two, three."}
    for response in (*chats, *completions):
        assert response.additional_kwargs["total_tokens"] == 8
        assert response.raw["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
        assert "One" not in str(response.raw)
        assert response.additional_kwargs["receipt"].guarantee == "none"
    assert len(provider_server.received) == 8
    await llm.aclose()


def test_a_stream_grows(provider_server: ProviderServer, make: Make) -> None:
    provider_server.always(Reply(text="one two three", piece=4))
    responses = list(make().stream_chat(CHAT))
    assert len(responses) > 2
    so_far = ""
    for response in responses:
        so_far += response.delta or ""
        assert response.message.content == so_far
    assert [response.raw is None for response in responses] == [True] * (len(responses) - 1) + [False]


def test_the_cost_is_told_before_and_after(
    provider_server: ProviderServer, private: PrivateProviderLLM
) -> None:
    ask = [ChatMessage("my house is old .")]
    assert private.quote(ask).charge == {"epsilon": 5 * MICRO}
    assert private.quote("my house").charge == {"epsilon": 2 * MICRO}
    receipt = private.chat(ask).additional_kwargs["receipt"]
    assert receipt.charge == {"epsilon": 5 * MICRO}
    assert "45 ε of 50 ε per day" in str(receipt)
    (sent,) = provider_server.received[0].json["messages"]
    assert len(sent["content"].split()) <= 5


def test_a_budget_and_a_table_have_their_ends(
    provider_server: ProviderServer, private: PrivateProviderLLM
) -> None:
    private.complete("the old house " * 15)
    with pytest.raises(BudgetExhaustedError, match=r"5 ε of 50 ε per day is left"):
        private.complete("the old house " * 2)
    with pytest.raises(UnknownTextError):
        list(private.stream_chat([ChatMessage("my zeppelin")]))
    assert len(provider_server.received) == 1


def test_a_conversation_pays_once_for_each_message(
    provider_server: ProviderServer, private: PrivateProviderLLM
) -> None:
    provider_server.always(Reply(text="A zeppelin is none."))
    first = [ChatMessage("Be brief, zeppelin.", role="system"), ChatMessage("my house")]
    answer = private.chat(first).message
    second = private.chat([*first, answer, ChatMessage("is it small ?".replace("it ", ""))])
    receipt = second.additional_kwargs["receipt"]
    assert receipt.charge == {"epsilon": 3 * MICRO}
    assert receipt.conversation == {"epsilon": 5 * MICRO}
    before, after = (request.json["messages"] for request in provider_server.received)
    assert after[: len(before)] == before
    assert before[0]["content"] == "Be brief, zeppelin."
    assert after[2]["content"] == "A zeppelin is none."


def weather(place: str) -> str:
    """The weather in a place."""
    return f"sunny in {place}"


TOOL = FunctionTool.from_defaults(weather)


@pytest.mark.parametrize("name", NAMES)
async def test_tools_are_called_and_their_results_read(
    provider_server: ProviderServer, make: Make, name: str
) -> None:
    llm = make(name)
    call = ToolCall("weather", {"place": "Oslo"}, id="c_1")
    provider_server.next(*[Reply(text="", tool_calls=(call,))] * 4)
    responses = [
        llm.chat_with_tools([TOOL], "How is Oslo?", tool_required=True),
        list(llm.stream_chat_with_tools([TOOL], "How is Oslo?"))[-1],
        await llm.achat_with_tools([TOOL], "How is Oslo?", tool_choice="weather"),
        [r async for r in await llm.astream_chat_with_tools([TOOL], "How is Oslo?")][-1],
    ]
    for response in responses:
        (found,) = llm.get_tool_calls_from_response(response)
        assert (found.tool_id, found.tool_name, found.tool_kwargs) == ("c_1", "weather", {"place": "Oslo"})
    history = [
        ChatMessage("How is Oslo?"),
        responses[0].message,
        ChatMessage("sunny", role="tool", additional_kwargs={"tool_call_id": "c_1"}),
    ]
    assert llm.chat_with_tools([TOOL], chat_history=history).message.content == "A reply from the model."
    assert "c_1" in provider_server.received_text()
    provider_server.next(Reply(text="", tool_calls=(call,)))
    assert str(llm.predict_and_call([TOOL], "How is Oslo?")) == "sunny in Oslo"
    assert (provider_server.received[0].json.get("parallel_tool_calls") is False) == (name != "anthropic")
    await llm.aclose()


# LlamaIndex's workflows look at every attribute of an agent, old names of pydantic's included
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_an_agent_runs(provider_server: ProviderServer, make: Make) -> None:
    provider_server.next(
        Reply(text="", tool_calls=(ToolCall("weather", {"place": "Oslo"}, id="c_1"),)),
        Reply(text="It is sunny."),
    )
    llm = make()
    result = await FunctionAgent(tools=[TOOL], llm=llm).run(user_msg="How is Oslo?")
    assert result.response.content == "It is sunny."
    assert result.tool_calls[0].tool_output.content == "sunny in Oslo"
    await llm.aclose()


def test_calls_that_cannot_be_made_are_not_in_the_error(provider_server: ProviderServer, make: Make) -> None:
    llm = make()
    provider_server.next(
        Reply(text="", tool_calls=(ToolCall("weather", '{"place": "zeppel'),)), Reply(text="zeppelin")
    )
    broken, none = llm.chat(CHAT), llm.chat(CHAT)
    with pytest.raises(RequestError, match="its arguments are no JSON") as caught:
        llm.get_tool_calls_from_response(broken)
    assert caught.value.__cause__ is caught.value.__context__ is None
    with pytest.raises(RequestError, match="cannot call a tool") as caught:
        llm.get_tool_calls_from_response(none)
    assert "zeppel" not in str(caught.value)
    assert llm.get_tool_calls_from_response(none, error_on_no_tool_call=False) == []


class Visit(BaseModel):
    """A visit to a ward."""

    ward: Literal["A", "B"]
    urgent: bool


@pytest.mark.parametrize("name", NAMES)
async def test_structured_answers(provider_server: ProviderServer, make: Make, name: str) -> None:
    provider_server.always(Reply(text="", tool_calls=(ToolCall("Visit", {"ward": "A", "urgent": True}),)))
    llm, template, expected = make(name), PromptTemplate("{who}?"), Visit(ward="A", urgent=True)
    assert llm.structured_predict(Visit, template, who="you") == expected
    assert await llm.astructured_predict(Visit, template, who="you") == expected
    assert llm.as_structured_llm(Visit).chat([ChatMessage("you?")]).raw == expected
    assert provider_server.received[0].json["tools"]
    await llm.aclose()


@pytest.mark.parametrize(
    ("reply", "cause"),
    [
        (
            Reply(text="", tool_calls=(ToolCall("Visit", {"ward": "zeppelin", "urgent": 1}),)),
            r"ward \(literal_error\)",
        ),
        (Reply(text="", tool_calls=(ToolCall("Visit", '{"ward": "zepp'),), finish="length"), "was cut off"),
        (Reply(text="zeppelin"), "called no tool"),
    ],
)
def test_a_structured_answer_that_does_not_fit_is_not_in_the_error(
    provider_server: ProviderServer, make: Make, reply: Reply, cause: str
) -> None:
    provider_server.always(reply)
    with pytest.raises(RequestError, match=f"cannot make Visit: .*{cause}") as caught:
        make().structured_predict(Visit, PromptTemplate("you?"))
    assert "zepp" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_a_query_engine_on_top(provider_server: ProviderServer, make: Make) -> None:
    provider_server.always(Reply(text="In ward B."))
    documents = [Document(text="zzz zzz zz"), Document(text="Anna lies in ward B")]
    index = VectorStoreIndex.from_documents(documents, embed_model=LetterEmbedding())
    answer = index.as_query_engine(llm=make(), similarity_top_k=1).query("Where does Anna lie?")
    assert str(answer) == "In ward B."
    assert "Anna lies in ward B" in provider_server.received_text()


def test_tokens_are_counted_as_the_provider_did(provider_server: ProviderServer, make: Make) -> None:
    provider_server.always(Reply(usage=(11, 4)))
    counter = TokenCountingHandler(tokenizer=len)
    make(callback_manager=CallbackManager([counter])).chat(CHAT)
    (counted,) = counter.llm_token_counts
    assert (counted.prompt_token_count, counted.completion_token_count) == (11, 4)


def test_identifiers_are_put_back(provider_server: ProviderServer, make: Make) -> None:
    provider_server.always(lambda request: Reply(text=f"I wrote: {request.json['messages'][-1]['content']}"))
    llm, ask = make(identifiers=Pseudonymiser()), "Write to jane.doe@example.com today"
    assert llm.complete(ask).text == f"I wrote: {ask}"
    assert list(llm.stream_complete(ask))[-1].text == f"I wrote: {ask}"
    assert "jane" not in provider_server.received_text()


async def test_failures_are_our_errors(provider_server: ProviderServer, make: Make) -> None:
    llm = make()
    provider_server.always(Failure(name="context_length_exceeded"))
    with pytest.raises(ProviderContextError):
        llm.chat(CHAT)
    with pytest.raises(ProviderContextError):
        list(llm.stream_complete("please"))
    provider_server.always(Failure(name="rate_limit", retry_after="7"))
    with pytest.raises(ProviderLimitError) as caught:
        await llm.achat(CHAT)
    assert caught.value.retry_after == 7
    await llm.aclose()


async def test_cancelling_and_closing_end_the_request(provider_server: ProviderServer, make: Make) -> None:
    llm = make()
    provider_server.always(Reply(text="on and on", hold=threading.Event(), after=4))
    stream = llm.stream_chat(CHAT)
    next(stream)
    stream.close()
    assert provider_server.received[0].hung_up.wait(20)
    provider_server.always(Reply(wait=60))
    task = asyncio.create_task(llm.achat(CHAT))
    await asyncio.to_thread(provider_server.recorder.wait_for, 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(provider_server.received[1].hung_up.wait, 20)
    await llm.aclose()


def test_a_call_overrides_the_defaults(provider_server: ProviderServer, make: Make) -> None:
    llm = make(max_tokens=77, temperature=0.25)
    llm.chat(CHAT)
    llm.chat(CHAT, max_tokens=5, stop=["END"], seed=3)
    first, second = (request.json for request in provider_server.received)
    assert (first["max_completion_tokens"], first["temperature"]) == (77, 0.25)
    assert (second["max_completion_tokens"], second["stop"], second["seed"]) == (5, ["END"], 3)
    with pytest.raises(RequestError, match="'colour'"):
        llm.chat(CHAT, colour="red")


def test_what_makes_no_sense_is_refused_when_the_model_is_made(provider_server: ProviderServer) -> None:
    provider = open_provider("openai", GPT, api_key=OPENAI_KEY, base_url=provider_server.openai_url)
    with pytest.raises(PrivacyParameterError, match="guarantee='none'"):
        PrivateProviderLLM(provider)
    with pytest.raises(RequestError, match="'colour'"):
        PrivateProviderLLM(provider, guarantee="none", colour="red")
    assert provider_server.received == []


def test_no_secret_shows(provider_server: ProviderServer, make: Make) -> None:
    llm = make()
    llm.chat(CHAT)
    shown = [repr(llm), str(llm), llm.model_dump_json(), json.dumps(llm.to_dict()), str(llm.metadata)]
    assert all(OPENAI_KEY[:12] not in text for text in shown)
    assert llm.metadata.model_name == GPT
    assert llm.metadata.is_function_calling_model
