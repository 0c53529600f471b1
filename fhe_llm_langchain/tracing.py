"""LangSmith receives prompts and answers in clear: whoever runs an encrypted model hardly wants that by accident."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from langchain_core.tracers.langchain import LangChainTracer
from langsmith.utils import tracing_is_enabled

from fhe_llm.errors import RequestError


class TracingError(RequestError):
    """LangSmith tracing is on; nothing was sent to the proxy."""

    code = "tracing_refused"


def refuse_tracing(allowed: bool, callbacks: Any = None) -> None:
    """Raise :class:`TracingError` where LangSmith would be told, unless that is ``allowed``.

    ``callbacks`` are the handlers of a call, or their manager.
    """
    if not allowed and (
        tracing_is_enabled() or any(isinstance(h, LangChainTracer) for h in _handlers(callbacks))
    ):
        raise TracingError(
            "cannot run under LangSmith tracing: it sends prompts and answers in clear. Unset LANGSMITH_TRACING and "
            "LANGCHAIN_TRACING_V2 and remove the tracer, or pass allow_tracing=True if that is what you want."
        )


def _handlers(callbacks: Any) -> Iterable[Any]:
    if callbacks is None:
        return ()
    return callbacks if isinstance(callbacks, list | tuple) else getattr(callbacks, "handlers", ())
