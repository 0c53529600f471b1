"""Constrained decoding: which tokens may come next so that an answer fits a schema, a pattern or a tool.

The client holds the logits, so the constraint is exact: a token that does not fit is never chosen. The automata are
llguidance's (Moskal et al., https://github.com/guidance-ai/llguidance); the proxy learns nothing of them but the
number of tokens that the grammar left no choice about, which travel together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fhe_llm.errors import RequestError
from fhe_llm.models.tokenizer import TextTokenizer
from fhe_llm.models.tools import CALL_BEGIN, CALL_END, Tool

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

ToolChoice: TypeAlias = Literal["auto", "none", "required"] | str
ResponseFormat: TypeAlias = Literal["text", "json_object"] | Mapping[str, Any]

_SPACING: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON is written in one way only: every free space would be a token more."""
DATA: Final = ("const", "default", "enum", "examples")
"""Keywords of JSON Schema whose values are data."""
_COMPOSED: Final = frozenset(
    ("allOf", "anyOf", "oneOf", "not", "if", "$ref", "dependentSchemas", "minProperties", "patternProperties")
)
"""Beside these, other properties than the listed ones may be meant."""


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Tools that may be called in one answer. ``choice`` is "auto", "required" or a tool's name; ``parallel`` allows
    more than one call. Build with :meth:`of`."""

    tools: tuple[Tool, ...]
    choice: str = "auto"
    parallel: bool = False
    strict: bool = False

    @classmethod
    def of(
        cls,
        tools: Sequence[Tool | Mapping[str, Any]],
        choice: ToolChoice | Mapping[str, Any] | None = "auto",
        *,
        parallel: bool = False,
        strict: bool = False,
    ) -> ToolUse | None:
        """None where no tool may be called. ``choice`` may be written as in OpenAI's API; "any" is "required".

        Raises :class:`RequestError` for a choice that names no tool, and for two tools of one name.
        """
        known = tuple(Tool.of(tool) for tool in tools or ())
        wanted = _choice_name(choice)
        names = [tool.name for tool in known]
        if len(set(names)) != len(names):
            raise RequestError("cannot use the tools: two have the same name. Rename one.")
        if wanted not in ("auto", "none") and wanted not in names and not (known and wanted == "required"):
            listed = ", ".join(names) or "none"
            raise RequestError(
                f"cannot use tool_choice={wanted!r}: the tools are: {listed}. Name one of them."
            )
        return cls(known, wanted, parallel, strict) if known and wanted != "none" else None


def _choice_name(choice: object) -> str:
    if choice is None:
        return "auto"
    if isinstance(choice, Mapping):
        function = choice.get("function")
        choice = function.get("name") if isinstance(function, Mapping) else choice.get("name")
    if not isinstance(choice, str):
        raise RequestError(
            f"cannot use tool_choice={choice!r}: it must be 'auto', 'none', 'required' or the name of a tool. "
            "Change it."
        )
    return "required" if choice == "any" else choice


def grammar_of(use: ToolUse | None, response_format: ResponseFormat | None) -> str | None:
    """The grammar of an answer in llguidance's syntax; None where any text will do. Not yet validated.

    Raises :class:`RequestError` for a format that is unknown, and for one beside tools that need not be called.
    """
    wanted = _format_grammar(response_format)
    if use is None:
        return wanted
    if wanted is not None:
        raise RequestError(
            "cannot combine response_format with tools: an answer is one or the other. Drop one of them."
        )
    return _tool_grammar(use)


def schema_of(response_format: ResponseFormat | None) -> Mapping[str, Any] | None:
    """The JSON Schema a format carries, if any."""
    if not isinstance(response_format, Mapping) or response_format.get("type") != "json_schema":
        return None
    inner = response_format.get("json_schema", response_format)
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if not isinstance(schema, Mapping):
        raise RequestError(
            "cannot use response_format: 'json_schema' needs a 'schema' that is a JSON Schema. Pass a dict."
        )
    return schema


def _format_grammar(wanted: ResponseFormat | None) -> str | None:
    kind = wanted.get("type") if isinstance(wanted, Mapping) else wanted
    if wanted is None or kind == "text":
        return None
    if kind == "json_object":
        return _lark("start: answer", _json_rule("answer", {"type": "object"}, strict=True))
    schema = schema_of(wanted)
    if schema is not None:
        inner = wanted.get("json_schema", wanted)  # type: ignore[union-attr]
        return _lark("start: answer", _json_rule("answer", schema, strict=bool(inner.get("strict"))))
    if kind == "regex" and isinstance(wanted, Mapping) and isinstance(wanted.get("pattern"), str):
        from llguidance import grammar_from

        return str(grammar_from("regex", wanted["pattern"]))
    raise RequestError(
        f"cannot use response_format={kind!r}: it must be 'text', 'json_object', or a dict of type 'json_schema' "
        "with a 'schema' or 'regex' with a 'pattern'. Change it."
    )


def _tool_grammar(use: ToolUse) -> str:
    tools = [tool for tool in use.tools if use.choice in ("auto", "required", tool.name)]
    single = not use.parallel or use.choice not in ("auto", "required")
    if use.choice == "auto":
        answer = "start: TEXT | late" if single else "start: late* TEXT"
        rules = [answer, r"late: head body", "head[lazy]: TEXT " + json.dumps(CALL_BEGIN), r"TEXT: /(.|\n)*/"]
    else:
        rules = [
            "start: call" if single else r'start: call ("\n" call)*',
            "call: " + json.dumps(CALL_BEGIN) + " body",
        ]
    rules.append(
        r'body: "\n" (' + " | ".join(f"call_{n}" for n in range(len(tools))) + r') "\n' + CALL_END + '"'
    )
    for n, tool in enumerate(tools):
        opening = json.dumps(f'{{"name": "{tool.name}", "arguments": ')
        rules += [f'call_{n}: {opening} args_{n} "}}"', _json_rule(f"args_{n}", tool.parameters, use.strict)]
    return _lark(*rules)


def _lark(*rules: str) -> str:
    return "\n".join(["%llguidance {}", *rules, ""])


def _json_rule(name: str, schema: Mapping[str, Any], strict: bool) -> str:
    """``strict`` refuses what the grammar cannot hold an answer to; otherwise such keywords are left out."""
    options = {**_SPACING, "lenient": not strict}
    try:
        whole = "allOf" in json.dumps(schema)  # its parts only together say which properties there are
        return f"{name}: %json " + json.dumps(
            {**(schema if whole else _closed(schema)), "x-guidance": options}
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"cannot use a JSON Schema: {error}. Pass plain JSON data.") from None


def _closed(schema: Any) -> Any:
    """The schema with objects that list their properties closed: what nobody asked for would only cost tokens."""
    if isinstance(schema, Mapping):
        closed = {key: value if key in DATA else _closed(value) for key, value in schema.items()}
        if (
            isinstance(schema.get("properties"), Mapping)
            and not _COMPOSED & schema.keys()
            and _lists_all(schema)
        ):
            closed.setdefault("additionalProperties", False)
        return closed
    return [_closed(item) for item in schema] if isinstance(schema, list | tuple) else schema


def _lists_all(schema: Mapping[str, Any]) -> bool:
    """Whether an object needs no other properties than those it lists."""
    return schema.get("type") == "object" and set(schema.get("required", ())) <= set(schema["properties"])


class GrammarTokens:
    """A tokenizer as llguidance needs it, made once per model (0.3 s for 49,152 tokens)."""

    def __init__(self, tokenizer: TextTokenizer, vocabulary: int) -> None:
        """``vocabulary`` is the number of logits. Raises :class:`RequestError` without llguidance."""
        try:
            from llguidance import LLTokenizer, TokenizerWrapper
        except ImportError:
            raise RequestError(
                'cannot constrain an answer: llguidance is missing. Run pip install "fhe-llm[structured]".'
            ) from None
        self.tokens: LLTokenizer = LLTokenizer(
            TokenizerWrapper(_Vocabulary(tokenizer)), n_vocab=vocabulary, eos_token=sorted(tokenizer.eos_ids)
        )
        self.size = vocabulary
        self.ends = np.zeros(vocabulary, bool)
        self.ends[list(tokenizer.eos_ids)] = True

    def matcher(self, grammar: str) -> GrammarMatcher:
        """The constraint at the start of an answer. Raises :class:`RequestError` for a grammar that makes no sense."""
        from llguidance import LLMatcher

        matcher = LLMatcher(self.tokens, grammar, log_level=0)
        if matcher.is_error():
            cause = matcher.get_error().strip().splitlines()[0]
            raise RequestError(f"cannot use the schema or pattern: {cause}. Simplify it.")
        return GrammarMatcher(matcher, self)


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = min(tokenizer.eos_ids)
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(n, skip_special=False) for n in range(tokenizer.size)]
        self.special_token_ids = sorted(tokenizer.special_tokens.values())

    def __call__(self, text: bytes | str) -> list[int]:
        plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self._tokenizer.encode(plain, parse_special=False)


class GrammarMatcher:
    """The grammar at one place of an answer. See :class:`fhe_llm.client.sampling.Constraint`."""

    def __init__(self, matcher: LLMatcher, tokens: GrammarTokens) -> None:
        self._matcher, self._tokens = matcher, tokens

    def forced(self) -> tuple[int, ...]:
        """Tokens that must come next, whatever the model says: there is one way to go on."""
        return tuple(self._matcher.compute_ff_tokens())

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next, [vocabulary]."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, bitorder="little")[: self._tokens.size].astype(bool)

    def accept(self, token: int) -> None:
        """Go on behind ``token``, which was allowed."""
        if not self._matcher.consume_token(token):
            raise RequestError("cannot follow the grammar: its parser gave up. Simplify the schema.")

    @property
    def complete(self) -> bool:
        """Whether nothing but the end of the turn can follow."""
        return self._matcher.is_accepting() and not (self.allowed() & ~self._tokens.ends).any()

    def fork(self) -> GrammarMatcher:
        """The same place of an answer of its own."""
        return GrammarMatcher(self._matcher.deep_copy(), self._tokens)
