"""What tests of text that leaves share: words that must not, a mechanism that remembers its draws, ways to ask."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
from langchain_core.messages import BaseMessage, convert_to_messages
from llama_index.core.llms import ChatMessage
from provider_server import (
    ANTHROPIC_KEY,
    CLAUDE,
    GPT,
    HUGGINGFACE_KEY,
    LLAMA,
    OPENAI_KEY,
    ProviderServer,
)

from fhe_llm.privacy import Account, Budget, Protected, TokenMechanism
from fhe_llm.privacy.embedding_table import EmbeddingTable
from fhe_llm.privacy.events import TokensReplaced
from fhe_llm.providers import PrivateProviderLLM, Provider, open_provider
from fhe_llm_langchain.private_provider import ChatPrivateProvider
from fhe_llm_llamaindex.private_provider import PrivateProviderLLM as LlamaIndexLLM

Messages = list[dict[str, Any]]
EPSILON: Final = 2.0
PUBLIC: Final = tuple(
    """the a is was in on of and my your he she it has had with please tell about what why how doctor house river
    letter money green small old new ill well be kind to . , ? ! : ( )""".split()  # noqa: SIM905 - words read like this
)


def canary() -> str:
    """A word that occurs nowhere by chance: 64 random bits."""
    return f"q{secrets.token_hex(8)}"


@dataclass(frozen=True)
class Canaries:
    """``known`` are words of the table, so that a draw may bring any of them; ``strange`` ones no draw can bring."""

    known: tuple[str, ...] = field(default_factory=lambda: tuple(canary() for _ in range(6)))
    strange: tuple[str, ...] = field(default_factory=lambda: tuple(canary() for _ in range(6)))

    @property
    def all(self) -> tuple[str, ...]:
        """Both kinds."""
        return self.known + self.strange

    def table(self, *, elsewhere: bool = True) -> EmbeddingTable:
        """A table with the known ones among public words, and where ``elsewhere``, a vector for any other string."""
        words = [*PUBLIC, *self.known]
        vectors = np.random.default_rng(7).normal(size=(len(words), 8))
        return EmbeddingTable(words, vectors, elsewhere=_vector if elsewhere else None)

    def text(self, n: int) -> str:
        """A question with three of each kind; which depends on ``n``."""
        one, two, three = (self.known[(n + k) % 6] for k in range(3))
        four, five, six = (self.strange[(n + k) % 6] for k in range(3))
        return f"Tell my doctor, {one.upper()} {four}: {two} is ill? {five} and {three} ({six.title()})."


def _vector(token: str) -> Any:
    seed = int.from_bytes(sha256(token.encode()).digest()[:4])
    return np.random.default_rng(seed).normal(size=8)


class RememberingMechanism:
    """A :class:`TokenMechanism` whose draws can be asked for."""

    def __init__(self, inner: TokenMechanism) -> None:
        self._inner = inner
        self.name = inner.name
        self.drawn: list[str] = []

    def quote(self, texts: Sequence[str]) -> TokensReplaced:
        return self._inner.quote(texts)

    def protect(self, texts: Sequence[str]) -> Protected[tuple[str, ...]]:
        protected = self._inner.protect(texts)
        self.drawn += protected.value
        return protected


def accounted(server: ProviderServer, drawn: Sequence[str], canaries: Canaries) -> None:
    """Every text the server received was drawn (or was its own answer), and no canary is anywhere else.

    Exact also for words of the table: what was drawn is taken out of everything that arrived, and nothing may be left.
    """
    for request in server.received:
        for message in spoken(request.json):
            assert message in drawn, f"request {request.number} has a text that no draw brought"
    arrived = server.received_text()
    for text in sorted({*drawn}, key=len, reverse=True):
        arrived = arrived.replace(text, "").replace(json.dumps(text)[1:-1], "")
    found = leaks({"what the server received": arrived.encode()}, canaries.all)
    assert not found, f"{found} came otherwise than drawn"


def spoken(body: dict[str, Any]) -> Iterator[str]:
    """The texts of a request's system prompt, users and tools; the assistant's are the server's own."""
    system = body.get("system", [])
    yield from _texts(system)
    for message in body["messages"]:
        if message["role"] != "assistant":
            yield from _texts(message["content"])


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
        return
    for block in content:
        yield from _texts(block["text"] if block["type"] == "text" else block.get("content", ""))


def leaks(places: dict[str, bytes], words: Sequence[str]) -> list[tuple[str, str]]:
    """Which words are in which place, in UTF-8 or UTF-16, whatever their case."""
    found = []
    for place, data in places.items():
        plain = data.lower()
        found += [
            (place, word)
            for word in words
            if word.lower().encode() in plain or word.lower().encode("utf-16-le") in plain
        ]
    return found


def files(folder: Path) -> dict[str, bytes]:
    """Every file below."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def everything_of(error: BaseException) -> bytes:
    """An error as anybody may print it: with its traceback, its chain and its attributes."""
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in chain:
        chain.append(following)
        following = following.__cause__ or following.__context__
    told = ["".join(traceback.format_exception(error))]
    told += [repr(one) + str(one) + repr(vars(one)) for one in chain]
    return "\n".join(told).encode()


@dataclass
class Setting:
    """One principal at one provider."""

    server: ProviderServer
    folder: Path
    provider_name: str = "openai"
    canaries: Canaries = field(default_factory=Canaries)
    limit: float = 10_000
    max_retries: int = 2
    timeout: float = 60
    public_system: bool = False
    elsewhere: bool = True
    url: str | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.mechanism = RememberingMechanism(
            TokenMechanism(EPSILON, table=self.canaries.table(elsewhere=self.elsewhere))
        )
        self.account = Account.open(
            "alice", self.folder / "ledger.sqlite", Budget.of(self.limit, "epsilon", "day")
        )

    def provider(self, **settings: Any) -> Provider:
        """An adapter that talks to the server."""
        model, url, key = {
            "openai": (GPT, self.server.openai_url, OPENAI_KEY),
            "anthropic": (CLAUDE, self.server.anthropic_url, ANTHROPIC_KEY),
            "huggingface": (LLAMA, self.server.huggingface_url, HUGGINGFACE_KEY),
        }[self.provider_name]
        given = {"max_retries": self.max_retries, "timeout": self.timeout, **settings}
        return open_provider(self.provider_name, model, api_key=key, base_url=self.url or url, **given)

    def guard(self) -> dict[str, Any]:
        """What makes a model private."""
        return {
            "mechanism": self.mechanism,
            "budget": self.account,
            "public_system": self.public_system,
        }


@dataclass
class Front:
    """One way to ask. ``ask`` gives the whole answer as text; ``hang_up`` leaves after the first piece, if there are
    pieces; ``made`` holds every object a host program may print."""

    ask: Callable[[Messages], str]
    hang_up: Callable[[Messages, threading.Event], None] | None
    made: list[Any]


def core_front(how: str, setting: Setting, **guard: Any) -> Front:
    """:class:`fhe_llm.providers.PrivateProviderLLM`."""
    model = PrivateProviderLLM(setting.provider(), **(guard or setting.guard()))
    made: list[Any] = [model]

    def ask(messages: Messages) -> str:
        made.append(model.quote(messages))
        if how == "chat":
            answer = model.chat(messages)
        elif how == "stream":
            answer = [chunk.answer for chunk in model.stream(messages)][-1]  # type: ignore[assignment]
        else:
            answer = asyncio.run(aask(messages))
        made.extend((answer.receipt, answer.receipt.to_dict(), answer.receipt._repr_html_(), repr(answer)))
        return answer.text

    async def aask(messages: Messages) -> Any:
        try:
            if how == "achat":
                return await model.achat(messages)
            async with aclosing(model.astream(messages)) as chunks:
                return [chunk.answer async for chunk in chunks][-1]
        finally:
            await model.aclose()

    def hang_up(messages: Messages, arrived: threading.Event) -> None:
        if how == "stream":
            with closing(model.stream(messages)) as chunks:
                next(chunks)
        else:
            asyncio.run(ahang_up(messages))

    async def ahang_up(messages: Messages) -> None:
        try:
            async with aclosing(model.astream(messages)) as chunks:
                await anext(chunks)
        finally:
            await model.aclose()

    return Front(ask, hang_up if "stream" in how else None, made)


def langchain_front(how: str, setting: Setting, **guard: Any) -> Front:
    """:class:`fhe_llm_langchain.private_provider.ChatPrivateProvider`."""
    model = ChatPrivateProvider(provider=setting.provider(), **(guard or setting.guard()))
    made: list[Any] = [model]

    def ask(messages: Messages) -> str:
        turns = convert_to_messages(messages)
        made.append(model.quote(turns))
        message: Any
        if how == "invoke":
            message = model.invoke(turns)
        elif how == "stream":
            message = _sum(list(model.stream(turns)))
        else:
            message = asyncio.run(aask(turns))
        made.append(message.response_metadata)
        return str(message.text)

    async def aask(turns: list[BaseMessage]) -> Any:
        try:
            if how == "ainvoke":
                return await model.ainvoke(turns)
            return _sum([chunk async for chunk in model.astream(turns)])
        finally:
            await model.aclose()

    def hang_up(messages: Messages, arrived: threading.Event) -> None:
        turns = convert_to_messages(messages)
        if how == "stream":
            chunks: Any = model.stream(turns)
            next(chunks)
            chunks.close()
        else:
            asyncio.run(ahang_up(turns))

    async def ahang_up(turns: list[BaseMessage]) -> None:
        try:
            chunks: Any = model.astream(turns)
            await anext(chunks)
            await chunks.aclose()
        finally:
            await model.aclose()

    return Front(ask, hang_up if "stream" in how else None, made)


def llamaindex_front(how: str, setting: Setting, **guard: Any) -> Front:
    """:class:`fhe_llm_llamaindex.private_provider.PrivateProviderLLM`."""
    model = LlamaIndexLLM(setting.provider(), **(guard or setting.guard()))
    made: list[Any] = [model]

    def ask(messages: Messages) -> str:
        turns = _turns(messages)
        made.append(model.quote(turns))
        if how == "chat":
            response = model.chat(turns)
        elif how == "stream_chat":
            response = list(model.stream_chat(turns))[-1]
        else:
            response = asyncio.run(aask(turns))
        made.append(response.additional_kwargs)
        return response.message.content or ""

    async def aask(turns: list[ChatMessage]) -> Any:
        try:
            if how == "achat":
                return await model.achat(turns)
            return [response async for response in await model.astream_chat(turns)][-1]
        finally:
            await model.aclose()

    def hang_up(messages: Messages, arrived: threading.Event) -> None:
        turns = _turns(messages)
        if how == "stream_chat":
            responses: Any = model.stream_chat(turns)
            next(responses)
            responses.close()
        else:
            asyncio.run(ahang_up(turns))

    async def ahang_up(turns: list[ChatMessage]) -> None:
        try:
            responses: Any = await model.astream_chat(turns)
            await anext(responses)
            await responses.aclose()
        finally:
            await model.aclose()

    return Front(ask, hang_up if "stream" in how else None, made)


def _sum(chunks: list[Any]) -> Any:
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return whole


def _turns(messages: Messages) -> list[ChatMessage]:
    return [ChatMessage(message["content"], role=message["role"]) for message in messages]


_WAYS: Final = {
    "core": (core_front, ("chat", "stream", "achat", "astream")),
    "langchain": (langchain_front, ("invoke", "stream", "ainvoke", "astream")),
    "llamaindex": (llamaindex_front, ("chat", "stream_chat", "achat", "astream_chat")),
}
FRONTS: Final[dict[str, Callable[..., Front]]] = {
    f"{name} {how}": partial(front, how) for name, (front, ways) in _WAYS.items() for how in ways
}
