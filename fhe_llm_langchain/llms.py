"""``EncryptedLLM``: LangChain's text completion, for chains that were written for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseLLM
from langchain_core.language_models.base import LangSmithParams
from langchain_core.outputs import Generation, GenerationChunk, LLMResult

from fhe_llm import Answer, Chunk
from fhe_llm_langchain.connection import EncryptedModel
from fhe_llm_langchain.errors import langchain_errors
from fhe_llm_langchain.messages import metadata, usage


class EncryptedLLM(EncryptedModel, BaseLLM):
    """Continues a text that only this process sees. For chats, tools and schemas use
    :class:`fhe_llm_langchain.ChatEncrypted`."""

    def get_token_ids(self, text: str) -> list[int]:
        """Token ids from the model's own tokenizer, which comes from the proxy."""
        return self.connect().encode(text)

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> LLMResult:
        with langchain_errors():
            client, options = self._call(stop, kwargs)
            return _result([client.generate(prompt, **options) for prompt in prompts])

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,  # noqa: ARG002
        **kwargs: Any,
    ) -> LLMResult:
        with langchain_errors():
            client, options = self._call(stop, kwargs)
            return _result([await client.agenerate(prompt, **options) for prompt in prompts])

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        with langchain_errors():
            client, options = self._call(stop, kwargs)
            with closing(client.stream(prompt, **options)) as chunks:
                for chunk in chunks:
                    made = _chunk(chunk)
                    if run_manager:
                        run_manager.on_llm_new_token(made.text, chunk=made)
                    yield made

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        with langchain_errors():
            client, options = self._call(stop, kwargs)
            async with aclosing(client.astream(prompt, **options)) as chunks:
                async for chunk in chunks:
                    made = _chunk(chunk)
                    if run_manager:
                        await run_manager.on_llm_new_token(made.text, chunk=made)
                    yield made

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = "fhe-llm"
        return params

    @property
    def _llm_type(self) -> str:
        return "fhe-llm"


def _info(answer: Answer) -> dict[str, Any]:
    return {**metadata(answer), "usage": dict(usage(answer))}


def _chunk(chunk: Chunk) -> GenerationChunk:
    return GenerationChunk(text=chunk.text, generation_info=_info(chunk.answer) if chunk.answer else None)


def _result(answers: list[Answer]) -> LLMResult:
    generations = [[Generation(text=answer.text, generation_info=_info(answer))] for answer in answers]
    return LLMResult(
        generations=generations, llm_output={"model_name": answers[0].receipt.model} if answers else {}
    )
