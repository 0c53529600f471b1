"""What is measured: one model's files, the prompts put to it, and the settings under which it decodes plainly."""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

from fhe_llm import progress
from fhe_llm.models.bundle import load_bundle, write_bundle
from fhe_llm.models.chat_template import ChatTemplate, Message
from fhe_llm.models.registry import ClientHalf, client_half
from fhe_llm.models.resolve import open_model, resolve
from fhe_llm.models.source import ModelSource
from fhe_llm.models.steps import Floats
from fhe_llm.models.tokenizer import TextTokenizer

PROMPT: Final = (
    "The sea was calm that morning, and the old fisherman had been out since before dawn. He pulled in"
)
QUESTION: Final = (
    "Tell me in a few plain words why the old man went out to sea before dawn and what he hoped to find there "
    "when the water was calm and the moon had set behind the hills of the island"
)
MARKS: Final = 16
"""Marks that may be appended to a question to reach a number of tokens exactly."""
OPENINGS: Final = ("Please", "Now", "First", "So", "Well", "Today", "Then", "Again")


def plain_settings() -> dict[str, Any]:
    """Arguments of ``EncryptedLLM`` for plain decoding: every token costs its own pass, nothing is remembered."""
    return {"api_key": os.environ.get("FHE_LLM_API_KEY"), "prefix_cache": False, "speculation": False}


def cached_settings() -> dict[str, Any]:
    """The same with shared prefixes remembered."""
    return plain_settings() | {"prefix_cache": "auto"}


@dataclass(frozen=True)
class Subject:
    """A model's files and the client half made from them."""

    source: ModelSource
    path: Path
    half: ClientHalf
    tokenizer: TextTokenizer

    @cached_property
    def weights(self) -> Mapping[str, Floats]:
        """Every linear layer's matrix, float32 [out, in]."""
        return dict(self.source.linear_weights())

    def text_ids(self, prompt: str) -> tuple[int, ...]:
        """Token ids of a text to continue."""
        return tuple(self.tokenizer.encode(prompt, add_special=True, parse_special=False))

    def chat_ids(self, messages: list[Message]) -> tuple[int, ...]:
        """Token ids of a chat; raises :class:`ModelError` for a template that does not render it."""
        source = self.source.tokenizer.chat_template or "{% for m in messages %}{{ m.content }}{% endfor %}"
        return tuple(ChatTemplate(source).encode(self.tokenizer, messages))

    def chats(self, count: int, tokens: int) -> list[list[Message]]:
        """``count`` questions of ``tokens`` prompt tokens each, or as near as words allow; they share the template
        and the system prompt, and differ from their first word on."""
        return [self._chat(OPENINGS[i % len(OPENINGS)], tokens) for i in range(count)]

    def _chat(self, opening: str, tokens: int) -> list[Message]:
        words = [f"{opening},", *islice(cycle(QUESTION.split()), tokens)]  # a word is a token at least

        def chat(count: int, marks: int = 0) -> list[Message]:
            return [{"role": "user", "content": " ".join(words[:count]) + (".?" * marks)[:marks]}]

        def length(count: int, marks: int = 0) -> int:
            return len(self.chat_ids(chat(count, marks)))

        # a mark is a token at most: with fewer words than these, marks do not reach the number
        count = max(1, bisect_left(range(len(words)), tokens - MARKS, key=length))
        best: list[Message] = [{"role": "user", "content": opening}]
        while count <= len(words) and length(count) <= tokens:
            for marks in range(MARKS):
                found = length(count, marks)
                if found == tokens:
                    return chat(count, marks)
                if found < tokens:
                    best = chat(count, marks)
            count += 1
        return best


def open_subject(model: str) -> Subject:
    """Open ``model`` (a known name or a path); raises :class:`ModelError`, :class:`DownloadError`."""
    source = open_model(model, progress=progress.bar())
    with tempfile.TemporaryDirectory(prefix="fhe-llm-bench-") as folder:
        path = Path(folder) / "bundle.safetensors"
        bundle = load_bundle(path, write_bundle(source, path))
    return Subject(source, resolve(model), client_half(bundle), TextTokenizer(bundle.tokenizer))
