"""Which client half computes which architecture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from fhe_llm.models.bundle import ClientBundle
from fhe_llm.models.config import ModelConfig
from fhe_llm.models.kv_cache import KVCache
from fhe_llm.models.llama import LlamaClientHalf
from fhe_llm.models.steps import Forward


class ClientHalf(Protocol):
    """The trusted half of a model: everything but its linear layers."""

    config: ModelConfig

    def new_cache(self) -> KVCache:
        """An empty cache for one conversation."""
        ...

    def forward(
        self, token_ids: Sequence[int], cache: KVCache, *, logits: Literal["last", "all"] = "last"
    ) -> Forward:
        """Extend ``cache`` by the tokens; returns logits [1 or T, vocab]."""
        ...


def client_half(bundle: ClientBundle) -> ClientHalf:
    """The client half for the bundle's architecture (every architecture a config can name is covered)."""
    return {"llama": LlamaClientHalf}[bundle.config.architecture](bundle)
