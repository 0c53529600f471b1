"""What a question may take along: as much retrieved text and earlier conversation as the model's window holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.schema import MetadataMode, NodeWithScore

from fhe_llm.errors import ContextOverflowError
from fhe_llm_llamaindex.llms import EncryptedLLM

SEPARATOR: Final = "\n\n"
CUT: Final = " …"
LEAST_CHARACTERS: Final = 40
"""A passage of which less than this would be left says nothing; it is dropped."""

Framing = Callable[[str, Sequence[ChatMessage]], list[ChatMessage]]
"""The messages to send, from the text of the passages and the earlier messages that are kept."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """The messages to send, the passages in them, best first, and what had to be left out."""

    messages: list[ChatMessage]
    passages: list[NodeWithScore]
    prompt_tokens: int
    window: int
    reserved: int
    dropped: tuple[str, ...] = ()
    cut: tuple[int, int] | None = None
    history_dropped: int = 0

    @property
    def note(self) -> str:
        """What was left out, in words; empty where nothing was."""
        parts = []
        if self.cut is not None:
            parts.append(f"passage {len(self.passages)} was cut to {self.cut[0]} of {self.cut[1]} characters")
        if self.dropped:
            parts.append(
                f"{len(self.dropped)} of {len(self.passages) + len(self.dropped)} passages were left out"
            )
        if self.history_dropped:
            parts.append(f"the {self.history_dropped} oldest messages were left out")
        return "; ".join(parts)

    def metadata(self) -> dict[str, Any]:
        """For a response's ``metadata``: what LlamaIndex puts there, and under "context" what this object says."""
        found: dict[str, Any] = {passage.node.node_id: passage.node.metadata for passage in self.passages}
        found["context"] = {
            "window": self.window,
            "reserved_for_answer": self.reserved,
            "prompt_tokens": self.prompt_tokens,
            "passages": [passage.node.node_id for passage in self.passages],
            "dropped": list(self.dropped),
            "note": self.note,
        }
        return found


def fit(
    llm: EncryptedLLM,
    framing: Framing,
    passages: Sequence[NodeWithScore],
    *,
    context_tokens: int,
    reserved: int,
    history: Sequence[ChatMessage] = (),
) -> Fitted:
    """Take the passages in their order until the next does not fit, which is cut; the rest is dropped.

    They get at most ``context_tokens``; ``reserved`` tokens stay free for the answer; the oldest messages of
    ``history`` give way to passages. Everything is counted by the model's own tokenizer, which must be connected.
    Raises :class:`ContextOverflowError` where not even the question fits.
    """
    window = llm.metadata.context_window
    limit = window - reserved
    kept, asked = list(history), llm.prompt_tokens(framing("", []))
    if asked > limit:
        raise ContextOverflowError(
            f"cannot ask a question of {asked} tokens: the context window holds {window}, of which {reserved} are "
            "kept for the answer. Shorten the question or lower max_tokens."
        )
    share = limit - min(context_tokens, (limit - asked) // 2) if passages else limit
    while kept and llm.prompt_tokens(framing("", kept)) > share:
        kept.pop(0)

    def fits(text: str) -> bool:
        return len(llm.tokenizer(text)) <= context_tokens and llm.prompt_tokens(framing(text, kept)) <= limit

    text, used, cut = _take(
        [passage.node.get_content(MetadataMode.LLM).strip() for passage in passages], fits
    )
    messages = framing(text, kept)
    return Fitted(
        messages=messages,
        passages=list(passages[:used]),
        prompt_tokens=llm.prompt_tokens(messages),
        window=window,
        reserved=reserved,
        dropped=tuple(passage.node.node_id for passage in passages[used:]),
        cut=cut,
        history_dropped=len(history) - len(kept),
    )


def _take(texts: Sequence[str], fits: Callable[[str], bool]) -> tuple[str, int, tuple[int, int] | None]:
    """The joined text, how many of ``texts`` are in it, and the characters left of the last one if it was cut."""
    taken = ""
    for number, text in enumerate(texts):
        before = taken + SEPARATOR if taken else ""
        if fits(before + text):
            taken = before + text
            continue
        shown = _longest(text, lambda part, before=before: fits(before + part + CUT))  # type: ignore[misc]
        if len(shown) < LEAST_CHARACTERS:
            return taken, number, None
        return before + shown + CUT, number + 1, (len(shown), len(text))
    return taken, len(texts), None


def _longest(text: str, fits: Callable[[str], bool]) -> str:
    """The longest beginning that fits, ending with a word where there are words."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(text[:middle]) else (low, middle - 1)
    return text[:low].rpartition(" ")[0] or text[:low]
