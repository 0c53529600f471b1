"""Encrypted models in LlamaIndex: start with :class:`EncryptedLLM` and :func:`use_encrypted`."""

from fhe_llm_llamaindex.llms import EncryptedLLM

__all__ = ["EncryptedLLM"]
