"""What tests of LlamaIndex share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding

from fhe_llm import KeyRing
from fhe_llm_llamaindex import EncryptedLLM

MakeLLM = Callable[..., EncryptedLLM]


class LetterEmbedding(BaseEmbedding):
    """How often each letter occurs: enough to find a text by itself, without any files."""

    def _get_text_embedding(self, text: str) -> list[float]:
        return [text.lower().count(chr(letter)) + 1e-3 for letter in range(ord("a"), ord("z") + 1)]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


def makers(base_url: str, ring: KeyRing, cache: Path, model: str = "tiny") -> Iterator[MakeLLM]:
    """A function that makes models of one proxy, which are closed with the last test."""
    made: list[EncryptedLLM] = []

    def make(**given: Any) -> EncryptedLLM:
        arguments = {"base_url": base_url, "keys": ring, "cache_dir": cache, "max_tokens": 5, **given}
        made.append(EncryptedLLM(model, **arguments))
        return made[-1]

    yield make
    for llm in made:
        llm.close()
