"""``ChatPrivateProvider`` in LangChain, over the adapters, at a local server that speaks the providers' APIs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import langchain_core.exceptions as theirs
import numpy as np
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.load import dumps
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from obliging_model import obliging
from provider_server import (
    ANTHROPIC_KEY,
    CLAUDE,
    GPT,
    HUGGINGFACE_KEY,
    LLAMA,
    OPENAI_KEY,
    Failure,
    ProviderServer,
    Received,
    Reply,
    ToolCall,
)
from pydantic import BaseModel, Field

import fhe_llm.errors as ours
from fhe_llm.privacy import Account, Budget, Pseudonymiser, TokenMechanism
from fhe_llm.privacy.embedding_table import EmbeddingTable
from fhe_llm_langchain import ChatPrivateProvider


MICRO = 10**6
WORDS = "the a small old house doctor is my has letter please . ?".split()
NAMES = ("openai", "anthropic", "huggingface")


def connection(server: ProviderServer, name: str) -> dict[str, Any]:
    """Constructor arguments for one of the providers at the server."""
    model, url, key = {
        "openai": (GPT, server.openai_url, OPENAI_KEY),
        "anthropic": (CLAUDE, server.anthropic_url, ANTHROPIC_KEY),
        "huggingface": (LLAMA, server.huggingface_url, HUGGINGFACE_KEY),
    }[name]
    return {"provider": name, "model": model, "base_url": url, "api_key": key, "max_retries": 0}


@pytest.fixture
def clear(provider_server: ProviderServer) -> Iterator[ChatPrivateProvider]:
    """A model that sends text as it is."""
    with ChatPrivateProvider(**connection(provider_server, "openai"), guarantee="none") as model:
        yield model


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    """Fifty epsilon a day."""
    opened = Account.open("alice", tmp_path / "ledger.sqlite", Budget.of(50, "epsilon", "day"))
    yield opened
    opened.ledger.close()


@pytest.fixture
def private(provider_server: ProviderServer, account: Account) -> Iterator[ChatPrivateProvider]:
    """A model behind a mechanism at one epsilon a token."""
    table = EmbeddingTable(WORDS, np.eye(len(WORDS)))
    mechanism = TokenMechanism(1.0, table=table)
    with ChatPrivateProvider(
        **connection(provider_server, "openai"), mechanism=mechanism, budget=account, public_system=True
    ) as model:
        yield model


class Suite:
    """Arguments of LangChain's suites."""

    server: ClassVar[ProviderServer]

    @pytest.fixture(autouse=True)
    def _share(self, provider_server: ProviderServer) -> None:
        type(self).server = provider_server
        provider_server.always(obliging)

    @pytest.fixture
    def model(self, request: Any) -> Iterator[BaseChatModel]:
        model = ChatPrivateProvider(**self.chat_model_params)
        yield model
        asyncio.run(model.aclose())

    @property
    def chat_model_class(self) -> type[ChatPrivateProvider]:
        return ChatPrivateProvider

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**connection(self.server, "openai"), "guarantee": "none"}


class TestUnit(Suite, ChatModelUnitTests):  # type: ignore[misc]
    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"OPENAI_API_KEY": OPENAI_KEY}, {"provider": "openai", "model": GPT, "guarantee": "none"}, {}


class TestIntegration(Suite, ChatModelIntegrationTests):  # type: ignore[misc]
    @property
    def supports_json_mode(self) -> bool:
        return False
