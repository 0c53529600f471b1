"""Encrypted models in LlamaIndex: start with :class:`EncryptedLLM`, :func:`use_encrypted` and
:func:`encrypted_query_engine`."""

from fhe_llm_llamaindex.chat_engine import EncryptedChatEngine, EncryptedStream, encrypted_chat_engine
from fhe_llm_llamaindex.embeddings import LocalEmbedding
from fhe_llm_llamaindex.llms import EncryptedLLM
from fhe_llm_llamaindex.private_provider import PrivateProviderLLM
from fhe_llm_llamaindex.query_engine import EncryptedQueryEngine, encrypted_query_engine
from fhe_llm_llamaindex.settings import EncryptedSettings, use_encrypted

__all__ = [
    "EncryptedChatEngine",
    "EncryptedLLM",
    "EncryptedQueryEngine",
    "EncryptedSettings",
    "EncryptedStream",
    "LocalEmbedding",
    "PrivateProviderLLM",
    "encrypted_chat_engine",
    "encrypted_query_engine",
    "use_encrypted",
]
