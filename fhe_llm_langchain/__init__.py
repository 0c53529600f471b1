"""LangChain models whose prompts nobody else can read: ``ChatEncrypted`` first of all.

``ChatEncrypted(base_url=...)`` goes where any chat model goes; ``privacy_receipt(message)`` says what an answer cost.
``ChatPrivateProvider`` is for closed models, which read text: a mechanism changes it, and a budget pays.
"""

from fhe_llm_langchain.caches import EncryptedCache
from fhe_llm_langchain.chat_models import ChatEncrypted
from fhe_llm_langchain.llms import EncryptedLLM
from fhe_llm_langchain.messages import privacy_receipt
from fhe_llm_langchain.private_provider import ChatPrivateProvider

__all__ = ["ChatEncrypted", "ChatPrivateProvider", "EncryptedCache", "EncryptedLLM", "privacy_receipt"]
