"""What every encrypted LLM of LlamaIndex does, whatever the model: inherit, and provide ``make``.

LlamaIndex publishes no suite of its own. The model may be random: nothing here depends on what it says. Annotations are
evaluated in this module, because LlamaIndex makes schemas of them.
"""

import asyncio
import pickle
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, Literal, TypeVar

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.callbacks import CallbackManager, CBEventType, TokenCountingHandler
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent, LLMCompletionEndEvent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel, Field

from fhe_llm import PrivacyReceipt
from fhe_llm.errors import RequestError
from fhe_llm_llamaindex import EncryptedLLM

T = TypeVar("T")
CHAT = [ChatMessage("Be brief.", role="system"), ChatMessage("you and the other")]
PROMPT = "you and the other"


class Visit(BaseModel):
    """A visit to a ward."""

    ward: Literal["A", "B"]
    urgent: bool
    note: str = Field(max_length=4)


class Odd(BaseModel):
    """A class with a rule that no schema tells."""

    number: Literal[1, 2]

    def model_post_init(self, _: Any) -> None:
        raise ValueError("zeppelin")


def beds(ward: Literal["A", "B"], urgent: bool) -> str:
    """How many beds are free."""
    return f"ward {ward}, urgent {urgent}"


def nurse(ward: Literal["A", "B"]) -> str:
    """Call a nurse."""
    return f"nurse to {ward}"


TOOLS = [FunctionTool.from_defaults(beds), FunctionTool.from_defaults(nurse)]


async def ticks_during(work: Awaitable[T]) -> tuple[T, int]:
    """The result, and how often another task had its turn meanwhile."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticking = asyncio.create_task(tick())
    try:
        return await work, ticks
    finally:
        ticking.cancel()


class Events(BaseCallbackHandler):
    """Remembers which events began and ended."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.seen: list[tuple[str, CBEventType]] = []

    def on_event_start(self, event_type: CBEventType, *_: Any, event_id: str = "", **__: Any) -> str:
        self.seen.append(("start", event_type))
        return event_id

    def on_event_end(self, event_type: CBEventType, *_: Any, **__: Any) -> None:
        self.seen.append(("end", event_type))

    def start_trace(self, trace_id: str | None = None) -> None: ...

    def end_trace(self, trace_id: str | None = None, trace_map: Any = None) -> None: ...


class LLMConformance:
    """``call_tokens`` is enough for a tool call or a small JSON object."""

    call_tokens = 120

    @pytest.fixture(scope="class")
    @classmethod
    def make(cls) -> Any:
        """A function from constructor arguments to a model that the test need not close."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def llm(cls, make: Any) -> EncryptedLLM:
        """For sync calls, which may share one."""
        made: EncryptedLLM = make()
        return made

    @pytest.fixture
    async def allm(self, make: Any) -> AsyncIterator[EncryptedLLM]:
        """For async calls: its connections belong to the loop of one test."""
        made: EncryptedLLM = make()
        yield made
        await made.aclose()

    def test_metadata(self, llm: EncryptedLLM) -> None:
        metadata = llm.metadata
        assert metadata.is_chat_model
        assert metadata.is_function_calling_model
        assert metadata.model_name == llm.model
        assert 0 < metadata.num_output <= metadata.context_window // 4

    def test_tokens_are_counted_as_the_model_counts(self, llm: EncryptedLLM) -> None:
        response = llm.chat(CHAT)
        assert llm.prompt_tokens(CHAT) == response.raw["usage"]["prompt_tokens"]
        assert len(llm.tokenizer(PROMPT)) == llm.complete(PROMPT, formatted=True).raw["prompt_tokens"]

    def test_a_chat_has_an_answer_and_a_receipt(self, llm: EncryptedLLM) -> None:
        response = llm.chat(CHAT)
        assert response.message.role == "assistant"
        assert response.message.content
        receipt = response.additional_kwargs["receipt"]
        assert isinstance(receipt, PrivacyReceipt)
        assert (receipt.guarantee, receipt.prompt_tokens_seen) != ("", 0)
        assert response.raw["receipt"]["rounds"] == receipt.rounds > 0
        assert response.raw["usage"]["completion_tokens"] == response.additional_kwargs["completion_tokens"]
        assert '"receipt"' in response.model_dump_json()

    def test_a_stream_is_the_same_answer(self, llm: EncryptedLLM) -> None:
        whole = llm.chat(CHAT).message.content
        responses = list(llm.stream_chat(CHAT))
        assert "".join(r.delta or "" for r in responses) == responses[-1].message.content == whole
        assert len(responses) > 1
        so_far = ""
        for response in responses:
            so_far += response.delta or ""
            assert response.message.content == so_far
        assert [r.raw is None for r in responses] == [True] * (len(responses) - 1) + [False]
        assert responses[-1].additional_kwargs["receipt"].rounds > 0

    async def test_async_twins_say_the_same(self, allm: EncryptedLLM) -> None:
        whole = (await allm.achat(CHAT)).message.content
        streamed = [r async for r in await allm.astream_chat(CHAT)]
        assert "".join(r.delta or "" for r in streamed) == streamed[-1].message.content == whole

    def test_completions(self, llm: EncryptedLLM) -> None:
        asked = llm.complete(PROMPT)
        assert asked.text == llm.chat([ChatMessage(PROMPT)]).message.content
        streamed = list(llm.stream_complete(PROMPT))
        assert "".join(r.delta or "" for r in streamed) == streamed[-1].text == asked.text
        assert asked.additional_kwargs["receipt"].rounds > 0
        continued = llm.complete(PROMPT, formatted=True)
        assert continued.raw["prompt_tokens"] < asked.raw["prompt_tokens"]
        assert list(llm.stream_complete(PROMPT, formatted=True))[-1].text == continued.text

    async def test_async_completions(self, allm: EncryptedLLM) -> None:
        asked, continued = await allm.acomplete(PROMPT), await allm.acomplete(PROMPT, formatted=True)
        streamed = [r async for r in await allm.astream_complete(PROMPT)]
        assert streamed[-1].text == asked.text
        assert continued.raw["prompt_tokens"] < asked.raw["prompt_tokens"]

    def test_templates(self, llm: EncryptedLLM) -> None:
        template = PromptTemplate("you and {who}")
        text = llm.predict(template, who="the other")
        assert text == llm.chat([ChatMessage(PROMPT)]).message.content
        assert "".join(llm.stream(template, who="the other")) == text

    async def test_async_templates(self, allm: EncryptedLLM) -> None:
        template = PromptTemplate("you and {who}")
        text = await allm.apredict(template, who="the other")
        assert "".join([t async for t in await allm.astream(template, who="the other")]) == text

    def test_the_system_prompt_of_a_model_is_said(self, make: Any) -> None:
        events = Events()
        llm = make(system_prompt="Be brief.", callback_manager=CallbackManager([events]))
        assert llm.predict(PromptTemplate(PROMPT)) == llm.chat(CHAT).message.content

    def test_a_call_overrides_the_defaults(self, llm: EncryptedLLM) -> None:
        assert llm.chat(CHAT, max_tokens=2).raw["completion_tokens"] <= 2
        text = llm.chat(CHAT).message.content or ""
        stopped = llm.chat(CHAT, stop=[text[1:3]])
        assert stopped.message.content == text[: text.index(text[1:3])]
        assert stopped.additional_kwargs["finish_reason"] == "stop"
        assert llm.chat(CHAT, pad_to=64).additional_kwargs["receipt"].pad_to == 64

    def test_a_seed_repeats_an_answer(self, make: Any) -> None:
        one, two = make(temperature=1.2, seed=4), make(temperature=1.2, seed=4, top_p=0.9)
        assert one.chat(CHAT).raw["token_ids"] == one.chat(CHAT).raw["token_ids"]
        two.seed = 5
        assert two.chat(CHAT).raw["token_ids"] == two.chat(CHAT, seed=5).raw["token_ids"]

    async def test_nothing_blocks_the_loop(self, allm: EncryptedLLM) -> None:
        """A blocking twin would let the other task run once or twice; each of ours gives way in every round."""

        async def last(stream: Any) -> Any:
            return [response async for response in await stream][-1]

        calls = {
            "achat": lambda: allm.achat(CHAT),
            "astream_chat": lambda: last(allm.astream_chat(CHAT)),
            "acomplete": lambda: allm.acomplete(PROMPT),
            "astream_complete": lambda: last(allm.astream_complete(PROMPT)),
            "apredict": lambda: allm.apredict(PromptTemplate(PROMPT)),
            "astructured_predict": lambda: allm.astructured_predict(
                Visit, PromptTemplate(PROMPT), {"max_tokens": self.call_tokens}
            ),
            "apredict_and_call": lambda: allm.apredict_and_call(
                TOOLS, PROMPT, tool_required=True, max_tokens=self.call_tokens
            ),
        }
        for name, call in calls.items():
            _, ticks = await ticks_during(call())
            assert ticks >= 8, name

    async def test_sync_calls_work_inside_a_running_loop(self, llm: EncryptedLLM) -> None:
        assert llm.chat(CHAT).message.content == list(llm.stream_chat(CHAT))[-1].message.content
        made = llm.structured_predict(Visit, PromptTemplate(PROMPT), {"max_tokens": self.call_tokens})
        assert isinstance(made, Visit)

    def test_threads_share_a_model(self, llm: EncryptedLLM) -> None:
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda _: llm.chat(CHAT).message.content, range(3)))
        assert len(set(answers)) == 1

    async def test_cancelling_stops_the_work(self, allm: EncryptedLLM) -> None:
        whole = (await allm.achat(CHAT)).message.content
        for turns in (1, 30):
            task = asyncio.create_task(allm.achat(CHAT, max_tokens=200))
            for _ in range(turns):
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with aclosing(await allm.astream_chat(CHAT, max_tokens=200)) as stream:
            await anext(stream)
        assert (await allm.achat(CHAT)).message.content == whole

    def test_closing_a_stream_stops_the_work(self, llm: EncryptedLLM) -> None:
        stream = llm.stream_chat(CHAT, max_tokens=200)
        next(stream)
        stream.close()
        assert llm.chat(CHAT).message.content

    def test_tools_are_called(self, llm: EncryptedLLM) -> None:
        response = llm.chat_with_tools(TOOLS, PROMPT, tool_required=True, max_tokens=self.call_tokens)
        (call,) = llm.get_tool_calls_from_response(response)
        assert call.tool_name in ("beds", "nurse")
        assert call.tool_kwargs["ward"] in ("A", "B")
        streamed = list(
            llm.stream_chat_with_tools(TOOLS, PROMPT, tool_required=True, max_tokens=self.call_tokens)
        )
        (again,) = llm.get_tool_calls_from_response(streamed[-1])
        assert (again.tool_name, again.tool_kwargs) == (call.tool_name, call.tool_kwargs)
        history = [
            ChatMessage(PROMPT),
            response.message,
            ChatMessage("3", role="tool", additional_kwargs={"tool_call_id": call.tool_id}),
        ]
        followed = llm.chat_with_tools(TOOLS, chat_history=history)
        assert followed.raw["prompt_tokens"] > response.raw["prompt_tokens"]

    async def test_async_tools_are_called(self, allm: EncryptedLLM) -> None:
        options = {"tool_required": True, "max_tokens": self.call_tokens}
        response = await allm.achat_with_tools(TOOLS, PROMPT, **options)
        streamed = [r async for r in await allm.astream_chat_with_tools(TOOLS, PROMPT, **options)]
        calls = [allm.get_tool_calls_from_response(r)[0].tool_kwargs for r in (response, streamed[-1])]
        assert calls[0] == calls[1]

    def test_a_named_tool_is_called(self, llm: EncryptedLLM) -> None:
        result = llm.predict_and_call(TOOLS, PROMPT, tool_choice="nurse", max_tokens=self.call_tokens)
        assert result.sources[0].tool_name == "nurse"
        assert str(result) in ("nurse to A", "nurse to B")

    async def test_an_async_tool_call_is_run(self, allm: EncryptedLLM) -> None:
        result = await allm.apredict_and_call(
            TOOLS, PROMPT, tool_choice={"function": {"name": "beds"}}, max_tokens=self.call_tokens
        )
        assert str(result).startswith("ward ")

    # LlamaIndex's workflows look at every attribute of an agent, old names of pydantic's included
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    async def test_an_agent_runs(self, allm: EncryptedLLM) -> None:
        allm.max_tokens = self.call_tokens
        agent = FunctionAgent(tools=TOOLS, llm=allm, initial_tool_choice="beds")
        result = await agent.run(user_msg=PROMPT, max_iterations=2, early_stopping_method="generate")
        assert result.tool_calls[0].tool_name == "beds"
        assert result.tool_calls[0].tool_output.content.startswith("ward ")
        assert result.response.role == "assistant"

    def test_a_missing_tool_call_is_an_error_without_the_answer(self, llm: EncryptedLLM) -> None:
        response = llm.chat(CHAT, max_tokens=4)
        assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
        with pytest.raises(RequestError, match="cannot call a tool") as caught:
            llm.get_tool_calls_from_response(response)
        assert (response.message.content or "?") not in str(caught.value)

    def test_a_tool_call_that_is_cut_off_says_so(self, llm: EncryptedLLM) -> None:
        with pytest.raises(RequestError, match=r"cut off after 5 tokens. Raise max_tokens"):
            llm.predict_and_call(TOOLS, PROMPT, tool_required=True, max_tokens=5)

    def test_structured_answers(self, llm: EncryptedLLM) -> None:
        template, options = PromptTemplate("{who} and the other"), {"max_tokens": self.call_tokens}
        made = llm.structured_predict(Visit, template, options, who="you")
        assert isinstance(made, Visit)
        partial = list(llm.stream_structured_predict(Visit, template, options, who="you"))
        assert partial[-1] == made
        assert len(partial) > 1
        sllm = llm.as_structured_llm(Visit)
        response = sllm.chat([ChatMessage("you and the other")], **options)
        assert response.raw == made
        assert Visit.model_validate_json(response.message.content or "") == made

    async def test_async_structured_answers(self, allm: EncryptedLLM) -> None:
        template, options = PromptTemplate("{who} and the other"), {"max_tokens": self.call_tokens}
        made = await allm.astructured_predict(Visit, template, options, who="you")
        stream = await allm.astream_structured_predict(Visit, template, options, who="you")
        assert [partial async for partial in stream][-1] == made
        response = await allm.as_structured_llm(Visit).achat([ChatMessage("you and the other")], **options)
        assert response.raw == made

    def test_structured_answers_through_function_calls(self, make: Any) -> None:
        llm = make(pydantic_program_mode=PydanticProgramMode.FUNCTION, max_tokens=self.call_tokens)
        assert isinstance(llm.structured_predict(Visit, PromptTemplate(PROMPT)), Visit)

    def test_a_structured_answer_that_is_cut_off_says_so(self, llm: EncryptedLLM) -> None:
        with pytest.raises(RequestError, match="cannot make Visit: its JSON was cut off after 3 tokens"):
            llm.structured_predict(Visit, PromptTemplate(PROMPT), {"max_tokens": 3})

    def test_a_class_with_rules_of_its_own_refuses_without_the_answer(self, llm: EncryptedLLM) -> None:
        with pytest.raises(RequestError, match=r"not the class: the whole \(value_error\)") as caught:
            llm.structured_predict(Odd, PromptTemplate(PROMPT), {"max_tokens": self.call_tokens})
        assert "zeppelin" not in str(caught.value)
        assert caught.value.__cause__ is None

    def test_callbacks_fire(self, make: Any) -> None:
        events, counter = Events(), TokenCountingHandler(tokenizer=len)
        llm = make(callback_manager=CallbackManager([events, counter]))
        response = llm.chat(CHAT)
        list(llm.stream_chat(CHAT))
        llm.complete(PROMPT)
        assert events.seen == [("start", CBEventType.LLM), ("end", CBEventType.LLM)] * 3
        assert counter.llm_token_counts[0].prompt_token_count == response.raw["prompt_tokens"]

    async def test_async_callbacks_and_instrumentation_fire(self, allm: EncryptedLLM) -> None:
        events, seen = Events(), []

        class Watch(BaseEventHandler):
            def handle(self, event: Any, **_: Any) -> None:
                seen.append(type(event))

        root, watch = get_dispatcher(), Watch()
        allm.callback_manager = CallbackManager([events])
        root.add_event_handler(watch)
        try:
            await allm.achat(CHAT)
            async for _ in await allm.astream_complete(PROMPT):
                pass
        finally:
            root.event_handlers.remove(watch)
        assert events.seen == [("start", CBEventType.LLM), ("end", CBEventType.LLM)] * 2
        assert LLMChatEndEvent in seen
        assert LLMCompletionEndEvent in seen

    def test_no_secret_shows(self, make: Any, caplog: pytest.LogCaptureFixture) -> None:
        llm: EncryptedLLM = make(api_key="hush-hush")
        llm.chat(CHAT, max_tokens=1)
        key_id = (llm._client.key_ring.key_id or b"").hex()
        shown = [repr(llm), str(llm), llm.model_dump_json(), str(llm.to_dict()), str(llm.to_payload())]
        shown += [repr(llm.as_structured_llm(Visit)), pickle.dumps(llm).decode("latin1")]
        for text in shown:
            assert "hush" not in text
            assert "KeyRing" not in text
            assert key_id not in text

    def test_a_copy_has_the_settings(self, make: Any) -> None:
        llm: EncryptedLLM = make(temperature=0.5, stop=["x"], seed=3)
        for copy in (EncryptedLLM.from_dict(llm.to_dict()), pickle.loads(pickle.dumps(llm))):
            assert copy.to_dict() == llm.to_dict()
            copy.close()
