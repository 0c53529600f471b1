"""Conversations about documents, with one call of the model per turn.

LlamaIndex's default chat engine asks twice per turn, once to rewrite the question, and its templates alone are longer
than a window of 256 tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    MessageRole,
)
from llama_index.core.callbacks import trace_method
from llama_index.core.chat_engine.types import AgentChatResponse, BaseChatEngine, StreamingAgentChatResponse
from llama_index.core.indices.base import BaseIndex
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.schema import NodeWithScore
from llama_index.core.types import Thread

from fhe_llm import AskOptions, check_options
from fhe_llm_llamaindex.fitting import Fitted, fit
from fhe_llm_llamaindex.llms import EncryptedLLM
from fhe_llm_llamaindex.query_engine import (
    CONTEXT_TOKENS,
    TEMPLATE,
    account,
    encrypted_llm,
    reserved_tokens,
    retriever_of,
)


def encrypted_chat_engine(
    index: BaseIndex[Any] | BaseRetriever,
    llm: EncryptedLLM | None = None,
    *,
    similarity_top_k: int = 2,
    template: BasePromptTemplate | str = TEMPLATE,
    context_tokens: int = CONTEXT_TOKENS,
    chat_history: Sequence[ChatMessage] = (),
    **options: Unpack[AskOptions],
) -> EncryptedChatEngine:
    """A chat engine with the arguments of :func:`encrypted_query_engine`; what does not fit of the conversation is
    left out, oldest first. Raises :class:`RequestError`."""
    return EncryptedChatEngine(
        retriever_of(index, similarity_top_k),
        encrypted_llm(llm),
        template=PromptTemplate(template) if isinstance(template, str) else template,
        context_tokens=context_tokens,
        chat_history=chat_history,
        options=options,
    )


@dataclass
class EncryptedStream(StreamingAgentChatResponse):
    """A streamed turn; ``metadata`` has the receipt once it has ended."""

    metadata: dict[str, Any] = field(default_factory=dict)


class EncryptedChatEngine(BaseChatEngine):
    """See :func:`encrypted_chat_engine`, which builds it."""

    def __init__(
        self,
        retriever: BaseRetriever,
        llm: EncryptedLLM,
        *,
        template: BasePromptTemplate,
        context_tokens: int,
        chat_history: Sequence[ChatMessage],
        options: AskOptions,
    ) -> None:
        check_options(options)
        self._retriever, self._llm, self._template = retriever, llm, template
        self._context_tokens, self._options = context_tokens, dict(options)
        self._memory = ChatMemoryBuffer(token_limit=1 << 20, tokenizer_fn=llm.tokenizer)
        self._memory.set(list(chat_history))
        self.callback_manager = llm.callback_manager

    @property
    def chat_history(self) -> list[ChatMessage]:
        """The whole conversation; what a turn left out is still here."""
        return list(self._memory.get_all())

    def reset(self) -> None:
        """Forget the conversation."""
        self._memory.reset()

    @trace_method("chat")
    def chat(self, message: str, chat_history: list[ChatMessage] | None = None) -> AgentChatResponse:
        """The model's turn; ``chat_history`` replaces the conversation so far."""
        self._restart(chat_history)
        fitted = self._fitted(message, self._retriever.retrieve(self._search_text(message)))
        answer = self._llm.chat(fitted.messages, **self._options)
        return self._remember(message, answer, fitted)

    @trace_method("chat")
    async def achat(self, message: str, chat_history: list[ChatMessage] | None = None) -> AgentChatResponse:
        """:meth:`chat` on an event loop; cancelling it stops the work."""
        self._restart(chat_history)
        await self._llm.aconnect()
        fitted = self._fitted(message, await self._retriever.aretrieve(self._search_text(message)))
        answer = await self._llm.achat(fitted.messages, **self._options)
        return self._remember(message, answer, fitted)

    @trace_method("chat")
    def stream_chat(self, message: str, chat_history: list[ChatMessage] | None = None) -> EncryptedStream:
        """:meth:`chat` as tokens decrypt."""
        self._restart(chat_history)
        fitted = self._fitted(message, self._retriever.retrieve(self._search_text(message)))
        stream = self._llm.stream_chat(fitted.messages, **self._options)
        self._memory.put(_said(MessageRole.USER, message))
        turn = EncryptedStream(source_nodes=fitted.passages, metadata=fitted.metadata())
        turn.chat_stream = _accounted(stream, turn.metadata)
        turn.write_response_to_history_thread = Thread(
            target=turn.write_response_to_history, args=(self._memory,)
        )
        turn.write_response_to_history_thread.start()
        return turn

    @trace_method("chat")
    async def astream_chat(
        self, message: str, chat_history: list[ChatMessage] | None = None
    ) -> EncryptedStream:
        """:meth:`stream_chat` on an event loop."""
        self._restart(chat_history)
        await self._llm.aconnect()
        fitted = self._fitted(message, await self._retriever.aretrieve(self._search_text(message)))
        stream = await self._llm.astream_chat(fitted.messages, **self._options)
        self._memory.put(_said(MessageRole.USER, message))
        turn = EncryptedStream(source_nodes=fitted.passages, metadata=fitted.metadata())
        turn.achat_stream = _aaccounted(stream, turn.metadata)
        turn.awrite_response_to_history_task = asyncio.create_task(
            turn.awrite_response_to_history(self._memory)
        )
        return turn

    def _restart(self, chat_history: list[ChatMessage] | None) -> None:
        if chat_history is not None:
            self._memory.set(chat_history)

    def _search_text(self, message: str) -> str:
        """The message behind the user's last one: "and on Sundays?" alone finds nothing."""
        asked = [said.content or "" for said in self.chat_history if said.role == MessageRole.USER]
        return "\n".join([*asked[-1:], message])

    def _fitted(self, message: str, nodes: Sequence[NodeWithScore]) -> Fitted:
        def framing(context: str, history: Sequence[ChatMessage]) -> list[ChatMessage]:
            asked = self._template.format_messages(llm=self._llm, context_str=context, query_str=message)
            return self._llm._extend_messages([*history, *(asked if nodes else [_said("user", message)])])

        return fit(
            self._llm,
            framing,
            nodes,
            context_tokens=self._context_tokens,
            reserved=reserved_tokens(self._llm, self._options),
            history=self.chat_history,
        )

    def _remember(self, message: str, answer: ChatResponse, fitted: Fitted) -> AgentChatResponse:
        self._memory.put(_said(MessageRole.USER, message))
        self._memory.put(answer.message)
        metadata = account(fitted.metadata(), answer)
        return AgentChatResponse(
            answer.message.content or "", source_nodes=fitted.passages, metadata=metadata
        )


def _said(role: MessageRole | str, text: str) -> ChatMessage:
    return ChatMessage(text, role=MessageRole(role))


def _accounted(stream: ChatResponseGen, metadata: dict[str, Any]) -> ChatResponseGen:
    for response in stream:
        account(metadata, response)
        yield response


async def _aaccounted(stream: ChatResponseAsyncGen, metadata: dict[str, Any]) -> ChatResponseAsyncGen:
    async for response in stream:
        account(metadata, response)
        yield response
