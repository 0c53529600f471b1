"""Chat messages to a prompt: the model's own Jinja template in a sandbox, with user text kept out of control
tokens."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeAlias

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fhe_llm.errors import ModelError
from fhe_llm.models.tokenizer import TextTokenizer, special_pattern
from fhe_llm.models.tools import takes_tools

Message: TypeAlias = Mapping[str, Any]
"""``{"role": ..., "content": ...}``; templates may read more keys."""

_MAX_PROMPT_CHARS: Final = 1 << 24


class ChatTemplate:
    """A compiled template, set up as transformers does it.

    The sandbox bounds what a template can reach and how much it can write, not how long it runs: a template
    trusted on first use can still waste its user's time.
    """

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        """Raises :class:`ModelError` where the template has a syntax error."""
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self.takes_tools = takes_tools(source)
        """Whether the template tells the model of tools by itself."""
        try:
            self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ModelError(f"cannot compile chat template: {error}. Use another model.") from None

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt as text. Raises :class:`ModelError` with the template's own complaint, or where the
        sandbox stops it."""
        pieces, size = [], 0
        try:
            for piece in self._template.generate(
                messages=copy.deepcopy(list(messages)),
                add_generation_prompt=add_generation_prompt,
                **({"tools": copy.deepcopy(list(tools))} if tools else {}),
                **self._tokens,
            ):
                pieces.append(piece)
                size += len(piece)
                if size > _MAX_PROMPT_CHARS:
                    break
        except Exception as error:  # noqa: BLE001  a template can raise anything
            raise ModelError(
                f"cannot render chat: {error}. Change the messages, or use another model."
            ) from None
        if size > _MAX_PROMPT_CHARS:
            raise ModelError(
                f"cannot render chat: the prompt passes {_MAX_PROMPT_CHARS} characters. Shorten it."
            )
        return "".join(pieces)

    def encode(
        self,
        tokenizer: TextTokenizer,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of the prompt. Control tokens come from the template only: special tokens spelled out in
        a message are encoded as the plain text they are.

        The messages are rendered a second time with a mark behind every character that could begin a special
        token, so that no special token can match across or inside them. Where both renderings hold the same
        control tokens, nothing was injected, and the ids are those of transformers' ``apply_chat_template``.
        """
        text = self.render(messages, tools=tools, add_generation_prompt=add_generation_prompt)
        specials = tokenizer.special_tokens
        mark = _unused_character(text)
        starts = str.maketrans({token[0]: token[0] + mark for token in specials})
        marked = self.render(
            [_map_strings(message, starts) for message in messages],
            tools=_map_strings(list(tools), starts),
            add_generation_prompt=add_generation_prompt,
        )
        pattern = special_pattern(list(specials))
        found = pattern.findall(marked)
        if found == pattern.findall(text):
            return tokenizer.encode(text)
        ids, between = list[int](), pattern.split(marked)
        for plain, special in zip(between, [*found, None], strict=True):
            ids += tokenizer.encode(plain.replace(mark, ""), parse_special=False)
            ids += [specials[special]] if special is not None else []
        return ids


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any, indent: int | None = None, *, ensure_ascii: bool = False, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().astimezone().strftime(layout)


def _unused_character(text: str) -> str:
    """A private-use character that does not occur in ``text``."""
    used = set(text)
    return next(chr(code) for code in range(0xF0000, 0x10FFFE) if chr(code) not in used)


def _map_strings(value: Any, table: dict[int, str]) -> Any:
    """The same structure with ``table`` applied to every string in it; keys, numbers and the rest stay."""
    if isinstance(value, str):
        return value.translate(table)
    if isinstance(value, Mapping):
        return {key: _map_strings(item, table) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map_strings(item, table) for item in value]
    return value
