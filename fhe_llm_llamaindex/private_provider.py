"""``PrivateProviderLLM``: a closed model in LlamaIndex that reads only what a budget has paid for."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import Any, Literal, TypeVar, cast

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
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM, ToolSelection
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import BaseTool
from pydantic import BaseModel, Field, PrivateAttr

import fhe_llm.providers as providers
from fhe_llm.errors import RequestError
from fhe_llm.privacy import Account, Pseudonymiser, TextMechanism
from fhe_llm.providers import PrivateAnswer, Provider, ProviderOptions, ReleaseReceipt
from fhe_llm_llamaindex.messages import plain_messages, tool_dicts, tool_selections, with_user_message
from fhe_llm_llamaindex.provider_responses import (
    chat_response,
    choice_of,
    completion_response,
    forced_tool,
    model_of,
)

M = TypeVar("M", bound=BaseModel)


class PrivateProviderLLM(FunctionCallingLLM):
    """An LLM of a closed provider, which reads text; what it reads is decided here.

    One of ``mechanism`` with ``budget``, or ``guarantee="none"``, must be given: see
    :class:`fhe_llm.providers.PrivateProviderLLM`. Responses carry the release receipt in ``additional_kwargs``. Tools,
    their names and schemas are read by the provider as they are.
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
            is_function_calling_model=True,
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
        return completion_response(_chat(self._client.chat(prompt, **self._options(kwargs))))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:  # noqa: ARG002
        """:meth:`complete` on an event loop."""
        return completion_response(_chat(await self._client.achat(prompt, **self._options(kwargs))))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:  # noqa: ARG002
        """:meth:`complete` as the answer comes."""
        return (completion_response(response) for response in self._chunks(prompt, kwargs))

    @llm_completion_callback()
    async def astream_complete(
        self,
        prompt: str,
        formatted: bool = False,  # noqa: ARG002
        **kwargs: Any,
    ) -> CompletionResponseAsyncGen:
        """:meth:`stream_complete` on an event loop."""
        return (completion_response(response) async for response in self._achunks(prompt, kwargs))

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls in ``response``. Raises :class:`RequestError`, without the answer's text, where there is none, and
        where one has arguments that are no JSON."""
        if kwargs:
            raise RequestError(f"cannot use parameter {min(kwargs)!r}: there is no such parameter. Drop it.")
        try:
            return tool_selections(response, required=error_on_no_tool_call)
        except json.JSONDecodeError:
            pass  # it holds the text
        raise RequestError("cannot call a tool: its arguments are no JSON. Raise max_tokens, or ask again.")

    def structured_predict(
        self,
        output_cls: type[M],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> M:
        """The answer as ``output_cls``, by a tool the model must call. Raises :class:`RequestError`, without the
        answer's text, where it does not fit."""
        return model_of(output_cls, self.chat(**self._structured_ask(output_cls, prompt, llm_kwargs, prompt_args)))

    async def astructured_predict(
        self,
        output_cls: type[M],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> M:
        """:meth:`structured_predict` on an event loop."""
        ask = self._structured_ask(output_cls, prompt, llm_kwargs, prompt_args)
        return model_of(output_cls, await self.achat(**ask))

    def _structured_ask(
        self,
        output_cls: type[BaseModel],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None,
        prompt_args: dict[str, Any],
    ) -> dict[str, Any]:
        messages = self._extend_messages(prompt.format_messages(llm=self, **prompt_args))
        return {"messages": messages, **(llm_kwargs or {}), **forced_tool(output_cls)}

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,  # noqa: ARG002  the base class's signature
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: str | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        messages = with_user_message(chat_history, user_msg)
        if not tools:
            return {"messages": messages, **kwargs}
        if not allow_parallel_tool_calls and self.provider_name != "anthropic":  # it has no such field
            kwargs["extra"] = {"parallel_tool_calls": False, **kwargs.get("extra", {})}
        return {
            "messages": messages,
            "tools": tool_dicts(tools),
            "tool_choice": choice_of(tool_choice, required=tool_required),
            **kwargs,
        }

    def _chunks(self, prompt: Any, kwargs: dict[str, Any]) -> Generator[ChatResponse, None, None]:
        text = ""
        with closing(self._client.stream(prompt, **self._options(kwargs))) as chunks:
            for chunk in chunks:
                text += chunk.text
                yield chat_response(text, chunk.answer, chunk.text)

    async def _achunks(self, prompt: Any, kwargs: dict[str, Any]) -> AsyncGenerator[ChatResponse, None]:
        text = ""
        async with aclosing(self._client.astream(prompt, **self._options(kwargs))) as chunks:
            async for chunk in chunks:
                text += chunk.text
                yield chat_response(text, chunk.answer, chunk.text)

    def _options(self, given: dict[str, Any]) -> ProviderOptions:
        defaults = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        return cast(ProviderOptions, {**defaults, **given})


def _chat(answer: PrivateAnswer) -> ChatResponse:
    return chat_response(answer.text, answer)
