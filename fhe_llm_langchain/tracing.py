"""LangSmith receives prompts and answers in clear: whoever runs an encrypted model hardly wants that by accident."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from langchain_core.tracers.context import tracing_v2_callback_var
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
    told = tracing_is_enabled() or tracing_v2_callback_var.get() is not None
    if not allowed and (
        told or any(isinstance(handler, LangChainTracer) for handler in _handlers(callbacks))
    ):
        raise TracingError(
            "cannot run under LangSmith tracing: it sends prompts and answers in clear. Unset LANGSMITH_TRACING and "
            "LANGCHAIN_TRACING_V2 and remove the tracer, or pass allow_tracing=True if that is what you want."
        )


def _handlers(callbacks: Any) -> Iterator[Any]:
    """The handlers in a list, a manager, or a list of them, as batches have it."""
    for handler in callbacks if isinstance(callbacks, list | tuple) else getattr(callbacks, "handlers", ()):
        if isinstance(handler, list | tuple) or hasattr(handler, "handlers"):
            yield from _handlers(handler)
        else:
            yield handler
