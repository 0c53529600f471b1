"""Answers as pydantic models: the grammar holds the answer to the schema, so nothing is repaired afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, TypeVar

from llama_index.core.base.llms.types import ChatResponse
from llama_index.core.program.utils import FlexibleModel, process_streaming_objects
from pydantic import BaseModel, ValidationError

from fhe_llm.errors import RequestError

M = TypeVar("M", bound=BaseModel)


def schema_options(output_cls: type[BaseModel]) -> dict[str, Any]:
    """The options of a call whose answer is JSON of ``output_cls``."""
    return {"response_format": {"type": "json_schema", "schema": output_cls.model_json_schema()}}


def parsed(output_cls: type[M], response: ChatResponse) -> M:
    """The model in a finished answer. Raises :class:`RequestError`, without the answer's text, where the answer was
    cut off and where ``output_cls`` has rules that no JSON Schema tells."""
    try:
        return output_cls.model_validate_json(response.message.content or "")
    except ValidationError as error:
        cause = ", ".join(sorted({place(detail) for detail in error.errors(include_input=False)}))
    raw = response.raw or {}
    if raw.get("finish_reason") == "length":
        raise RequestError(
            f"cannot make {output_cls.__name__}: its JSON was cut off after {raw['completion_tokens']} tokens. "
            "Raise max_tokens, or bound the fields (max_length, Literal)."
        )
    raise RequestError(
        f"cannot make {output_cls.__name__}: the answer fits the schema but not the class: {cause}. "
        "Say the rule in the schema, or ask again."
    )


def place(detail: Any) -> str:
    """Where a validation error is and of what kind, without the value."""
    return f"{'.'.join(map(str, detail['loc'])) or 'the whole'} ({detail['type']})"


class Partials:
    """A model that grows as its JSON streams in."""

    def __init__(self, output_cls: type[M]) -> None:
        self._output_cls = output_cls
        self._before: Sequence[Any] | None = None

    def add(self, response: ChatResponse) -> Any:
        """What is known after ``response``: with every field optional until the answer is complete."""
        if response.raw is not None:
            return parsed(self._output_cls, response)
        found = process_streaming_objects(response, self._output_cls, self._before, flexible_mode=True)
        self._before = found if isinstance(found, list) else [found]
        return found


def partials(output_cls: type[M], responses: Iterator[ChatResponse]) -> Iterator[M | FlexibleModel]:
    """The growing model of a streamed answer; the last one is complete."""
    growing = Partials(output_cls)
    for response in responses:
        yield growing.add(response)


async def apartials(
    output_cls: type[M], responses: AsyncIterator[ChatResponse]
) -> AsyncIterator[M | FlexibleModel]:
    """:func:`partials` on an event loop."""
    growing = Partials(output_cls)
    async for response in responses:
        yield growing.add(response)
