"""The four ways to ask a provider, and what a message must never hold."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Iterator
from contextlib import aclosing, closing
from typing import Any, Final

import pytest
from provider_server import ANTHROPIC_KEY, HUGGINGFACE_KEY, OPENAI_KEY

from fhe_llm.errors import FheLlmError
from fhe_llm.providers import HttpProvider, ProviderAnswer, ProviderRequest

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


def refused(kind: type[FheLlmError], provider: HttpProvider, way: str, request: ProviderRequest | None = None) -> Any:
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
