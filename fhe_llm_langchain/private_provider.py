"""``ChatPrivateProvider``: a closed model in LangChain that reads only what a budget has paid for."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, closing
from typing import Any, Final, Literal, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call_chunk
from langchain_core.messages.tool import tool_call as made_tool_call
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import AliasChoices, ConfigDict, Field, PrivateAttr, SecretStr

from fhe_llm.errors import RequestError
from fhe_llm.privacy import Account, Pseudonymiser, TextMechanism
from fhe_llm.providers import (
    PrivateAnswer,
    PrivateProviderLLM,
    Provider,
    ProviderOptions,
    ProviderUsage,
    ReleaseReceipt,
    open_provider,
)
from fhe_llm_langchain.errors import langchain_errors
from fhe_llm_langchain.messages import to_dicts
from fhe_llm_langchain.structured import structured
from fhe_llm_langchain.tracing import refuse_tracing
from fhe_llm_langchain.untraced import Untraced

RELEASE: Final = "release_receipt"
"""Where the receipt stands in a message's ``response_metadata``."""
_PER_CALL: Final = ("max_tokens", "temperature", "top_p", "seed")
_LANGCHAIN_ONLY: Final = ("stream", "stream_usage", "ls_structured_output_format")
_BODY: Final = ("response_format", "parallel_tool_calls")
"""Fields of OpenAI's body that LangChain's users pass like parameters."""


class ChatPrivateProvider(Untraced, BaseChatModel):
    """A chat model of a closed provider, which reads text; what it reads is decided here.

    ::

        ChatPrivateProvider(
            provider="openai", model="gpt-5-mini",
            mechanism=TokenMechanism(epsilon=10), budget=Account.open("alice"),
        )
        ChatPrivateProvider(provider="openai", model="gpt-5-mini", guarantee="none", identifiers=Pseudonymiser())

    One of ``mechanism`` with ``budget``, or ``guarantee="none"``, must be given: see
    :class:`fhe_llm.providers.PrivateProviderLLM`. ``provider`` is a name or a :class:`fhe_llm.providers.Provider`.
    ``response_metadata`` of an answer holds its ``release_receipt``; :meth:`quote` tells the cost before.
    """

    model_config = ConfigDict(protected_namespaces=(), populate_by_name=True, arbitrary_types_allowed=True)

    model: str = Field(default="", validation_alias=AliasChoices("model", "model_name"))
    provider_name: str = ""
    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: list[str] | None = Field(default=None, validation_alias=AliasChoices("stop", "stop_sequences"))
    streaming: bool = False

    _client: PrivateProviderLLM = PrivateAttr()

    def __init__(
        self,
        *,
        provider: str | Provider,
        model: str | None = None,
        mechanism: TextMechanism | None = None,
        budget: Account | None = None,
        guarantee: Literal["none"] | None = None,
        identifiers: Pseudonymiser | None = None,
        public_system: bool = False,
        api_key: str | SecretStr | Callable[[], str] | None = None,
        base_url: str | None = None,
        timeout: float | None = None,
        max_retries: int | None = None,
        **settings: Any,
    ) -> None:
        """Raises LangChain's ``ModelInvalidRequestError`` for what makes no sense; no network."""
        with langchain_errors():
            connection = {
                "api_key": api_key.get_secret_value() if isinstance(api_key, SecretStr) else api_key,
                "base_url": base_url,
                "timeout": timeout,
                "max_retries": max_retries,
            }
            given = {name: value for name, value in connection.items() if value is not None}
            client = PrivateProviderLLM(
                _provider(provider, model, given),
                mechanism=mechanism,
                budget=budget,
                guarantee=guarantee,
                identifiers=identifiers,
                public_system=public_system,
            )
            _refuse_unknown(settings)
            names: dict[str, Any] = {"model": client.provider.model, "provider_name": client.provider.name}
            super().__init__(**settings, **names)
            refuse_tracing(self.allow_tracing)
            self._client = client

    def quote(self, messages: LanguageModelInput) -> ReleaseReceipt:
        """What sending these messages would cost, before anything is paid."""
        with langchain_errors():
            return self._client.quote(to_dicts(self._convert_input(messages).to_messages()))

    def close(self) -> None:
        """Close connections of blocking calls. Async users call :meth:`aclose`."""
        self._client.close()

    async def aclose(self) -> None:
        """:meth:`close`, and the connections of async calls."""
        await self._client.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: dict[str, Any] | str | bool | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Let the model call ``tools``, whose names and schemas the provider reads as they are."""
        chosen: Any = {True: "required", False: "none", "any": "required"}.get(tool_choice, tool_choice)
        listed = [convert_to_openai_tool(tool, strict=strict) for tool in tools]
        if isinstance(chosen, str) and chosen not in ("auto", "none", "required"):
            chosen = {"type": "function", "function": {"name": chosen}}
        return self.bind(tools=listed, **({} if chosen is None else {"tool_choice": chosen}), **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        method: str = "function_calling",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Answers as ``schema`` says: by a tool the model must call, or where the provider speaks OpenAI's dialect by
        "json_schema" or "json_mode".

        An answer that does not fit is not repeated in the error. With ``include_raw`` the result is a dict of "raw",
        "parsed" and "parsing_error".
        """
        with langchain_errors():
            if method != "function_calling":
                self._check_body_fields(["response_format"])
            return structured(self, schema, method, include_raw, strict, kwargs)

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        self._refuse_tracing()
        return super()._get_invocation_params(stop=stop, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        with langchain_errors():
            return _result(self._client.chat(to_dicts(messages), **self._options(stop, kwargs)))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        with langchain_errors():
            return _result(await self._client.achat(to_dicts(messages), **self._options(stop, kwargs)))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with (
            langchain_errors(),
            closing(self._client.stream(to_dicts(messages), **self._options(stop, kwargs))) as chunks,
        ):
            for chunk in chunks:
                made = ChatGenerationChunk(message=_chunk(chunk.text, chunk.answer))
                if run_manager:
                    run_manager.on_llm_new_token(chunk.text, chunk=made)
                yield made

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        with langchain_errors():
            async with aclosing(
                self._client.astream(to_dicts(messages), **self._options(stop, kwargs))
            ) as chunks:
                async for chunk in chunks:
                    made = ChatGenerationChunk(message=_chunk(chunk.text, chunk.answer))
                    if run_manager:
                        await run_manager.on_llm_new_token(chunk.text, chunk=made)
                    yield made

    def _options(self, stop: list[str] | None, kwargs: dict[str, Any]) -> ProviderOptions:
        options: Any = {name: getattr(self, name) for name in _PER_CALL}
        options["stop"] = self.stop if stop is None else stop
        options |= {name: value for name, value in kwargs.items() if name not in _LANGCHAIN_ONLY}
        body = {name: options.pop(name) for name in _BODY if name in options}
        body = {name: value for name, value in body.items() if value is not None}
        if body:
            self._check_body_fields(body)
            options["extra"] = {**(options.get("extra") or {}), **body}
        return options  # type: ignore[no-any-return]

    def _check_body_fields(self, names: Iterable[str]) -> None:
        if self.provider_name == "anthropic":
            raise RequestError(
                f"cannot use {min(names)!r} with anthropic: its API has no such field. Leave it out; structured "
                "answers come by method='function_calling'."
            )

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = LangSmithParams(
            ls_provider=self.provider_name,
            ls_model_name=kwargs.get("model", self.model),
            ls_model_type="chat",
            ls_temperature=kwargs.get("temperature", self.temperature),
            ls_max_tokens=kwargs.get("max_tokens", self.max_tokens),
        )
        if ends := stop or self.stop:
            params["ls_stop"] = ends
        return params

    @property
    def _identifying_params(self) -> dict[str, Any]:
        names = ("model", "provider_name", *_PER_CALL, "stop")
        return {name: getattr(self, name) for name in names}

    @property
    def _llm_type(self) -> str:
        return "fhe-llm-private-provider"


def _provider(given: str | Provider, model: str | None, connection: dict[str, Any]) -> Provider:
    if isinstance(given, str):
        if model is None:
            raise RequestError("cannot choose a model: none was named. Pass model='...'.")
        return open_provider(given, model, **connection)
    if connection or model not in (None, given.model):
        raise RequestError("cannot use these settings beside a provider object: it has its own. Drop them.")
    return given


def _refuse_unknown(settings: dict[str, Any]) -> None:
    known = {*ChatPrivateProvider.model_fields, "model_name", "stop_sequences"} - {"provider_name"}
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise RequestError(
            f"cannot use parameter {unknown[0]!r}: there is no such parameter. Use one of {', '.join(sorted(known))}."
        )


def _result(answer: PrivateAnswer) -> ChatResult:
    calls, unread = _calls(answer)
    message = AIMessage(
        content=answer.text,
        tool_calls=calls,
        invalid_tool_calls=unread,
        usage_metadata=_usage(answer.usage),
        response_metadata=_metadata(answer),
        id=answer.request_id,
    )
    return ChatResult(generations=[ChatGeneration(message=message)], llm_output={"model_name": answer.model})


def _chunk(text: str, answer: PrivateAnswer | None) -> AIMessageChunk:
    if answer is None:
        return AIMessageChunk(content=text)
    message = AIMessageChunk(
        content=text,
        tool_call_chunks=[
            tool_call_chunk(name=call.name, args=call.arguments, id=call.id, index=number)
            for number, call in enumerate(answer.tool_calls)
        ],
        response_metadata=_metadata(answer),
        chunk_position="last",
    )
    message.usage_metadata = _usage(answer.usage)
    return message


def _calls(answer: PrivateAnswer) -> tuple[list[Any], list[Any]]:
    """Calls whose arguments are a JSON object, and those that are none."""
    read, unread = [], []
    for call in answer.tool_calls:
        try:
            arguments = dict(json.loads(call.arguments or "{}"))
        except (ValueError, TypeError):
            unread.append(
                invalid_tool_call(name=call.name, args=call.arguments, id=call.id, error="not a JSON object")
            )
        else:
            read.append(made_tool_call(name=call.name, args=arguments, id=call.id))
    return read, unread


def _usage(usage: ProviderUsage | None) -> UsageMetadata | None:
    if usage is None:
        return None
    return UsageMetadata(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        total_tokens=usage.input_tokens + usage.output_tokens,
    )


def _metadata(answer: PrivateAnswer) -> dict[str, Any]:
    return {
        "model_name": answer.model,
        "model_provider": answer.receipt.provider,
        "finish_reason": answer.finish,
        RELEASE: answer.receipt.to_dict(),
    }
