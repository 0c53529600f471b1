"""Every way the proxy says no: one exception, one table of codes, one JSON envelope.

``{"error": {"code", "message", "reason"?, "retry_after_ms"?}}``. Codes are stable, messages are not, and no
message repeats what the client sent.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final

from fhe_llm.errors import ProxyError

STATUS: Final[dict[str, int]] = {
    "bad_frame": 400,
    "bad_request": 400,
    "unauthorized": 401,
    "unknown_key": 404,
    "unknown_layer": 404,
    "unknown_model": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "upload_conflict": 409,
    "wrong_plan": 409,
    "wrong_preset": 409,
    "body_too_large": 413,
    "bad_range": 416,
    "key_mismatch": 422,
    "missing_rotation_key": 422,
    "budget_exhausted": 429,
    "internal": 500,
    "busy": 503,
    "ledger_unusable": 503,
    "not_ready": 503,
    "storage_full": 507,
}
"""HTTP status of every code."""


class Refusal(ProxyError):  # noqa: N818 - an answer rather than a failure
    """A request the proxy will not serve. ``reason`` refines ``bad_frame``."""

    def __init__(
        self, code: str, message: str, *, reason: str | None = None, retry_after_ms: int | None = None
    ) -> None:
        super().__init__(message, proxy_code=code, status=STATUS[code])
        self.reason = reason
        self.retry_after_ms = retry_after_ms

    def envelope(self) -> bytes:
        """The JSON body."""
        error: dict[str, Any] = {"code": self.proxy_code, "message": str(self)}
        if self.reason is not None:
            error["reason"] = self.reason
        if self.retry_after_ms is not None:
            error["retry_after_ms"] = self.retry_after_ms
        return json.dumps({"error": error}, separators=(",", ":")).encode()

    def headers(self) -> dict[str, str]:
        """Response headers that go with the code."""
        headers = {"content-type": "application/json", "cache-control": "no-store"}
        if self.retry_after_ms is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_ms / 1000)))
        if self.proxy_code == "unauthorized":
            headers["www-authenticate"] = "Bearer"
        return headers


def internal(request_id: str) -> Refusal:
    """The answer to anything unforeseen; the log line with the same id has the cause."""
    return Refusal(
        "internal",
        "cannot answer this request: the proxy failed. "
        f"Retry the same bytes; if it persists, report request id {request_id}.",
    )
