"""One question: what a caller may say with it, and the chat that the model is shown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypedDict, cast

from fhe_llm.client.grammar import DATA, ResponseFormat, ToolChoice, ToolUse, grammar_of, schema_of
from fhe_llm.client.sampling import SamplingParams, require_int
from fhe_llm.errors import RequestError
from fhe_llm.models.chat_template import Message
from fhe_llm.models.messages import plain_messages
from fhe_llm.models.tools import Tool, with_system_text, without_tool_roles

Prompt: TypeAlias = str | Sequence[Message]
"""Text to continue, or the messages of a chat."""


class AskOptions(TypedDict, total=False):
    """Keyword arguments of every call that generates.

    The first seven are those of :class:`fhe_llm.SamplingParams`. ``pad_to`` hides the prompt's length up to a multiple
    of it. ``tools`` are :class:`fhe_llm.Tool` objects or OpenAI's dicts; ``tool_choice`` is "auto", "none", "required"
    or a tool's name; without ``parallel_tool_calls`` an answer has one call at most. ``response_format`` is "text",
    "json_object", ``{"type": "json_schema", "schema": ...}`` or ``{"type": "regex", "pattern": ...}``. ``strict``
    refuses a tool's schema that uses keywords no grammar can promise; otherwise they are left out.
    """

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    stop: str | Sequence[str]
    repetition_penalty: float
    pad_to: int | None
    tools: Sequence[Tool | Mapping[str, Any]]
    tool_choice: ToolChoice | Mapping[str, Any] | None
    parallel_tool_calls: bool
    strict: bool
    response_format: ResponseFormat | None


@dataclass(frozen=True, slots=True)
class Ask:
    """One question and how to answer it; everything that needs no model is checked by the time this exists."""

    prompt: Prompt
    params: SamplingParams
    pad_to: int | None = None
    tools: ToolUse | None = None
    response_format: ResponseFormat | None = None
    grammar: str | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Raises :class:`RequestError`."""
        if self.pad_to is not None:
            require_int("pad_to", self.pad_to, 1)
        if not isinstance(self.prompt, str):
            object.__setattr__(self, "prompt", plain_messages(self.prompt))
        elif self.tools is not None:
            raise RequestError("cannot use tools with a text to continue: they need a chat. Pass messages.")
        object.__setattr__(self, "grammar", grammar_of(self.tools, self.response_format))

    @classmethod
    def of(cls, prompt: Prompt, options: AskOptions) -> Ask:
        """The same from what a caller gave. Raises :class:`RequestError`, naming an option that there is not."""
        given: dict[str, Any] = dict(options)
        unknown = sorted(given.keys() - AskOptions.__annotations__.keys())
        if unknown:
            known = ", ".join(AskOptions.__annotations__)
            raise RequestError(
                f"cannot use parameter {unknown[0]!r}: there is no such parameter. Use one of {known}."
            )
        tools = ToolUse.of(
            given.pop("tools", ()),
            given.pop("tool_choice", "auto"),
            parallel=given.pop("parallel_tool_calls", False),
            strict=given.pop("strict", False),
        )
        pad_to, wanted = given.pop("pad_to", None), given.pop("response_format", None)
        return cls(prompt, SamplingParams(**given), pad_to, tools, wanted)

    def chat(self, *, template_takes_tools: bool) -> tuple[Sequence[Message], list[Mapping[str, Any]]]:
        """Messages and tools for a chat template; one that does not take tools is told of them in the text."""
        messages = cast(Sequence[Message], self.prompt)
        tools = self.tools.tools if self.tools else ()
        if not template_takes_tools:
            messages = without_tool_roles(
                messages, tools, examples=bool(self.tools and self.tools.choice == "auto")
            )
            tools = ()
        if described := described_schema(self.response_format):
            messages = with_system_text(messages, described)
        return messages, [tool.to_dict() for tool in tools]


def check_options(options: AskOptions) -> None:
    """Raise :class:`RequestError` for options that make no sense with any prompt; nothing is sent."""
    Ask.of([{"role": "user", "content": ""}], options)


def described_schema(response_format: ResponseFormat | None) -> str:
    """What the model is told of a schema: nothing where it describes no field, since the grammar supplies the names."""
    schema = schema_of(response_format)
    text = "" if schema is None else json.dumps(without_titles(schema), ensure_ascii=False)
    return f"Answer with JSON that fits this schema:\n{text}" if '"description"' in text else ""


def without_titles(schema: Any) -> Any:
    """A JSON Schema without the titles that pydantic adds, which repeat the names."""
    if isinstance(schema, Mapping):
        kept = {key: value for key, value in schema.items() if key != "title" or not isinstance(value, str)}
        return {key: value if key in DATA else without_titles(value) for key, value in kept.items()}
    return [without_titles(item) for item in schema] if isinstance(schema, list | tuple) else schema
