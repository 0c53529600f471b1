"""``ChatEncrypted``: a LangChain chat model on somebody else's machine that this machine cannot listen to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, closing
from typing import Any, Final

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput, ModelProfile
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from fhe_llm import Answer
from fhe_llm_langchain.connection import EncryptedModel
from fhe_llm_langchain.errors import langchain_errors
from fhe_llm_langchain.messages import to_chunk, to_dicts, to_message, usage
from fhe_llm_langchain.structured import structured

_CONTEXT: Final = {"smollm2-135m": 8192}
"""Context windows that are known before the proxy is asked."""


class ChatEncrypted(EncryptedModel, BaseChatModel):
    """A chat model whose prompts and answers only this process sees.

    ::

        model = ChatEncrypted(base_url="http://gpu-box:8080")
        (prompt | model | StrOutputParser()).invoke({"question": "..."})

    ``response_metadata`` of an answer holds its ``privacy_receipt``; :func:`fhe_llm_langchain.privacy_receipt` shows
    it. Tools and schemas are exact: the client masks the logits, so a call always fits. Errors are LangChain's
    ``Model*Error`` and ``ContextOverflowError``, and this library's at the same time.
    """

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: dict[str, Any] | str | bool | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Let the model call ``tools``. ``tool_choice`` is "auto", "none", "any" (or "required", True) or a name.

        ``strict`` refuses schemas that use keywords no grammar can promise; one call an answer unless
        ``parallel_tool_calls``.
        """
        wanted = (
            {True: "required", False: "none"}[tool_choice] if isinstance(tool_choice, bool) else tool_choice
        )
        options = {"tool_choice": wanted, "strict": strict, "parallel_tool_calls": parallel_tool_calls}
        given = {name: value for name, value in options.items() if value is not None}
        with langchain_errors():
            self._ask_options(None, kwargs)
        return self.bind(
            tools=[convert_to_openai_tool(tool, strict=strict) for tool in tools], **given, **kwargs
        )

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        method: str = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Answers as ``schema`` says: a pydantic class, a TypedDict or a JSON Schema.

        ``method`` is "json_schema", "function_calling" or "json_mode" (the first, or any JSON object where there is no
        ``schema``). With ``include_raw`` the result is a dict of "raw", "parsed" and "parsing_error".
        """
        with langchain_errors():
            return structured(self, schema, method, include_raw, strict, kwargs)

    def get_token_ids(self, text: str) -> list[int]:
        """Token ids from the model's own tokenizer, which comes from the proxy."""
        return self.connect().encode(text)

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Tokens of the whole prompt: chat template, tools and the opening of the answer included."""
        with langchain_errors():
            listed = [convert_to_openai_tool(tool) for tool in tools or ()]
            return self.connect().prompt_tokens(to_dicts(messages), tools=listed)

    def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
        self._refuse_tracing()  # every path of LangChain's comes by here before it tells its callbacks
        return super()._get_invocation_params(stop=stop, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        with langchain_errors():
            client, options = self._call(stop, kwargs)
            return _result(client.chat(to_dicts(messages), **options))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> ChatResult:
        with langchain_errors():
            client, options = self._call(stop, kwargs)
            return _result(await client.achat(to_dicts(messages), **options))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with langchain_errors():
            client, options = self._call(stop, kwargs)
            calls = 0
            with closing(client.stream(to_dicts(messages), **options)) as chunks:
                for chunk in chunks:
                    made = ChatGenerationChunk(message=to_chunk(chunk, calls))
                    calls += len(chunk.tool_calls)
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
            client, options = self._call(stop, kwargs)
            calls = 0
            async with aclosing(client.astream(to_dicts(messages), **options)) as chunks:
                async for chunk in chunks:
                    made = ChatGenerationChunk(message=to_chunk(chunk, calls))
                    calls += len(chunk.tool_calls)
                    if run_manager:
                        await run_manager.on_llm_new_token(chunk.text, chunk=made)
                    yield made

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = LangSmithParams(
            ls_provider="fhe-llm",
            ls_model_name=kwargs.get("model", self.model),
            ls_model_type="chat",
            ls_temperature=kwargs.get("temperature", self.temperature),
            ls_max_tokens=kwargs.get("max_tokens", self.max_tokens),
        )
        if ends := stop or self.stop:
            params["ls_stop"] = ends
        return params

    def _resolve_model_profile(self) -> ModelProfile:
        profile = ModelProfile(
            name=self.model,
            open_weights=True,
            text_inputs=True,
            image_inputs=False,
            audio_inputs=False,
            video_inputs=False,
            pdf_inputs=False,
            text_outputs=True,
            reasoning_output=False,
            tool_calling=True,
            tool_choice=True,
            tool_call_streaming=True,
            structured_output=False,  # not beside tools: an agent's structured answer is a tool of its own
            temperature=True,
            max_output_tokens=self.max_tokens,
        )
        if self.model in _CONTEXT:
            profile["max_input_tokens"] = _CONTEXT[self.model]
        return profile

    @property
    def _llm_type(self) -> str:
        return "fhe-llm-chat"


def _result(answer: Answer) -> ChatResult:
    tokens = usage(answer)
    return ChatResult(
        generations=[ChatGeneration(message=to_message(answer))],
        llm_output={"model_name": answer.receipt.model, "token_usage": dict(tokens)},
    )
