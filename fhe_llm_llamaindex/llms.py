"""``EncryptedLLM``: the encrypted model where LlamaIndex expects an LLM."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from pathlib import Path
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
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.tools import BaseTool
from llama_index.core.types import PydanticProgramMode, TokenAsyncGen
from pydantic import BaseModel, Field, PrivateAttr

import fhe_llm
from fhe_llm import (
    DEFAULT_URL,
    AskOptions,
    Chunk,
    KeyRing,
    ModelInfo,
    PrefixCache,
    SamplingParams,
    SpeculationSettings,
)
from fhe_llm.errors import RequestError
from fhe_llm.privacy import Account
from fhe_llm_llamaindex import structured
from fhe_llm_llamaindex.messages import (
    Unfolding,
    as_messages,
    chat_response,
    completion_response,
    plain_messages,
    tool_dicts,
    tool_selections,
    with_user_message,
)

M = TypeVar("M", bound=BaseModel)
R = TypeVar("R")


class EncryptedLLM(FunctionCallingLLM):
    """An open model behind an untrusted proxy, with :class:`fhe_llm.EncryptedLLM`'s privacy.

    The fields are defaults of every call; the other arguments are those of :class:`fhe_llm.EncryptedLLM`. Keys, the
    API key and the connection live in a private attribute: no repr, dump, trace or pickle holds them, and a copy made
    from one of those makes a key of its own. ``complete`` asks a chat model as a user would; with ``formatted=True``
    it continues the text. The last response of an answer carries the receipt, in ``additional_kwargs`` and, as plain
    data, in ``raw``.
    """

    model: str = Field(default="smollm2-135m", frozen=True, description="Name of the model at the proxy.")
    base_url: str = Field(default=DEFAULT_URL, frozen=True, description="Where the proxy is.")
    max_tokens: int = Field(default=256, description="Most tokens of an answer.")
    temperature: float = Field(default=0.0, description="0 is greedy.")
    top_p: float = Field(default=1.0, description="Nucleus sampling; 1 is off.")
    top_k: int = Field(default=0, description="0 is off.")
    repetition_penalty: float = Field(default=1.0, description="1 is off.")
    seed: int | None = Field(default=None, description="Makes sampling reproducible.")
    stop: list[str] = Field(default_factory=list, description="Strings that end an answer.")
    pad_to: int | None = Field(default=None, description="Hides the prompt's length up to a multiple of it.")
    preset: str = Field(default="default", frozen=True, description="Encryption parameters.")
    timeout: float = Field(default=300.0, frozen=True, description="Seconds to wait for the proxy.")
    max_retries: int = Field(default=5, frozen=True, description="Attempts after a failed one.")

    _client: fhe_llm.EncryptedLLM = PrivateAttr()

    def __init__(
        self,
        model: str = "smollm2-135m",
        base_url: str = DEFAULT_URL,
        *,
        keys: KeyRing | str | Path | None = None,
        passphrase: str | None = None,
        api_key: str | None = None,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        pad_to: int | None = None,
        preset: str = "default",
        timeout: float = 300.0,
        max_retries: int = 5,
        transport: Literal["auto", "http"] = "auto",
        cache_dir: str | Path | None = None,
        prefix_cache: Literal["auto", False] | PrefixCache = "auto",
        speculation: Literal["auto", False] | SpeculationSettings = "auto",
        draft_model: str | Path | None = None,
        progress: Callable[[str, int, int], None] | None = None,
        account: Account | None = None,
        **llama_index: Any,
    ) -> None:
        """``llama_index`` are the fields of LlamaIndex's :class:`LLM`, such as ``system_prompt``. Nothing is sent yet.
        Raises :class:`RequestError`, also for a name that is none, and what :class:`fhe_llm.EncryptedLLM` raises."""
        _refuse_unknown(llama_index, LLM.model_fields, "argument")
        sampling = SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=cast(tuple[str, ...], stop or ()),
        )
        client = fhe_llm.EncryptedLLM(
            model,
            base_url,
            keys=keys,
            passphrase=passphrase,
            api_key=api_key,
            preset=preset,
            timeout=timeout,
            max_retries=max_retries,
            transport=transport,
            cache_dir=cache_dir,
            prefix_cache=prefix_cache,
            speculation=speculation,
            draft_model=draft_model,
            progress=progress,
            account=account,
        )
        super().__init__(
            model=model,
            base_url=base_url,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=list(sampling.stop),
            pad_to=pad_to,
            preset=preset,
            timeout=timeout,
            max_retries=max_retries,
            **llama_index,
        )
        self._client = client

    @classmethod
    def class_name(cls) -> str:
        """The name in serialised forms."""
        return "fhe_llm_encrypted_llm"

    @property
    def metadata(self) -> LLMMetadata:
        """What the proxy serves; the first use connects. ``num_output`` is what prompts leave free for the answer:
        ``max_tokens``, but never more than a quarter of the window."""
        info = self._client.connect()
        return LLMMetadata(
            context_window=info.context_length,
            num_output=min(self.max_tokens, info.context_length // 4),
            is_chat_model=info.chat,
            is_function_calling_model=info.chat,
            model_name=info.name,
            system_role=MessageRole.SYSTEM,
        )

    def to_payload(self) -> dict[str, Any]:
        """What traces may hold. Unlike the base class's it needs no connection, which would block an event loop."""
        names = {"model", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "pad_to"}
        return {"class_name": self.class_name(), "model_name": self.model, **self.model_dump(include=names)}

    def connect(self) -> ModelInfo:
        """Look the model up at the proxy and load its tokenizer, if that was not done yet.

        Raises :class:`TransportError`, :class:`ProxyError`, :class:`ModelError`.
        """
        return self._client.connect()

    async def aconnect(self) -> ModelInfo:
        """:meth:`connect` on an event loop: afterwards :attr:`metadata` does not wait for the network."""
        return await self._client.aconnect()

    def tokenizer(self, text: str) -> list[int]:
        """Token ids of a text, as LlamaIndex's ``Settings.tokenizer`` wants it; the first use connects."""
        return self._client.connect().encode(text)

    def prompt_tokens(self, messages: Sequence[ChatMessage]) -> int:
        """Tokens that a chat takes, its template included; the first use connects."""
        return self._client.connect().prompt_tokens(plain_messages(messages))

    def close(self) -> None:
        """Close connections of sync calls and wipe a key that this object made."""
        self._client.close()

    async def aclose(self) -> None:
        """:meth:`close`, and the connections of async calls."""
        await self._client.aclose()

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The model's turn. ``kwargs`` are those of :class:`fhe_llm.AskOptions`; raises :class:`FheLlmError`
        subclasses."""
        answer = self._client.chat(plain_messages(messages), **self._options(kwargs))
        return chat_response(answer.text, answer.tool_calls, answer)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """:meth:`chat` on an event loop; cancelling it stops the work."""
        answer = await self._client.achat(plain_messages(messages), **self._options(kwargs))
        return chat_response(answer.text, answer.tool_calls, answer)

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """:meth:`chat` as tokens decrypt; closing the generator stops the work."""
        chunks = self._client.stream(plain_messages(messages), **self._options(kwargs))
        return _each(chunks, Unfolding().chat)

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """:meth:`stream_chat` on an event loop."""
        chunks = self._client.astream(plain_messages(messages), **self._options(kwargs))
        return _aeach(chunks, Unfolding().chat)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Ask ``prompt`` as a user's message; continue it as text where it is ``formatted`` already, and where the
        model has no chat template."""
        ask = self._client.chat if self._asks(self.connect(), formatted) else self._client.generate
        answer = ask(prompt, **self._options(kwargs))
        return completion_response(answer.text, answer)

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """:meth:`complete` on an event loop; cancelling it stops the work."""
        chat = self._asks(await self.aconnect(), formatted)
        answer = await (self._client.achat if chat else self._client.agenerate)(
            prompt, **self._options(kwargs)
        )
        return completion_response(answer.text, answer)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """:meth:`complete` as tokens decrypt; closing the generator stops the work."""
        chunks = self._client.stream(
            as_messages(prompt, self._asks(self.connect(), formatted)), **self._options(kwargs)
        )
        return _each(chunks, Unfolding().completion)

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """:meth:`stream_complete` on an event loop."""
        chat = self._asks(await self.aconnect(), formatted)
        chunks = self._client.astream(as_messages(prompt, chat), **self._options(kwargs))
        return _aeach(chunks, Unfolding().completion)

    async def apredict(self, prompt: BasePromptTemplate, **prompt_args: Any) -> str:
        """The base class's, which asks for :attr:`metadata`: connected first, so that it does not block the loop."""
        await self.aconnect()
        return await super().apredict(prompt, **prompt_args)

    async def astream(self, prompt: BasePromptTemplate, **prompt_args: Any) -> TokenAsyncGen:
        """See :meth:`apredict`."""
        await self.aconnect()
        return await super().astream(prompt, **prompt_args)

    async def apredict_and_call(self, tools: Sequence[BaseTool], *args: Any, **kwargs: Any) -> Any:
        """See :meth:`apredict`."""
        await self.aconnect()
        return await super().apredict_and_call(tools, *args, **kwargs)

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
        return {
            "messages": with_user_message(chat_history, user_msg),
            "tools": tool_dicts(tools),
            "tool_choice": tool_choice or ("required" if tool_required and tools else "auto"),
            "parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls in ``response``. Raises :class:`RequestError`, without the answer's text, where there is none."""
        _refuse_unknown(kwargs, (), "parameter")
        return tool_selections(response, required=error_on_no_tool_call)

    def structured_predict(
        self,
        output_cls: type[M],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> M:
        """The answer as ``output_cls``, held to its schema by the grammar. Raises :class:`RequestError` where it was
        cut off; other modes than the default of ``pydantic_program_mode`` are the base class's."""
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            return cast(M, super().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args))
        messages, options = self._structured_ask(output_cls, prompt, llm_kwargs, prompt_args)
        return structured.parsed(output_cls, self.chat(messages, **options))

    async def astructured_predict(
        self,
        output_cls: type[M],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> M:
        """:meth:`structured_predict` on an event loop; cancelling it stops the work."""
        await self.aconnect()
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            return cast(M, await super().astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args))
        messages, options = self._structured_ask(output_cls, prompt, llm_kwargs, prompt_args)
        return structured.parsed(output_cls, await self.achat(messages, **options))

    def _structured_stream_call(
        self,
        output_cls: type[Any],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            return super()._structured_stream_call(output_cls, prompt, llm_kwargs, **prompt_args)
        messages, options = self._structured_ask(output_cls, prompt, llm_kwargs, prompt_args)
        return structured.partials(output_cls, self.stream_chat(messages, **options))

    async def _structured_astream_call(
        self,
        output_cls: type[Any],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Any:
        await self.aconnect()
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            return await super()._structured_astream_call(output_cls, prompt, llm_kwargs, **prompt_args)
        messages, options = self._structured_ask(output_cls, prompt, llm_kwargs, prompt_args)
        return structured.apartials(output_cls, await self.astream_chat(messages, **options))

    def _structured_ask(
        self,
        output_cls: type[BaseModel],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None,
        prompt_args: dict[str, Any],
    ) -> tuple[list[ChatMessage], dict[str, Any]]:
        messages = self._extend_messages(prompt.format_messages(llm=self, **prompt_args))
        return messages, {**(llm_kwargs or {}), **structured.schema_options(output_cls)}

    def _options(self, given: dict[str, Any]) -> AskOptions:
        """The defaults of this object, with what a call says instead."""
        names = SamplingParams.__dataclass_fields__.keys() | {"pad_to"}
        return cast(AskOptions, {**{name: getattr(self, name) for name in names}, **given})

    def _asks(self, info: ModelInfo, formatted: bool) -> bool:
        return info.chat and not formatted


def _refuse_unknown(given: Mapping[str, Any], known: Any, what: str) -> None:
    """Nothing that a caller says is dropped. Raises :class:`RequestError`."""
    unknown = sorted(given.keys() - set(known))
    if unknown:
        names = f"Use one of {', '.join(known)}." if known else "Drop it."
        raise RequestError(f"cannot use {what} {unknown[0]!r}: there is no such {what}. {names}")


def _each(chunks: Iterator[Chunk], response: Callable[[Chunk], R]) -> Generator[R, None, None]:
    with closing(cast(Generator[Chunk, None, None], chunks)) as generator:
        for chunk in generator:
            yield response(chunk)


async def _aeach(chunks: AsyncIterator[Chunk], response: Callable[[Chunk], R]) -> AsyncGenerator[R, None]:
    async with aclosing(cast(AsyncGenerator[Chunk, None], chunks)) as generator:
        async for chunk in generator:
            yield response(chunk)
