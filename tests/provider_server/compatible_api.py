"""Servers that speak OpenAI's dialect more or less (vLLM, llama.cpp, gateways): no key, any model, and liberties that a
client must put up with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from provider_server.behaviours import Reply
from provider_server.dialect import Refused, Response, as_json
from provider_server.openai_api import OpenAiApi
from provider_server.recording import Received


class CompatibleApi(OpenAiApi):
    """``/any/v1/chat/completions``."""

    prefix = "/any/v1"

    def __init__(self) -> None:
        super().__init__("")

    def check(self, request: Received) -> dict[str, Any]:
        """See :class:`provider_server.dialect.Dialect`."""
        if request.path != f"{self.prefix}/chat/completions":
            raise Refused(Response(404, self.headers(), (b'{"detail":"Not Found"}',)))
        body = request.json
        if not isinstance(body, dict) or not body.get("messages"):
            error = {"object": "error", "message": "messages: Field required", "code": 400}
            raise Refused(Response(400, self.headers(), (as_json(error),)))
        return {"model": "local", **body}

    def events(self, body: dict[str, Any], reply: Reply) -> Iterator[bytes]:
        """With comments that keep the connection alive, CRLF, and usage beside the last choice."""
        yield b": keep-alive\r\n\r\n"
        for n, event in enumerate(super().events(body, reply)):
            yield event.replace(b"\n\n", b"\r\n\r\n")
            if n == 0 and reply.thinking:
                yield self.event(
                    {
                        "object": "chat.completion.chunk",
                        "choices": [
                            {
                                "index": 0,
                                "delta": {"reasoning_content": reply.thinking},
                                "finish_reason": None,
                            }
                        ],
                    }
                )

    def headers(self, content_type: str = "application/json") -> dict[str, str]:
        """No name for the request."""
        return {"content-type": content_type, "server": "uvicorn"}

    def answering(self, model: str) -> str:
        """As asked."""
        return model
