"""Anthropic's messages: https://docs.claude.com/en/api/messages, its streaming events and its errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from provider_server.anthropic_checks import VERSIONS, Invalid, check_body
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
from provider_server.recording import Received

FAILURES: Final = {
    # name: status, type, message
    "invalid_request": (400, "invalid_request_error", "messages: Invalid request"),
    "prompt_too_long": (400, "invalid_request_error", "prompt is too long: 200001 tokens > 200000 maximum"),
    "low_credit": (
        400,
        "invalid_request_error",
        "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or "
        "purchase credits.",
    ),
    "authentication": (401, "authentication_error", "invalid x-api-key"),
    "billing": (402, "billing_error", "There is an issue with your billing or payment information."),
    "permission": (
        403,
        "permission_error",
        "Your API key does not have permission to use the specified resource.",
    ),
    "not_found": (404, "not_found_error", "model: claude-gone"),
    "conflict": (409, "conflict_error", "The request conflicts with the current state of the resource."),
    "too_large": (413, "request_too_large", "Request exceeds the maximum size"),
    "rate_limit": (
        429,
        "rate_limit_error",
        "This request would exceed your organization's rate limit of 50 requests per minute.",
    ),
    "server_error": (500, "api_error", "Internal server error"),
    "timeout": (504, "timeout_error", "Request timed out"),
    "overloaded": (529, "overloaded_error", "Overloaded"),
}
_STOP_REASONS: Final = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


class AnthropicApi:
    """``/v1/messages``; ``key`` is the only key it knows."""

    def __init__(self, key: str) -> None:
        self._key = key

    def check(self, request: Received) -> dict[str, Any]:
        """See :class:`provider_server.dialect.Dialect`."""
        try:
            return self._checked(request)
        except Invalid as error:
            raise Refused(self._error(error.status, error.kind, error.message)) from None

    def reply(self, body: dict[str, Any], reply: Reply) -> Response:
        """See :class:`provider_server.dialect.Dialect`."""
        if body.get("stream"):
            return Response(
                200, self._headers("text/event-stream; charset=utf-8"), tuple(self._events(body, reply)), True
            )
        blocks: list[dict[str, Any]] = []
        if reply.thinking:
            blocks.append({"type": "thinking", "thinking": reply.thinking, "signature": token(64)})
        if reply.text:
            blocks.append({"type": "text", "text": reply.text})
        for call in reply.tool_calls:
            use = self._use(call.id, call.name)
            blocks.append(use | {"input": _input(call.arguments)})
        whole = self._message(body, reply) | {
            "content": blocks,
            "stop_reason": _STOP_REASONS[reply.finished],
        }
        whole["usage"]["output_tokens"] = counts(body, reply)[1]
        return Response(200, self._headers(), (as_json(whole),))

    def failure(self, body: dict[str, Any], failure: Failure) -> Response:
        """See :class:`provider_server.dialect.Dialect`."""
        status, kind, message = FAILURES[failure.name]
        response = self._error(failure.status or status, kind, failure.message or message)
        if failure.retry_after is None:
            return response
        return Response(
            response.status, {**response.headers, "retry-after": failure.retry_after}, response.parts
        )

    def _events(self, body: dict[str, Any], reply: Reply) -> Iterator[bytes]:
        yield _event("message_start", message=self._message(body, reply))
        yield _event("ping")
        index = 0
        if reply.thinking:
            yield _event(
                "content_block_start",
                index=0,
                content_block={"type": "thinking", "thinking": "", "signature": ""},
            )
            for piece in pieces(reply.thinking, reply.piece):
                yield _event(
                    "content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": piece}
                )
            signed = {"type": "signature_delta", "signature": token(64)}
            yield _event("content_block_delta", index=0, delta=signed)
            yield _event("content_block_stop", index=0)
            index = 1
        if reply.text:
            yield _event("content_block_start", index=index, content_block={"type": "text", "text": ""})
            for piece in pieces(reply.text, reply.piece):
                yield _event("content_block_delta", index=index, delta={"type": "text_delta", "text": piece})
            if reply.failing is None:
                yield _event("content_block_stop", index=index)
            index += 1
        for n, call in enumerate(reply.tool_calls, start=index):
            yield _event(
                "content_block_start", index=n, content_block=self._use(call.id, call.name) | {"input": {}}
            )
            for piece in ("", *pieces(call.text, reply.piece)):
                yield _event(
                    "content_block_delta", index=n, delta={"type": "input_json_delta", "partial_json": piece}
                )
            yield _event("content_block_stop", index=n)
        yield from self._end(body, reply)

    def _end(self, body: dict[str, Any], reply: Reply) -> Iterator[bytes]:
        if reply.failing is not None:
            _, kind, message = FAILURES[reply.failing.name]
            yield _event("error", error=self._fields(kind, reply.failing.message or message))
            return
        if not reply.end:
            return
        sent, made = counts(body, reply)
        delta = {
            "stop_reason": _STOP_REASONS[reply.finished],
            "stop_sequence": None,
            "stop_details": None,
        }
        usage = {
            "input_tokens": sent,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": made,
        }
        yield _event("message_delta", delta=delta, usage=usage)
        yield _event("message_stop")

    def _message(self, body: dict[str, Any], reply: Reply) -> dict[str, Any]:
        """As a stream begins."""
        return {
            "id": f"msg_{token(24)}",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
            "usage": {
                "input_tokens": counts(body, reply)[0],
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
                "output_tokens": 1,
                "service_tier": "standard",
            },
        }

    def _use(self, call: str, name: str) -> dict[str, Any]:
        return {
            "type": "tool_use",
            "id": call or f"toolu_{token(24)}",
            "name": name,
            "caller": {"type": "direct"},
        }

    def _checked(self, request: Received) -> dict[str, Any]:
        if request.path != "/v1/messages":
            raise Invalid("Not Found", "not_found_error", 404)
        if request.method != "POST":
            raise Invalid("Method Not Allowed", "invalid_request_error", 405)
        self._authorise(request)
        version = request.header("anthropic-version")
        if version is None:
            raise Invalid("anthropic-version: header is required")
        if version not in VERSIONS:
            raise Invalid(f'anthropic-version: "{version}" is not a valid version')
        if not (request.header("content-type") or "").startswith("application/json"):
            raise Invalid("content-type: must be application/json")
        try:
            body = request.json
        except ValueError:
            raise Invalid("The request body is not valid JSON") from None
        check_body(body, version)
        if (found := tokens([body.get("system", ""), body["messages"]])) > CONTEXT_TOKENS:
            raise Invalid(f"prompt is too long: {found} tokens > {CONTEXT_TOKENS} maximum")
        return body  # type: ignore[no-any-return]

    def _authorise(self, request: Received) -> None:
        given, bearer = request.header("x-api-key"), request.header("authorization")
        if given is None and bearer is None:
            raise Invalid("x-api-key header is required", "authentication_error", 401)
        if given is not None and given != self._key:
            raise Invalid("invalid x-api-key", "authentication_error", 401)
        if given is None and bearer != f"Bearer {self._key}":
            raise Invalid("Invalid bearer token", "authentication_error", 401)

    def _error(self, status: int, kind: str, message: str) -> Response:
        headers = self._headers()
        body = {
            "type": "error",
            "error": self._fields(kind, message),
            "request_id": headers["request-id"],
        }
        headers["x-should-retry"] = "true" if status in (408, 409, 429) or status >= 500 else "false"
        return Response(status, headers, (as_json(body),))

    def _fields(self, kind: str, message: str) -> dict[str, Any]:
        return {"type": kind, "message": message, "details": None}

    def _headers(self, content_type: str = "application/json") -> dict[str, str]:
        return {
            "content-type": content_type,
            "request-id": f"req_{token(24)}",
            "anthropic-organization-id": "00000000-0000-4000-8000-000000000000",
            "anthropic-ratelimit-requests-limit": "50",
            "anthropic-ratelimit-requests-remaining": "49",
        }


def _event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: ".encode() + as_json({"type": kind, **fields}) + b"\n\n"


def _input(arguments: Any) -> Any:
    if isinstance(arguments, str):
        raise TypeError("a whole answer of Anthropic has tool input as an object; stream text that is none")
    return dict(arguments)
