"""A provider at the local server, the four ways to ask it, and what a message must never hold."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterator, Mapping
from contextlib import aclosing, closing
from typing import Any, ClassVar, Final

import pytest
from provider_server import ANTHROPIC_KEY, HUGGINGFACE_KEY, OPENAI_KEY, ProviderServer

from fhe_llm.errors import FheLlmError, ProviderError
from fhe_llm.providers import HttpProvider, ProviderAnswer, ProviderRequest, open_provider, retries

WAYS: Final = ("complete", "stream", "acomplete", "astream")
STREAMS: Final = ("stream", "astream")
SECRET: Final = "Marguerite_Yourcenar"
WEATHER: Final = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}


def asked(*messages: dict[str, Any], **settings: Any) -> ProviderRequest:
    """A request; without messages one that holds the secret."""
    given = messages or ({"role": "user", "content": f"Who is {SECRET}?"},)
    return ProviderRequest(messages=given, **settings)


def ask(provider: HttpProvider, way: str, request: ProviderRequest | None = None) -> ProviderAnswer:
    """The answer, whichever way; pieces of a stream must join to it, and the last alone has it."""
    request = request or asked()
    match way:
        case "complete":
            return provider.complete(request)
        case "acomplete":
            return asyncio.run(provider.acomplete(request))
        case "stream":
            with closing(provider.stream(request)) as stream:
                chunks = list(stream)
        case _:
            chunks = asyncio.run(_collected(provider, request))
    assert [chunk.answer is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    answer = chunks[-1].answer
    assert answer is not None
    assert "".join(chunk.text for chunk in chunks) == answer.text
    return answer


async def _collected(provider: HttpProvider, request: ProviderRequest) -> list[Any]:
    async with aclosing(provider.astream(request)) as stream:
        return [chunk async for chunk in stream]


def refused(
    kind: type[FheLlmError], provider: HttpProvider, way: str, request: ProviderRequest | None = None
) -> Any:
    """The error, whose whole trace holds neither what was asked nor a key."""
    with pytest.raises(FheLlmError) as caught:
        ask(provider, way, request)
    error = caught.value
    assert type(error) is kind
    assert_silent(error)
    return error


def assert_silent(error: BaseException) -> None:
    """Nothing private in the message, nor in any exception behind it with what hangs on them."""
    for behind in _chain(error):
        shown = f"{behind!r} {behind} {vars(behind)} {''.join(traceback.format_exception_only(behind))}"
        for secret in (SECRET, OPENAI_KEY, ANTHROPIC_KEY, HUGGINGFACE_KEY):
            assert secret not in shown
        assert not hasattr(behind, "request")  # httpx's errors carry the headers
        assert not hasattr(behind, "doc")  # json's carry the text


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def refused_as(llm: HttpProvider, way: str) -> ProviderError:
    """The error that comes, of whatever class."""
    with pytest.raises(ProviderError) as caught:
        ask(llm, way)
    assert_silent(caught.value)
    return caught.value


def ask_status(llm: HttpProvider, way: str) -> int:
    """Its status."""
    return refused_as(llm, way).status


class Adapted:
    """One provider at the local server. ``failures`` are the server's names of errors: the class raised, and whether
    the request is sent again."""

    provider: ClassVar[str]
    model: ClassVar[str]
    key: ClassVar[str | None]
    failures: ClassVar[Mapping[str, tuple[type[ProviderError], bool]]]
    passing: ClassVar[str]
    """A failure that passes, with status 429."""
    down: ClassVar[str]
    """One that counts for the circuit."""
    told_by_message: ClassVar[frozenset[str]] = frozenset()
    """Errors that have no code of their own."""
    has_seed: ClassVar[bool] = True

    def url(self, server: ProviderServer) -> str:
        """Where the server speaks this API."""
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("FIRST_WAIT", "JITTER"):
            monkeypatch.setattr(retries, name, 0.001)

    @pytest.fixture
    def server(self, provider_server: ProviderServer) -> ProviderServer:
        return provider_server

    @pytest.fixture
    def llm(self, server: ProviderServer) -> Iterator[HttpProvider]:
        opened = self.open(server)
        yield opened
        opened.close()

    def open(self, server: ProviderServer, **settings: Any) -> HttpProvider:
        given = {"api_key": self.key, "base_url": self.url(server), "timeout": 15.0, **settings}
        opened = open_provider(self.provider, self.model, **given)
        assert isinstance(opened, HttpProvider)
        return opened
