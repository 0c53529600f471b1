"""An embedding model that runs on this machine."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from pydantic import PrivateAttr

from fhe_llm import SentenceEncoder


class LocalEmbedding(BaseEmbedding):
    """all-MiniLM-L6-v2 in this process (:class:`fhe_llm.SentenceEncoder`): English, 384 numbers, the first 256 tokens
    of a text. Its files (84 MB) are fetched when first used."""

    _cache_dir: Path | None = PrivateAttr()
    _encoder: SentenceEncoder | None = PrivateAttr(default=None)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    def __init__(self, *, cache_dir: str | Path | None = None, **llama_index: Any) -> None:
        super().__init__(**{"model_name": "all-MiniLM-L6-v2", "embed_batch_size": 32, **llama_index})
        self._cache_dir = Path(cache_dir) if cache_dir is not None else None

    @classmethod
    def class_name(cls) -> str:
        """The name in serialised forms."""
        return "fhe_llm_local_embedding"

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        with self._lock:
            if self._encoder is None:
                self._encoder = SentenceEncoder.load(self._cache_dir)
            encoder = self._encoder
        rows: list[list[float]] = encoder.encode(texts).tolist()
        return rows

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
