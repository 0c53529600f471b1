"""``PrivateProviderLLM``: a closed model in LlamaIndex that reads only what a budget has paid for."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, closing
from typing import Any, Literal, cast

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import LLM
from pydantic import Field, PrivateAttr

import fhe_llm.providers as providers
from fhe_llm.errors import RequestError
from fhe_llm.privacy import Account, Pseudonymiser, TextMechanism
from fhe_llm.providers import PrivateAnswer, Provider, ProviderOptions, ReleaseReceipt
from fhe_llm_llamaindex.messages import plain_messages


class PrivateProviderLLM(LLM):
    """An LLM of a closed provider, which reads text; what it reads is decided here.

    One of ``mechanism`` with ``budget``, or ``guarantee="none"``, must be given: see
    :class:`fhe_llm.providers.PrivateProviderLLM`. Responses carry the release receipt in ``additional_kwargs``.
    """

    model: str = Field(default="", frozen=True, description="The model at the provider.")
    provider_name: str = Field(default="", frozen=True, description="The provider.")
    context_window: int = Field(
        default=8192, description="Tokens the model takes; prompts are packed to fit it."
    )
    max_tokens: int = Field(default=512, description="Most tokens of an answer.")
    temperature: float | None = Field(default=None, description="None leaves it to the provider.")

    _client: providers.PrivateProviderLLM = PrivateAttr()

    def __init__(
        self,
        provider: Provider,
        *,
        mechanism: TextMechanism | None = None,
        budget: Account | None = None,
        guarantee: Literal["none"] | None = None,
        identifiers: Pseudonymiser | None = None,
        public_system: bool = False,
        context_window: int = 8192,
        max_tokens: int = 512,
        temperature: float | None = None,
        **llama_index: Any,
    ) -> None:
        """``llama_index`` are the fields of LlamaIndex's :class:`LLM`. Raises :class:`PrivacyParameterError`."""
        unknown = sorted(llama_index.keys() - LLM.model_fields.keys())
        if unknown:
            raise RequestError(f"cannot use argument {unknown[0]!r}: there is no such argument. Drop it.")
        client = providers.PrivateProviderLLM(
            provider,
            mechanism=mechanism,
            budget=budget,
            guarantee=guarantee,
            identifiers=identifiers,
            public_system=public_system,
        )
        fields: dict[str, Any] = {
            "model": provider.model,
            "provider_name": provider.name,
            "context_window": context_window,
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        super().__init__(**fields, **llama_index)
        self._client = client

    @classmethod
    def class_name(cls) -> str:
        """The name in serialised forms."""
        return "fhe_llm_private_provider_llm"

    @property
    def metadata(self) -> LLMMetadata:
        """What was said of the model when this object was made."""
        return LLMMetadata(
            context_window=self.context_window,
            num_output=min(self.max_tokens, self.context_window // 4),
            is_chat_model=True,
            model_name=self.model,
            system_role=MessageRole.SYSTEM,
        )

    def quote(self, messages: Sequence[ChatMessage] | str) -> ReleaseReceipt:
        """What sending these messages would cost, before anything is paid."""
        return self._client.quote(messages if isinstance(messages, str) else plain_messages(messages))

    def close(self) -> None:
        """Close connections of blocking calls."""
        self._client.close()

    async def aclose(self) -> None:
        """:meth:`close`, and the connections of async calls."""
        await self._client.aclose()

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The model's turn. ``kwargs`` are those of :class:`fhe_llm.providers.ProviderOptions`."""
        return _chat(self._client.chat(plain_messages(messages), **self._options(kwargs)))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """:meth:`chat` on an event loop."""
        return _chat(await self._client.achat(plain_messages(messages), **self._options(kwargs)))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """:meth:`chat` as the answer comes; closing the generator ends the request."""
        return self._chunks(plain_messages(messages), kwargs)

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """:meth:`stream_chat` on an event loop."""
        return self._achunks(plain_messages(messages), kwargs)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:  # noqa: ARG002
        """Ask ``prompt`` as a user's message."""
        return _completion(_chat(self._client.chat(prompt, **self._options(kwargs))))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:  # noqa: ARG002
        """:meth:`complete` on an event loop."""
        return _completion(_chat(await self._client.achat(prompt, **self._options(kwargs))))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:  # noqa: ARG002
        """:meth:`complete` as the answer comes."""
        return (_completion(response) for response in self._chunks(prompt, kwargs))

    @llm_completion_callback()
    async def astream_complete(
        self,
        prompt: str,
        formatted: bool = False,  # noqa: ARG002
        **kwargs: Any,
    ) -> CompletionResponseAsyncGen:
        """:meth:`stream_complete` on an event loop."""
        return (_completion(response) async for response in self._achunks(prompt, kwargs))

    def _chunks(self, prompt: Any, kwargs: dict[str, Any]) -> Generator[ChatResponse, None, None]:
        text = ""
        with closing(self._client.stream(prompt, **self._options(kwargs))) as chunks:
            for chunk in chunks:
                text += chunk.text
                yield _response(text, chunk.answer, chunk.text)

    async def _achunks(self, prompt: Any, kwargs: dict[str, Any]) -> AsyncGenerator[ChatResponse, None]:
        text = ""
        async with aclosing(self._client.astream(prompt, **self._options(kwargs))) as chunks:
            async for chunk in chunks:
                text += chunk.text
                yield _response(text, chunk.answer, chunk.text)

    def _options(self, given: dict[str, Any]) -> ProviderOptions:
        defaults = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        return cast(ProviderOptions, {**defaults, **given})


def _chat(answer: PrivateAnswer) -> ChatResponse:
    return _response(answer.text, answer, None)


def _response(text: str, answer: PrivateAnswer | None, delta: str | None) -> ChatResponse:
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in (answer.tool_calls if answer else ())
    ]
    message = ChatMessage(
        role=MessageRole.ASSISTANT, content=text, additional_kwargs={"tool_calls": calls} if calls else {}
    )
    return ChatResponse(message=message, delta=delta, additional_kwargs=_accounts(answer))


def _completion(response: ChatResponse) -> CompletionResponse:
    return CompletionResponse(
        text=response.message.content or "",
        delta=response.delta,
        additional_kwargs=response.additional_kwargs,
    )


def _accounts(answer: PrivateAnswer | None) -> dict[str, Any]:
    if answer is None:
        return {}
    usage = answer.usage
    counts = (
        {}
        if usage is None
        else {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.input_tokens + usage.output_tokens,
        }
    )
    return {**counts, "finish_reason": answer.finish, "receipt": answer.receipt}
