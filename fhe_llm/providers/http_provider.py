"""A provider over HTTP: one logic for blocking and async calls, whole and streamed, with any :class:`Dialect`."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import ssl
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, ExitStack, aclosing, closing
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypedDict

import httpx

from fhe_llm.errors import ProviderRequestError, RequestError
from fhe_llm.loops import LoopTransports
from fhe_llm.models.messages import plain_messages
from fhe_llm.providers.api_keys import ApiKey, ApiKeySource, checked_address
from fhe_llm.providers.circuit import shared_circuit
from fhe_llm.providers.contract import ProviderAnswer, ProviderChunk, ProviderRequest
from fhe_llm.providers.dialect import Dialect
from fhe_llm.providers.exchange import Call, Exchange, encoded
from fhe_llm.providers.retries import attempts
from fhe_llm.providers.wires import AsyncWire, Wire

TIMEOUT: Final = 300.0
CHUNK_TIMEOUT: Final = 60.0
MAX_RETRIES: Final = 2


class HttpSettings(TypedDict, total=False):
    """Keyword arguments of every provider over HTTP.

    ``api_key``: a string, a secret, or a function asked before each request (default: the environment). ``base_url``:
    another address of the same API. ``timeout``: seconds for a call with all its retries. ``chunk_timeout``: seconds a
    stream may be silent once it began. ``max_retries``: how often a request that got no answer is sent again.
    ``allow_insecure``: plain http to other hosts.
    """

    api_key: ApiKeySource | None
    base_url: str | None
    timeout: float
    chunk_timeout: float
    max_retries: int
    allow_insecure: bool


@dataclass(frozen=True, slots=True)
class Home:
    """Where a provider is unless ``base_url`` says otherwise, and the environment's variable for its key."""

    url: str
    key_variable: str | None = None
    key_required: bool = True


class HttpProvider:
    """A :class:`fhe_llm.providers.Provider`. Threads, event loops and forked children may use one object."""

    def __init__(self, dialect: Dialect, model: str, home: Home, settings: HttpSettings) -> None:
        """Checks what can be checked without network. Raises :class:`RequestError` (an unknown setting),
        :class:`ProviderRequestError`, :class:`fhe_llm.errors.ProviderAuthError`."""
        name = dialect.name
        if unknown := sorted(settings.keys() - HttpSettings.__annotations__.keys()):
            known = ", ".join(HttpSettings.__annotations__)
            raise RequestError(f"cannot open {name}: there is no setting {unknown[0]!r}. Use one of {known}.")
        if not isinstance(model, str) or not model:
            raise _refusal(name, "the model", "its name is empty")
        self._dialect, self._model = dialect, model
        self._address = checked_address(
            settings.get("base_url") or home.url,
            provider=name,
            allow_insecure=settings.get("allow_insecure", False),
        )
        self._timeout = _seconds(name, "timeout", settings.get("timeout", TIMEOUT))
        self._chunk_timeout = _seconds(name, "chunk_timeout", settings.get("chunk_timeout", CHUNK_TIMEOUT))
        self._retries = settings.get("max_retries", MAX_RETRIES)
        if isinstance(self._retries, bool) or not isinstance(self._retries, int) or self._retries < 0:
            raise _refusal(name, "max_retries", "it is not a whole number from 0")
        self._key = ApiKey(
            settings.get("api_key"), provider=name, variable=home.key_variable, required=home.key_required
        )
        self._clients: dict[int, httpx.Client] = {}
        self._async = LoopTransports(
            lambda: httpx.AsyncClient(**_CLIENT, verify=_certificates()), httpx.AsyncClient.aclose
        )

    @property
    def name(self) -> str:
        """The provider's name."""
        return self._dialect.name

    @property
    def model(self) -> str:
        """The model asked for."""
        return self._model

    def check(self, request: ProviderRequest) -> None:
        """Raises what a call would raise before it sends anything: :class:`ProviderRequestError`,
        :class:`fhe_llm.errors.RequestError`."""
        encoded(self._dialect, self._checked(request), self._model, streamed=True)

    def complete(self, request: ProviderRequest) -> ProviderAnswer:
        """See :class:`fhe_llm.providers.Provider`. Raises :class:`fhe_llm.errors.ProviderError` subclasses."""
        with closing(self._pieces(request, streamed=False)) as pieces:
            return _answer_of(list(pieces))

    def stream(self, request: ProviderRequest) -> Generator[ProviderChunk, None, None]:
        """See :class:`fhe_llm.providers.Provider`."""
        return self._pieces(request, streamed=True)

    async def acomplete(self, request: ProviderRequest) -> ProviderAnswer:
        """See :class:`fhe_llm.providers.Provider`."""
        async with aclosing(self._apieces(request, streamed=False)) as pieces:
            return _answer_of([piece async for piece in pieces])

    def astream(self, request: ProviderRequest) -> AsyncGenerator[ProviderChunk, None]:
        """See :class:`fhe_llm.providers.Provider`."""
        return self._apieces(request, streamed=True)

    def close(self) -> None:
        """Close connections of blocking calls."""
        opened = self._clients.pop(os.getpid(), None)
        if opened is not None:
            opened.close()

    async def aclose(self) -> None:
        """:meth:`close`, and the connections of async calls."""
        await self._async.aclose()
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._model!r}, base_url={self._address!r})"

    def _pieces(self, request: ProviderRequest, *, streamed: bool) -> Generator[ProviderChunk, None, None]:
        call = self._call(request, self._key.get(), streamed=streamed)
        with ExitStack() as opened:
            for attempt in attempts(call, self._retries):
                with attempt, ExitStack() as trying:
                    exchange = Exchange(call)
                    trying.callback(exchange.end)
                    wire = trying.enter_context(closing(Wire(self._blocking())))
                    chunks = wire.run(exchange.begin())
                    opened.push(trying.pop_all())
            yield from chunks
            while not exchange.finished:
                yield from wire.run(exchange.proceed())

    async def _apieces(
        self, request: ProviderRequest, *, streamed: bool
    ) -> AsyncGenerator[ProviderChunk, None]:
        call = self._call(request, await self._key.aget(), streamed=streamed)
        async with AsyncExitStack() as opened:
            async for attempt in attempts(call, self._retries):
                with attempt:
                    async with AsyncExitStack() as trying:
                        exchange = Exchange(call)
                        trying.callback(exchange.end)
                        wire = AsyncWire(await self._async.get())
                        trying.push_async_callback(wire.close)
                        chunks = await wire.run(exchange.begin())
                        opened.push_async_exit(trying.pop_all())
            for chunk in chunks:
                yield chunk
            while not exchange.finished:
                for chunk in await wire.run(exchange.proceed()):
                    yield chunk

    def _call(self, request: ProviderRequest, key: str | None, *, streamed: bool) -> Call:
        checked = self._checked(request)
        return Call(
            dialect=self._dialect,
            model=self._model,
            url=self._address + self._dialect.path,
            headers={
                "content-type": "application/json",
                "accept": "text/event-stream" if streamed else "application/json",
                "accept-encoding": "identity",  # a bound on bytes is one on text
                **self._dialect.headers(key),
            },
            body=encoded(self._dialect, checked, self._model, streamed=streamed),
            private=f"{json.dumps(checked.messages, ensure_ascii=False)} {key}",
            streamed=streamed,
            timeout=self._timeout,
            chunk_timeout=self._chunk_timeout,
            deadline=time.monotonic() + self._timeout,
            circuit=shared_circuit(self._dialect.name, self._address),
        )

    def _checked(self, request: ProviderRequest) -> ProviderRequest:
        plain = dataclasses.replace(request, messages=tuple(plain_messages(request.messages)))
        self._dialect.check(plain)
        return plain

    def _blocking(self) -> httpx.Client:
        """This process's client. A forked child leaves its parent's alone, whose sockets are the parent's; there is no
        lock, which the fork might find taken."""
        process = os.getpid()
        found = self._clients.get(process)
        if found is None:
            made = httpx.Client(**_CLIENT, verify=_certificates())
            found = self._clients.setdefault(process, made)
            if found is not made:
                made.close()  # another thread was first
        return found


_CLIENT: Final[dict[str, Any]] = {"headers": {"user-agent": "fhe-llm"}, "follow_redirects": False}


@cache
def _certificates() -> ssl.SSLContext:
    """Those of the system. Reading them takes longer than all else in a client, and each event loop has its own."""
    return httpx.create_ssl_context()


def _answer_of(pieces: list[ProviderChunk]) -> ProviderAnswer:
    answer = pieces[-1].answer
    assert answer is not None  # noqa: S101  an exchange ends with one or raises
    return answer


def _seconds(provider: str, name: str, value: float) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise _refusal(provider, name, "it is not a number of seconds above 0")
    return float(value)


def _refusal(provider: str, what: str, cause: str) -> ProviderRequestError:
    return ProviderRequestError(f"cannot use {what} for {provider}: {cause}. Change it.", provider=provider)
