"""A provider that records what it is sent, and a mechanism whose draws can be told apart."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any

from fhe_llm.errors import ProviderRequestError
from fhe_llm.privacy.events import TokensReplaced
from fhe_llm.privacy.mechanism import Protected
from fhe_llm.providers.contract import (
    ProviderAnswer,
    ProviderChunk,
    ProviderRequest,
    ProviderToolCall,
    ProviderUsage,
)


class RecordingProvider:
    """Answers ``replies`` in turn, the last one for ever; an exception among them is raised."""

    name = "recorder"
    model = "recorded-1"

    def __init__(self, *replies: str | Exception, tool_calls: Sequence[ProviderToolCall] = ()) -> None:
        self.replies = list(replies) or ["fine"]
        self.tool_calls = tuple(tool_calls)
        self.requests: list[ProviderRequest] = []
        self.closed = 0

    def check(self, request: ProviderRequest) -> None:
        if request.seed == 13:
            raise ProviderRequestError("cannot send seed to recorder: 13 is no seed. Drop it.", provider=self.name)

    def complete(self, request: ProviderRequest) -> ProviderAnswer:
        self.requests.append(request)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Exception):
            raise reply
        return ProviderAnswer(
            text=reply,
            finish="tool_calls" if self.tool_calls else "stop",
            model=self.model,
            tool_calls=self.tool_calls,
            usage=ProviderUsage(3, 4),
            request_id=f"r{len(self.requests)}",
        )

    def stream(self, request: ProviderRequest) -> Generator[ProviderChunk, None, None]:
        answer = self.complete(request)
        try:
            for start in range(0, len(answer.text), 3):
                yield ProviderChunk(text=answer.text[start : start + 3])
            yield ProviderChunk(text="", answer=answer)
        finally:
            self.closed += 1

    async def acomplete(self, request: ProviderRequest) -> ProviderAnswer:
        return self.complete(request)

    async def astream(self, request: ProviderRequest) -> AsyncGenerator[ProviderChunk, None]:
        for chunk in self.stream(request):
            yield chunk

    def close(self) -> None:
        self.closed += 1

    async def aclose(self) -> None:
        self.closed += 1

    def sent(self) -> str:
        """Everything that left, as text."""
        return json.dumps([[dict(m) for m in request.messages] for request in self.requests])


class NumberedMechanism:
    """Replaces each word by the number of the draw, ε = 1 a word: every draw shows."""

    name = "numbered"

    def __init__(self, failing: Exception | None = None) -> None:
        self._numbers = itertools.count(1)
        self.failing = failing

    def quote(self, texts: Sequence[str]) -> TokensReplaced:
        count = sum(len(text.split()) for text in texts)
        return TokensReplaced(tokens=count, epsilon=1.0, unit="epsilon", mechanism=self.name)

    def protect(self, texts: Sequence[str]) -> Protected[tuple[str, ...]]:
        if self.failing is not None:
            raise self.failing
        drawn = tuple(" ".join(f"w{next(self._numbers)}" for _ in text.split()) for text in texts)
        return Protected(drawn, self.quote(texts))


class Rewriter(NumberedMechanism):
    """Re-writes the remote answer against the original."""

    def rewrite(self, original: str, remote_answer: str) -> str:
        return f"<{original}|{remote_answer}>"

    async def arewrite(self, original: str, remote_answer: str) -> str:
        return self.rewrite(original, remote_answer)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}
