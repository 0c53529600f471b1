"""Hugging Face's router (OpenAI's dialect with its own errors) and its inference endpoints (TGI's dialect)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from provider_server.behaviours import Failure, Reply
from provider_server.dialect import CONTEXT_TOKENS, Refused, Response, as_json, token, tokens
from provider_server.openai_api import OpenAiApi
from provider_server.recording import Received

FAILURES: Final[dict[str, tuple[int, dict[str, Any]]]] = {
    "unauthorized": (401, {"error": "Invalid username or password."}),
    "credits": (
        402,
        {
            "error": "You have exceeded your monthly included credits for Inference Providers. Subscribe to PRO to get "
            "20x more monthly included credits."
        },
    ),
    "permission": (
        403,
        {
            "error": "This authentication method does not have sufficient permissions to call Inference Providers."
        },
    ),
    "not_found": (404, {"error": "Not Found"}),
    "too_large": (413, {"error": "Payload Too Large"}),
    "validation": (
        422,
        {
            "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4090 `inputs` "
            "tokens and 100 `max_new_tokens`",
            "error_type": "validation",
        },
    ),
    "generation": (
        424,
        {"error": "Request failed during generation: Server error: CUDA error", "error_type": "generation"},
    ),
    "overloaded": (429, {"error": "Model is overloaded", "error_type": "overloaded"}),
    "rate_limit": (429, {"error": "Rate limit reached. Please log in or use a HF access token"}),
    "incomplete_generation": (
        500,
        {"error": "Incomplete generation", "error_type": "incomplete_generation"},
    ),
    "server_error": (500, {"error": "Internal Server Error"}),
    "bad_gateway": (502, {"error": "Bad Gateway"}),
    "loading": (503, {"error": "Model test/model is currently loading", "estimated_time": 20.0}),
    "gateway_timeout": (504, {"error": "Gateway Timeout"}),
}
_ROLES: Final = ("system", "user", "assistant", "tool", "developer")


class HuggingFaceApi(OpenAiApi):
    """``/hf/v1/chat/completions`` stands for the router, ``/tgi/v1/chat/completions`` for an endpoint of one's own."""

    def __init__(self, key: str, prefix: str) -> None:
        super().__init__(key)
        self._token = key
        self.prefix = prefix

    def check(self, request: Received) -> dict[str, Any]:
        """See :class:`provider_server.dialect.Dialect`."""
        if request.path != f"{self.prefix}/chat/completions":
            raise Refused(self._response(404, {"error": "Not Found"}))
        if request.method != "POST":
            raise Refused(self._response(405, {"error": "Method Not Allowed"}))
        if request.header("authorization") != f"Bearer {self._token}":
            raise Refused(self._response(*FAILURES["unauthorized"]))
        if not (request.header("content-type") or "").startswith("application/json"):
            raise Refused(self._text(415, "Expected request with `Content-Type: application/json`"))
        try:
            body = request.json
        except ValueError as error:
            raise Refused(self._text(400, f"Failed to parse the request body as JSON: {error}")) from None
        self._check_shape(body)
        self._check_values(body)
        return body  # type: ignore[no-any-return]

    def failure(self, body: dict[str, Any], failure: Failure) -> Response:
        """See :class:`provider_server.dialect.Dialect`."""
        status, fields = FAILURES[failure.name]
        if failure.message is not None:
            fields = fields | {"error": failure.message}
        response = self._response(failure.status or status, fields)
        extra = {} if failure.retry_after is None else {"retry-after": failure.retry_after}
        return Response(response.status, {**response.headers, **extra}, response.parts)

    def events(self, body: dict[str, Any], reply: Reply) -> Iterator[bytes]:
        """TGI writes what it has of OpenAI's form, without a space after the colon, and its own error in mid-stream."""
        if reply.failing is None:
            yield from super().events(body, reply)
            return
        *begun, _ = super().events(
            body, Reply(**{**_shallow(reply), "failing": Failure(name="server_error")})
        )
        yield from begun
        yield self.event(FAILURES[reply.failing.name][1])

    def event(self, data: Any) -> bytes:
        """One server-sent event."""
        return b"data:" + (b" [DONE]" if data == "[DONE]" else as_json(data)) + b"\n\n"

    def headers(self, content_type: str = "application/json") -> dict[str, str]:
        """Those of every response."""
        return {"content-type": content_type, "x-request-id": f"Root=1-{token(8)}-{token(24)}"}

    def answering(self, model: str) -> str:
        """The name as it was asked for, without the policy after the colon."""
        return model.partition(":")[0]

    def _check_shape(self, body: Any) -> None:
        """What fails before a handler runs is plain text of status 422."""
        wrong = None
        if not isinstance(body, dict):
            wrong = "expected struct ChatRequest"
        elif "messages" not in body:
            wrong = "missing field `messages`"
        elif not isinstance(body["messages"], list):
            wrong = "messages: invalid type, expected a sequence"
        else:
            for n, message in enumerate(body["messages"]):
                if "role" not in message:
                    wrong = f"messages[{n}]: missing field `role`"
                elif "content" not in message and "tool_calls" not in message:
                    wrong = f"messages[{n}]: data did not match any variant of untagged enum MessageBody"
        if wrong:
            at = " at line 1 column 24"
            raise Refused(
                self._text(422, f"Failed to deserialize the JSON body into the target type: {wrong}{at}")
            )

    def _check_values(self, body: dict[str, Any]) -> None:
        if self.prefix == "/hf/v1":
            self._check_model(body.get("model"))
        wrong = None
        if not body["messages"] or any(message["role"] not in _ROLES for message in body["messages"]):
            self._refuse(
                "Template error: invalid operation: Conversation roles are not known", "template_error"
            )
        if body.get("top_p") is not None and not 0 < body["top_p"] < 1:
            wrong = "`top_p` must be > 0.0 and < 1.0"
        if body.get("temperature") is not None and body["temperature"] < 0:
            wrong = "`temperature` must be strictly positive"
        if body.get("max_tokens") is not None and body["max_tokens"] < 1:
            wrong = "`max_new_tokens` must be strictly positive"
        stop = body.get("stop")
        if isinstance(stop, str):
            raise Refused(
                self._text(
                    422,
                    "Failed to deserialize the JSON body into the target type: stop: invalid type: string, expected a "
                    "sequence at line 1 column 24",
                )
            )
        if stop and len(stop) > 4:
            wrong = f"`stop` supports up to 4 stop sequences. Given: {len(stop)}"
        if (found := tokens(body["messages"])) > CONTEXT_TOKENS:
            wrong = f"`inputs` must have less than {CONTEXT_TOKENS} tokens. Given: {found}"
        if wrong:
            self._refuse(f"Input validation error: {wrong}", "validation")

    def _check_model(self, model: Any) -> None:
        if isinstance(model, str) and model.count("/") == 1 and not model.startswith("nobody/"):
            return
        error = {
            "message": f"The requested model '{model}' does not exist",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
        raise Refused(self._response(400, {"error": error}))

    def _refuse(self, message: str, kind: str) -> None:
        raise Refused(self._response(422, {"error": message, "error_type": kind}))

    def _response(self, status: int, fields: dict[str, Any]) -> Response:
        return Response(status, self.headers(), (as_json(fields),))

    def _text(self, status: int, text: str) -> Response:
        return Response(status, self.headers("text/plain; charset=utf-8"), (text.encode(),))


def _shallow(reply: Reply) -> dict[str, Any]:
    return {name: getattr(reply, name) for name in reply.__dataclass_fields__}
