"""Questions about documents: retrieve, fit what was found into the window, ask once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Unpack, cast

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, ChatResponseAsyncGen, ChatResponseGen
from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.indices.base import BaseIndex
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.prompts.mixin import PromptDictType, PromptMixinType
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.settings import Settings
from llama_index.core.types import TokenAsyncGen, TokenGen

from fhe_llm import AskOptions, check_options
from fhe_llm.errors import RequestError
from fhe_llm_llamaindex.fitting import Fitted, fit
from fhe_llm_llamaindex.llms import EncryptedLLM

TEMPLATE: Final = PromptTemplate(
    "Text: {context_str}\n\nQuestion: {query_str}\nAnswer with words from the text."
)
"""Few words, because each is computed on ciphertexts; the documents come first, so that the prefix cache has them."""
EMPTY: Final = "Empty Response"
"""What LlamaIndex says where nothing was retrieved; the model is not asked."""
CONTEXT_TOKENS: Final = 512


def encrypted_query_engine(
    index: BaseIndex[Any] | BaseRetriever,
    llm: EncryptedLLM | None = None,
    *,
    similarity_top_k: int = 2,
    streaming: bool = False,
    template: BasePromptTemplate | str = TEMPLATE,
    context_tokens: int = CONTEXT_TOKENS,
    node_postprocessors: Sequence[BaseNodePostprocessor] = (),
    **options: Unpack[AskOptions],
) -> EncryptedQueryEngine:
    """A query engine that asks the model once per question. ``llm`` None is the one of :func:`use_encrypted`.

    The text of up to ``similarity_top_k`` nodes goes into ``template`` (``context_str``, ``query_str``), in
    ``context_tokens`` at most, since each of them travels encrypted, and in no more than the model's window holds;
    ``response.metadata`` says under "context" what was left out, and has the "receipt". ``options`` are those of the
    model's calls. A retriever is used as it is. Raises :class:`RequestError`.
    """
    return EncryptedQueryEngine(
        retriever_of(index, similarity_top_k),
        encrypted_llm(llm),
        template=PromptTemplate(template) if isinstance(template, str) else template,
        streaming=streaming,
        context_tokens=context_tokens,
        node_postprocessors=node_postprocessors,
        options=options,
    )


class EncryptedQueryEngine(BaseQueryEngine):
    """See :func:`encrypted_query_engine`, which builds it."""

    def __init__(
        self,
        retriever: BaseRetriever,
        llm: EncryptedLLM,
        *,
        template: BasePromptTemplate,
        streaming: bool,
        context_tokens: int,
        node_postprocessors: Sequence[BaseNodePostprocessor],
        options: AskOptions,
    ) -> None:
        check_options(options)
        super().__init__(llm.callback_manager)
        self._retriever, self._llm, self._template = retriever, llm, template
        self._streaming, self._context_tokens = streaming, context_tokens
        self._postprocessors, self._options = list(node_postprocessors), dict(options)

    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """The passages for a question, best first."""
        nodes = self._retriever.retrieve(query_bundle)
        for postprocessor in self._postprocessors:
            nodes = postprocessor.postprocess_nodes(nodes, query_bundle=query_bundle)
        return nodes

    async def aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """:meth:`retrieve` on an event loop."""
        nodes = await self._retriever.aretrieve(query_bundle)
        for postprocessor in self._postprocessors:
            nodes = await postprocessor.apostprocess_nodes(nodes, query_bundle=query_bundle)
        return nodes

    def synthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """Ask about given passages."""
        if not nodes:
            return StreamingResponse(iter_once(EMPTY)) if self._streaming else Response(EMPTY)
        self._llm.connect()
        fitted = self._fitted(query_bundle.query_str, nodes)
        sources, metadata = [*fitted.passages, *(additional_source_nodes or ())], fitted.metadata()
        with self.callback_manager.event(CBEventType.SYNTHESIZE, _payload(query_bundle)) as event:
            response: RESPONSE_TYPE
            if self._streaming:
                stream = self._llm.stream_chat(fitted.messages, **self._options)
                response = StreamingResponse(text_of(stream, metadata), sources, metadata)
            else:
                answer = self._llm.chat(fitted.messages, **self._options)
                response = Response(answer.message.content, sources, account(metadata, answer))
            event.on_end(payload={EventPayload.RESPONSE: response})
        return response

    async def asynthesize(
        self,
        query_bundle: QueryBundle,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """:meth:`synthesize` on an event loop; cancelling it stops the work."""
        if not nodes:
            return AsyncStreamingResponse(aiter_once(EMPTY)) if self._streaming else Response(EMPTY)
        await self._llm.aconnect()
        fitted = self._fitted(query_bundle.query_str, nodes)
        sources, metadata = [*fitted.passages, *(additional_source_nodes or ())], fitted.metadata()
        with self.callback_manager.event(CBEventType.SYNTHESIZE, _payload(query_bundle)) as event:
            response: RESPONSE_TYPE
            if self._streaming:
                stream = await self._llm.astream_chat(fitted.messages, **self._options)
                response = AsyncStreamingResponse(atext_of(stream, metadata), sources, metadata)
            else:
                answer = await self._llm.achat(fitted.messages, **self._options)
                response = Response(answer.message.content, sources, account(metadata, answer))
            event.on_end(payload={EventPayload.RESPONSE: response})
        return response

    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        with self.callback_manager.event(CBEventType.QUERY, _payload(query_bundle)) as event:
            response = self.synthesize(query_bundle, self.retrieve(query_bundle))
            event.on_end(payload={EventPayload.RESPONSE: response})
        return response

    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        with self.callback_manager.event(CBEventType.QUERY, _payload(query_bundle)) as event:
            response = await self.asynthesize(query_bundle, await self.aretrieve(query_bundle))
            event.on_end(payload={EventPayload.RESPONSE: response})
        return response

    def _fitted(self, question: str, nodes: Sequence[NodeWithScore]) -> Fitted:
        def framing(context: str, _: Sequence[ChatMessage]) -> list[ChatMessage]:
            return self._llm._extend_messages(
                self._template.format_messages(llm=self._llm, context_str=context, query_str=question)
            )

        reserved = reserved_tokens(self._llm, self._options)
        return fit(self._llm, framing, nodes, context_tokens=self._context_tokens, reserved=reserved)

    def _get_prompt_modules(self) -> PromptMixinType:
        return {}

    def _get_prompts(self) -> dict[str, Any]:
        return {"text_qa_template": self._template}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        self._template = prompts.get("text_qa_template", self._template)


def encrypted_llm(llm: object) -> EncryptedLLM:
    """``llm``, or the one in ``Settings``. Raises :class:`RequestError` for any other model, which would get text."""
    found = Settings._llm if llm is None else llm
    if isinstance(found, EncryptedLLM):
        return cast(EncryptedLLM, Settings.llm) if llm is None else found  # the property brings its callbacks
    kind = "none" if found is None else type(found).__name__
    raise RequestError(
        f"cannot ask in secret: the model is {kind}. Pass llm=EncryptedLLM(...), or call use_encrypted first."
    )


def retriever_of(index: BaseIndex[Any] | BaseRetriever, similarity_top_k: int) -> BaseRetriever:
    """A retriever as it is, an index by its own."""
    return (
        index if isinstance(index, BaseRetriever) else index.as_retriever(similarity_top_k=similarity_top_k)
    )


def reserved_tokens(llm: EncryptedLLM, options: dict[str, Any]) -> int:
    """Tokens kept for the answer, never more than a quarter of the window."""
    metadata = llm.metadata
    return min(int(options.get("max_tokens", metadata.num_output)), metadata.context_window // 4)


def account(metadata: dict[str, Any], answer: ChatResponse) -> dict[str, Any]:
    """``metadata`` with the receipt of a finished answer."""
    for name in ("receipt", "finish_reason", "completion_tokens"):
        if name in answer.additional_kwargs:
            metadata[name] = answer.additional_kwargs[name]
    return metadata


def text_of(stream: ChatResponseGen, metadata: dict[str, Any]) -> TokenGen:
    """The text of a streamed answer; its receipt is in ``metadata`` once it has ended."""
    for response in stream:
        account(metadata, response)
        yield response.delta or ""


async def atext_of(stream: ChatResponseAsyncGen, metadata: dict[str, Any]) -> TokenAsyncGen:
    """:func:`text_of` on an event loop."""
    async for response in stream:
        account(metadata, response)
        yield response.delta or ""


def iter_once(text: str) -> TokenGen:
    """A stream of one piece."""
    yield text


async def aiter_once(text: str) -> TokenAsyncGen:
    """A stream of one piece on an event loop."""
    yield text


def _payload(query_bundle: QueryBundle) -> dict[str, Any]:
    return {EventPayload.QUERY_STR: query_bundle.query_str}
