"""What every model of ours does before LangChain tells anybody of a prompt."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

from langchain_core.caches import BaseCache
from pydantic import BaseModel, ConfigDict, Field

from fhe_llm_langchain.errors import langchain_errors
from fhe_llm_langchain.tracing import refuse_tracing


class Untraced(BaseModel):
    """Refuses LangSmith tracing and keeps answers out of LangChain's global cache, unless the user says otherwise."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    allow_tracing: bool = False
    """Let LangSmith receive prompts and answers in clear."""
    cache: BaseCache | bool | None = Field(default=False, exclude=True)
    """Off, whatever LangChain's global cache is; :class:`EncryptedCache` keeps answers sealed."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """See LangChain's base class; refuses LangSmith tracing before any callback hears of the prompt."""
        self._refuse_tracing(kwargs.get("callbacks", args[2] if len(args) > 2 else None))
        return super().generate(*args, **kwargs)  # type: ignore[misc]

    async def agenerate(self, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`generate`."""
        self._refuse_tracing(kwargs.get("callbacks", args[2] if len(args) > 2 else None))
        return await super().agenerate(*args, **kwargs)  # type: ignore[misc]

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """See :meth:`generate`; text streams with tools bound too."""
        self._refuse_tracing(_callbacks(args, kwargs))
        yield from super().stream(*args, **kwargs)  # type: ignore[misc]

    async def astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """See :meth:`stream`."""
        self._refuse_tracing(_callbacks(args, kwargs))
        async with aclosing(super().astream(*args, **kwargs)) as chunks:  # type: ignore[misc]
            async for chunk in chunks:
                yield chunk

    def _refuse_tracing(self, callbacks: Any = None) -> None:
        with langchain_errors():
            refuse_tracing(self.allow_tracing, callbacks)
            refuse_tracing(self.allow_tracing, getattr(self, "callbacks", None))


def _callbacks(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The callbacks of a call ``(input, config, ...)``."""
    config = kwargs.get("config", args[1] if len(args) > 1 else None)
    return (config or {}).get("callbacks")
