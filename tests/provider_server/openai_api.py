"""OpenAI's chat completions: https://platform.openai.com/docs/api-reference/chat, and its error codes."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any, Final

from provider_server.behaviours import Failure, Reply
from provider_server.dialect import (
    CONTEXT_TOKENS,
    Refused,
    Response,
    as_json,
    counts,
    pieces,
    token,
    tokens,
)
from provider_server.openai_checks import Invalid, check_body
from provider_server.recording import Received

FAILURES: Final[dict[str, tuple[int, str, str, str | None]]] = {
    # name: status, type, message, code
    "invalid_api_key": (
        401,
        "invalid_request_error",
        "Incorrect API key provided. You can find your API key at https://platform.openai.com/account/api-keys.",
        "invalid_api_key",
    ),
    "permission": (
        403,
        "invalid_request_error",
        "You have insufficient permissions for this operation.",
        "insufficient_permissions",
    ),
    "model_not_found": (
        404,
        "invalid_request_error",
        "The model `gone` does not exist or you do not have access to it.",
        "model_not_found",
    ),
    "context_length_exceeded": (
        400,
        "invalid_request_error",
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens. "
        "Please reduce the length of the messages.",
        "context_length_exceeded",
    ),
    "content_filter": (
        400,
        "invalid_request_error",
        "The response was filtered due to the prompt triggering a content management policy.",
        "content_filter",
    ),
    "conflict": (409, "invalid_request_error", "The resource was updated by another request.", None),
    "unprocessable": (422, "invalid_request_error", "The request could not be processed.", None),
    "rate_limit": (
        429,
        "requests",
        "Rate limit reached for requests per min (RPM): Limit 3, Used 3, Requested 1. Please try again in 20s.",
        "rate_limit_exceeded",
    ),
    "insufficient_quota": (
        429,
        "insufficient_quota",
        "You exceeded your current quota, please check your plan and billing details.",
        "insufficient_quota",
    ),
    "timeout": (408, "invalid_request_error", "The request timed out.", None),
    "server_error": (
        500,
        "server_error",
        "The server had an error while processing your request. Sorry about that!",
        None,
    ),
    "bad_gateway": (502, "server_error", "Bad gateway.", None),
    "overloaded": (
        503,
        "service_unavailable_error",
        "The model is currently overloaded. Please try again later.",
        "server_is_overloaded",
    ),
    "gateway_timeout": (504, "server_error", "Gateway timeout.", None),
}


class OpenAiApi:
    """``/v1/chat/completions``; ``key`` is the only key it knows."""

    prefix = "/v1"

    def __init__(self, key: str) -> None:
        self._key = key

    def check(self, request: Received) -> dict[str, Any]:
        """See :class:`provider_server.dialect.Dialect`."""
        if request.path != f"{self.prefix}/chat/completions":
            raise self._refused(Invalid(f"Invalid URL ({request.method} {request.path})", status=404))
        if request.method != "POST":
            raise self._refused(
                Invalid("Not allowed to use this method on /v1/chat/completions.", status=405)
            )
        self._authorise(request)
        try:
            body = request.json
        except ValueError:
            raise self._refused(
                Invalid("We could not parse the JSON body of your request. The API expects a JSON payload.")
            ) from None
        try:
            self.check_body(body)
        except Invalid as error:
            raise self._refused(error) from None
        return body  # type: ignore[no-any-return]

    def check_body(self, body: Any) -> None:
        """Raises :class:`Invalid`."""
        check_body(body)
        if (found := tokens(body["messages"])) > CONTEXT_TOKENS:
            raise Invalid(
                f"This model's maximum context length is {CONTEXT_TOKENS} tokens. However, your messages resulted in "
                f"{found} tokens. Please reduce the length of the messages.",
                "messages",
                "context_length_exceeded",
            )

    def reply(self, body: dict[str, Any], reply: Reply) -> Response:
        """See :class:`provider_server.dialect.Dialect`."""
        if body.get("stream"):
            return Response(
                200, self.headers("text/event-stream; charset=utf-8"), tuple(self.events(body, reply)), True
            )
        message: dict[str, Any] = {"role": "assistant", "content": reply.text or None, "refusal": None}
        message["annotations"] = []
        if reply.tool_calls:
            message["tool_calls"] = [self._call(n, reply) for n in range(len(reply.tool_calls))]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finished}
        whole = {
            **self._frame(body, "chat.completion"),
            "choices": [choice],
            "usage": self.usage(body, reply),
            "service_tier": "default",
        }
        return Response(200, self.headers(), (as_json(whole),))

    def failure(self, body: dict[str, Any], failure: Failure) -> Response:
        """See :class:`provider_server.dialect.Dialect`."""
        status, error = self.error(failure)
        headers = self.headers()
        if failure.retry_after is not None:
            headers["retry-after"] = failure.retry_after
        return Response(status, headers, (as_json({"error": error}),))

    def error(self, failure: Failure) -> tuple[int, dict[str, Any]]:
        """Status and body of an error."""
        status, kind, message, code = FAILURES[failure.name]
        param = "messages" if code == "context_length_exceeded" else None
        fields = {"message": failure.message or message, "type": kind, "param": param, "code": code}
        return failure.status or status, fields

    def headers(self, content_type: str = "application/json") -> dict[str, str]:
        """Those of every response."""
        return {
            "content-type": content_type,
            "x-request-id": f"req_{token(32)}",
            "openai-version": "2020-10-01",
            "openai-processing-ms": "12",
            "x-ratelimit-limit-requests": "10000",
            "x-ratelimit-remaining-requests": "9999",
        }

    def events(self, body: dict[str, Any], reply: Reply) -> Iterator[bytes]:
        """The streamed answer's events."""
        counted = (body.get("stream_options") or {}).get("include_usage")
        frame = self._frame(body, "chat.completion.chunk") | {"service_tier": "default"}
        blank = {"usage": None} if counted else {}

        def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
            return self.event({**frame, "choices": [choice], **blank, "obfuscation": token(7)})

        yield chunk({"role": "assistant", "content": None if reply.tool_calls else "", "refusal": None})
        for piece in pieces(reply.text, reply.piece):
            yield chunk({"content": piece})
        for n, call in enumerate(reply.tool_calls):
            made = self._call(n, reply)
            made["function"]["arguments"] = ""
            yield chunk({"tool_calls": [{"index": n, **made}]})
            for piece in pieces(call.text, reply.piece):
                yield chunk({"tool_calls": [{"index": n, "function": {"arguments": piece}}]})
        if reply.failing is not None:
            yield self.event({"error": self.error(reply.failing)[1]})
            return
        if not reply.end:
            return
        yield chunk({}, reply.finished)
        if counted:
            yield self.event({**frame, "choices": [], "usage": self.usage(body, reply)})
        yield self.event("[DONE]")

    def event(self, data: Any) -> bytes:
        """One server-sent event."""
        return b"data: " + (data.encode() if isinstance(data, str) else as_json(data)) + b"\n\n"

    def usage(self, body: dict[str, Any], reply: Reply) -> dict[str, Any]:
        """Tokens as counted here."""
        sent, made = counts(body, reply)
        return {
            "prompt_tokens": sent,
            "completion_tokens": made,
            "total_tokens": sent + made,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        }

    def _frame(self, body: dict[str, Any], kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{token(29)}",
            "object": kind,
            "created": int(time.time()),
            "model": self.answering(body["model"]),
            "system_fingerprint": f"fp_{token(10)}",
        }

    def answering(self, model: str) -> str:
        """An alias is answered by a dated model."""
        return model if re.search(r"\d{4}-\d\d-\d\d$", model) else f"{model}-2026-08-07"

    def _call(self, n: int, reply: Reply) -> dict[str, Any]:
        call = reply.tool_calls[n]
        return {
            "id": call.id or f"call_{token(24)}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.text},
        }

    def _authorise(self, request: Received) -> None:
        given = request.header("authorization")
        if not given:
            raise self._refused(
                Invalid(
                    "You didn't provide an API key. You need to provide your API key in an Authorization header using "
                    "Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
                    status=401,
                )
            )
        if given != f"Bearer {self._key}":
            shown = given.removeprefix("Bearer ")
            raise self._refused(
                Invalid(
                    f"Incorrect API key provided: {shown[:8]}***{shown[-4:]}. You can find your API key at "
                    "https://platform.openai.com/account/api-keys.",
                    code="invalid_api_key",
                    status=401,
                )
            )

    def _refused(self, error: Invalid) -> Refused:
        fields = {
            "message": error.message,
            "type": "invalid_request_error",
            "param": error.param,
            "code": error.code,
        }
        return Refused(Response(error.status, self.headers(), (as_json({"error": fields}),)))
