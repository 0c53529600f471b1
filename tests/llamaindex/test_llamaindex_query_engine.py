"""Questions and conversations about documents, against a proxy whose model has a context of 256."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.callbacks import CallbackManager, CBEventType
from llama_index.core.chat_engine import CondenseQuestionChatEngine
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import TextNode
from llama_index.core.settings import Settings
from llamaindex_kit import LetterEmbedding, MakeLLM
from llm_conformance import Events, ticks_during

from fhe_llm.errors import ContextOverflowError, RequestError
from fhe_llm_llamaindex import EncryptedLLM, encrypted_chat_engine, encrypted_query_engine, use_encrypted

SHORT = "zoo zebra buzz fizz"
TEXTS = (SHORT, "A quiet quay. " * 9, "Nine hundred words about nothing. " * 20)


@pytest.fixture(scope="module")
def index() -> VectorStoreIndex:
    nodes = [TextNode(text=text, id_=f"node{n}") for n, text in enumerate(TEXTS)]
    return VectorStoreIndex(nodes, embed_model=LetterEmbedding())


@pytest.fixture
def llm(make_narrow: MakeLLM) -> EncryptedLLM:
    return make_narrow()


def rounds(metadata: dict[str, Any] | None) -> int:
    assert metadata is not None
    return int(metadata["receipt"].rounds)


def test_one_call_answers_a_question(index: VectorStoreIndex, make_narrow: MakeLLM) -> None:
    events = Events()
    engine = encrypted_query_engine(index, make_narrow(callback_manager=CallbackManager([events])))
    response = engine.query("zoo zebra")
    assert events.seen.count(("start", CBEventType.LLM)) == events.seen.count(("end", CBEventType.LLM)) == 1
    assert str(response)
    assert rounds(response.metadata) > 0
    assert response.source_nodes[0].node.text == SHORT
    assert response.metadata["node0"] == {}
    assert response.metadata["context"]["passages"][0] == "node0"


def test_a_stream_is_the_same_answer(index: VectorStoreIndex, llm: EncryptedLLM) -> None:
    whole = encrypted_query_engine(index, llm).query("zoo zebra")
    response = encrypted_query_engine(index, llm, streaming=True).query("zoo zebra")
    assert isinstance(response, StreamingResponse)
    assert "receipt" not in (response.metadata or {})
    pieces = list(response.response_gen)
    assert len(pieces) > 1
    assert "".join(pieces) == str(whole)
    assert rounds(response.metadata) > 0
    assert [n.node_id for n in response.source_nodes] == [n.node_id for n in whole.source_nodes]


async def test_async_twins_say_the_same_and_do_not_block(
    index: VectorStoreIndex, make_narrow: MakeLLM
) -> None:
    llm = make_narrow()
    whole, ticks = await ticks_during(encrypted_query_engine(index, llm).aquery("zoo zebra"))
    assert ticks >= 5
    response = await encrypted_query_engine(index, llm, streaming=True).aquery("zoo zebra")
    assert isinstance(response, AsyncStreamingResponse)
    assert "".join([piece async for piece in response.response_gen]) == str(whole)
    assert rounds(response.metadata) > 0
    await llm.aclose()


async def test_a_cancelled_question_stops(index: VectorStoreIndex, make_narrow: MakeLLM) -> None:
    llm = make_narrow()
    engine = encrypted_query_engine(index, llm, max_tokens=100)
    task = asyncio.create_task(engine.aquery("zoo zebra"))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert str(await encrypted_query_engine(index, llm).aquery("zoo zebra"))
    await llm.aclose()


def test_what_does_not_fit_is_cut_and_said(index: VectorStoreIndex, llm: EncryptedLLM) -> None:
    response = encrypted_query_engine(index, llm, similarity_top_k=3, max_tokens=2).query("quiet quay")
    context = response.metadata["context"]
    assert context["window"] == 256
    assert context["prompt_tokens"] + context["reserved_for_answer"] <= 256
    assert context["prompt_tokens"] == response.metadata["receipt"].prompt_tokens_seen + (
        response.metadata["receipt"].prompt_tokens_cached
    )
    assert len(context["passages"]) + len(context["dropped"]) == 3
    assert [node.node_id for node in response.source_nodes] == context["passages"]
    assert "of 3 passages were left out" in context["note"]
    assert "was cut to" in context["note"]


def test_the_cost_of_context_is_bounded(index: VectorStoreIndex, make_roomy: MakeLLM) -> None:
    llm = make_roomy()
    engine = encrypted_query_engine(index, llm, similarity_top_k=3, context_tokens=60, max_tokens=1)
    response = engine.query("quiet quay")
    assert llm.metadata.context_window == 2048
    assert "was cut to" in response.metadata["context"]["note"]
    everything = encrypted_query_engine(
        index, llm, similarity_top_k=3, context_tokens=2000, template="{context_str} {query_str}"
    )
    assert everything._fitted("q", everything._retriever.retrieve("q")).note == ""


def test_a_question_that_does_not_fit_names_both_numbers(index: VectorStoreIndex, llm: EncryptedLLM) -> None:
    with pytest.raises(ContextOverflowError, match=r"4\d\d tokens: the context window holds 256"):
        encrypted_query_engine(index, llm).query("zebra " * 60)


def test_templates_and_postprocessors_are_the_users(index: VectorStoreIndex, llm: EncryptedLLM) -> None:
    engine = encrypted_query_engine(index, llm, template="{query_str}|{context_str}", max_tokens=1)
    assert engine.get_prompts()["text_qa_template"].template == "{query_str}|{context_str}"
    fitted = engine._fitted("q", index.as_retriever(similarity_top_k=1).retrieve("zoo zebra"))
    assert fitted.messages[0].content == f"q|{SHORT}"
    engine.update_prompts({"text_qa_template": PromptTemplate("{query_str}")})
    assert engine._fitted("q", []).messages[0].content == "q"
    strict = encrypted_query_engine(
        index, llm, node_postprocessors=[SimilarityPostprocessor(similarity_cutoff=2.0)]
    )
    assert str(strict.query("zoo")) == "Empty Response"


def test_a_retriever_will_do(index: VectorStoreIndex, llm: EncryptedLLM) -> None:
    response = encrypted_query_engine(index.as_retriever(similarity_top_k=1), llm).query("zoo zebra")
    assert [node.node_id for node in response.source_nodes] == ["node0"]


def test_another_model_is_refused(index: VectorStoreIndex) -> None:
    with pytest.raises(RequestError, match="the model is MockLLM"):
        encrypted_query_engine(index, MockLLM())  # type: ignore[arg-type]
    Settings._llm = None
    with pytest.raises(RequestError, match="the model is none"):
        encrypted_query_engine(index)


def test_unknown_options_are_refused_before_anything_is_retrieved(
    index: VectorStoreIndex, llm: EncryptedLLM
) -> None:
    with pytest.raises(RequestError, match="'response_mode'"):
        encrypted_query_engine(index, llm, response_mode="compact")  # type: ignore[call-arg]
    with pytest.raises(RequestError, match="'logit_bias'"):
        encrypted_chat_engine(index, llm, logit_bias={})  # type: ignore[call-arg]


class TestSettings:
    @pytest.fixture
    def settings(self, llm: EncryptedLLM) -> Iterator[None]:
        with use_encrypted(llm, LetterEmbedding()):
            yield

    def test_everything_that_decides_where_text_goes_is_set(self, llm: EncryptedLLM, settings: None) -> None:
        assert Settings.llm is llm
        assert isinstance(Settings.embed_model, LetterEmbedding)
        assert Settings.tokenizer("zebra") == llm.tokenizer("zebra")
        assert (Settings.context_window, Settings.num_output) == (256, 5)
        assert Settings.chunk_size == 64

    def test_settings_come_back(self, llm: EncryptedLLM) -> None:
        import llama_index.core

        before, tokenizer = dict(vars(Settings)), llama_index.core.global_tokenizer
        with use_encrypted(llm, LetterEmbedding()) as changed:
            assert vars(Settings) != before
        changed.restore()
        assert vars(Settings) == before
        assert llama_index.core.global_tokenizer is tokenizer

    @pytest.mark.parametrize("embedding", [None, "default"])
    def test_an_open_embedding_model_is_refused(self, llm: EncryptedLLM, embedding: Any) -> None:
        before = dict(vars(Settings))
        with pytest.raises(RequestError, match="to OpenAI"):
            use_encrypted(llm, embedding)
        assert vars(Settings) == before

    def test_another_model_is_refused(self) -> None:
        with pytest.raises(RequestError, match="MockLLM as the model: it is not encrypted"):
            use_encrypted(MockLLM(), LetterEmbedding())  # type: ignore[arg-type]

    def test_an_index_needs_nothing_more(self, llm: EncryptedLLM, settings: None) -> None:
        from llama_index.core import Document

        index = VectorStoreIndex.from_documents([Document(text=text) for text in TEXTS])
        response = encrypted_query_engine(index).query("zoo zebra")
        assert response.source_nodes[0].node.text == SHORT
        assert all(len(llm.tokenizer(node.node.text)) <= 64 for node in response.source_nodes)

    def test_the_standard_engine_has_no_room_in_a_small_window(
        self, index: VectorStoreIndex, settings: None
    ) -> None:
        """Why there is one of our own: its template alone is longer than the window."""
        with pytest.raises(ValueError, match="not non-negative"):
            index.as_query_engine().query("zoo zebra")

    def test_the_standard_engine_works_in_a_larger_one(
        self, index: VectorStoreIndex, make_roomy: MakeLLM
    ) -> None:
        with use_encrypted(make_roomy(), LetterEmbedding()):
            assert str(index.as_query_engine().query("zoo zebra"))

    def test_callbacks_of_the_settings_see_our_engine(self, index: VectorStoreIndex, settings: None) -> None:
        events = Events()
        Settings.callback_manager = CallbackManager([events])
        encrypted_query_engine(index.as_retriever()).query("zoo zebra")
        started = [kind for what, kind in events.seen if what == "start"]
        assert [kind for kind in started if kind not in (CBEventType.RETRIEVE, CBEventType.EMBEDDING)] == [
            CBEventType.QUERY,
            CBEventType.SYNTHESIZE,
            CBEventType.LLM,
        ]


class TestChat:
    def test_the_standard_engine_has_no_room_in_a_small_window(
        self, index: VectorStoreIndex, llm: EncryptedLLM
    ) -> None:
        memory = ChatMemoryBuffer.from_defaults(token_limit=100, tokenizer_fn=llm.tokenizer)
        with use_encrypted(llm, LetterEmbedding()), pytest.raises(ValueError, match="not non-negative"):
            index.as_chat_engine(memory=memory).chat("zoo zebra")

    def test_a_standard_engine_works_on_ours(self, index: VectorStoreIndex, make_roomy: MakeLLM) -> None:
        llm = make_roomy()
        memory = ChatMemoryBuffer.from_defaults(token_limit=500, tokenizer_fn=llm.tokenizer)
        engine = CondenseQuestionChatEngine.from_defaults(
            encrypted_query_engine(index, llm), llm=llm, memory=memory
        )
        assert str(engine.chat("zoo zebra"))
        assert len(engine.chat_history) == 2

    def test_a_turn_is_one_call(self, index: VectorStoreIndex, make_narrow: MakeLLM) -> None:
        events = Events()
        llm = make_narrow(callback_manager=CallbackManager([events]))
        engine = encrypted_chat_engine(index, llm)
        first, second = engine.chat("zoo zebra"), engine.chat("and?")
        assert events.seen.count(("start", CBEventType.LLM)) == 2
        assert first.source_nodes[0].node.text == second.source_nodes[0].node.text == SHORT
        assert rounds(second.metadata) > 0
        assert [m.content for m in engine.chat_history] == ["zoo zebra", str(first), "and?", str(second)]
        engine.reset()
        assert engine.chat_history == []

    def test_a_conversation_outgrows_the_window_quietly(
        self, index: VectorStoreIndex, llm: EncryptedLLM
    ) -> None:
        engine = encrypted_chat_engine(index, llm, similarity_top_k=1, max_tokens=2)
        notes = [engine.chat(f"zoo zebra number {n}").metadata["context"]["note"] for n in range(6)]
        assert notes[0] == ""
        assert "oldest messages were left out" in notes[-1]
        assert len(engine.chat_history) == 12

    def test_a_streamed_turn(self, index: VectorStoreIndex, llm: EncryptedLLM) -> None:
        whole = encrypted_chat_engine(index, llm).chat("zoo zebra")
        engine = encrypted_chat_engine(index, llm)
        turn = engine.stream_chat("zoo zebra")
        assert "".join(turn.response_gen) == str(whole)
        assert rounds(turn.metadata) > 0
        assert [m.content for m in engine.chat_history] == ["zoo zebra", str(whole).strip()]

    async def test_async_turns(self, index: VectorStoreIndex, make_narrow: MakeLLM) -> None:
        llm = make_narrow()
        whole, ticks = await ticks_during(encrypted_chat_engine(index, llm).achat("zoo zebra"))
        assert ticks >= 5
        engine = encrypted_chat_engine(index, llm)
        turn = await engine.astream_chat("zoo zebra")
        assert "".join([piece async for piece in turn.async_response_gen()]) == str(whole)
        assert rounds(turn.metadata) > 0
        assert [m.content for m in engine.chat_history] == ["zoo zebra", str(whole).strip()]
        await llm.aclose()
