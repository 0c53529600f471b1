"""LlamaIndex's global settings, all of those that decide where text goes, at once."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Final, Self

import llama_index.core
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.indices.prompt_helper import PromptHelper
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.settings import Settings

from fhe_llm.errors import RequestError
from fhe_llm_llamaindex.llms import EncryptedLLM

CHUNK_TOKENS: Final = 256
"""The largest chunk: what small embedding models read, and few tokens to encrypt per passage."""
_SET: Final = (
    "_llm",
    "_embed_model",
    "_prompt_helper",
    "_chat_prompt_helper",
    "_node_parser",
    "_transformations",
)


def use_encrypted(llm: EncryptedLLM, embed_model: BaseEmbedding | str | None) -> EncryptedSettings:
    """Make ``llm`` and ``embed_model`` LlamaIndex's defaults, with chunks and prompts that fit the model's window,
    counted by its own tokenizer. Connects to the proxy.

    ``with use_encrypted(...):`` restores the settings before it, as does ``restore()``. Raises :class:`RequestError`
    without an embedding model: LlamaIndex would send every text that is indexed or searched to OpenAI. Raises what
    :meth:`EncryptedLLM.connect` raises.
    """
    if not isinstance(llm, EncryptedLLM):
        raise RequestError(
            f"cannot use {type(llm).__name__} as the model: it is not encrypted. Pass an EncryptedLLM."
        )
    if embed_model is None or embed_model == "default":
        raise RequestError(
            "cannot leave the embedding model open: LlamaIndex's default sends every text that is indexed or searched "
            "to OpenAI. Pass one that runs here, such as fhe_llm_llamaindex.LocalEmbedding()."
        )
    metadata = llm.metadata
    before = EncryptedSettings(
        {name: vars(Settings)[name] for name in _SET if name in vars(Settings)},
        llama_index.core.global_tokenizer,
    )
    Settings.tokenizer = llm.tokenizer
    Settings.llm = llm
    Settings.embed_model = embed_model
    Settings.prompt_helper = PromptHelper.from_llm_metadata(metadata, tokenizer=llm.tokenizer)
    for derived in ("_chat_prompt_helper", "_transformations"):
        if derived in vars(Settings):
            setattr(Settings, derived, None)
    size = min(CHUNK_TOKENS, metadata.context_window // 4)
    Settings.node_parser = SentenceSplitter(chunk_size=size, chunk_overlap=size // 8, tokenizer=llm.tokenizer)
    return before


class EncryptedSettings:
    """The settings before :func:`use_encrypted`."""

    def __init__(self, before: dict[str, Any], tokenizer: Any) -> None:
        self._before: dict[str, Any] | None = before
        self._tokenizer = tokenizer

    def restore(self) -> None:
        """Put them back; the second time nothing happens."""
        if self._before is not None:
            for name, value in self._before.items():
                setattr(Settings, name, value)
            llama_index.core.global_tokenizer = self._tokenizer
            self._before = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()
