"""LangChain's integration suite with the real encrypted model: what needs a model that understands the question."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests

import fhe_llm
from fhe_llm_langchain import ChatEncrypted

pytestmark = pytest.mark.slow


class TestSmolLM2(ChatModelIntegrationTests):
    """Greedy; free text inside JSON with a penalty on repetition, without which a model of this size finds no end."""

    client: ClassVar[fhe_llm.EncryptedLLM]
    max_tokens: ClassVar[int]
    penalty: ClassVar[float]

    @pytest.fixture(autouse=True)
    def _share(self, request: pytest.FixtureRequest, smollm2_client: fhe_llm.EncryptedLLM) -> None:
        name, kind = request.node.name, type(self)
        long = any(word in name for word in ("structured", "json", "tool", "agent"))
        kind.client, kind.max_tokens = smollm2_client, 100 if long else 6
        kind.penalty = 1.2 if "structured_output" in name or "json" in name else 1.0

    @property
    def chat_model_class(self) -> type[ChatEncrypted]:
        return ChatEncrypted

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": self.client.model,
            "client": self.client,
            "max_tokens": self.max_tokens,
            "repetition_penalty": self.penalty,
        }

    @property
    def supports_json_mode(self) -> bool:
        return True
