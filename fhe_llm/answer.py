"""What a generation gives back: chunks while it runs, one answer at its end."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from fhe_llm.models.tools import ToolCall
from fhe_llm.receipt import PrivacyReceipt, html_table

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Phases:
    """Seconds spent per part of the work, summed over rounds.

    ``encrypt`` includes packing and encoding, ``decrypt`` decoding and unpacking; ``wire`` is the round
    trip less what the proxy reports; ``model`` is the client half and everything else at the client.
    """

    encrypt: float = 0.0
    wire: float = 0.0
    queue: float = 0.0
    rotations: float = 0.0
    products: float = 0.0
    finish: float = 0.0
    decrypt: float = 0.0
    model: float = 0.0

    def __sub__(self, earlier: Phases) -> Phases:
        mine, theirs = asdict(self), asdict(earlier)
        return Phases(**{name: mine[name] - theirs[name] for name in mine})

    def with_model(self, seconds: float) -> Phases:
        """The same, with ``model`` what is left of ``seconds`` of wall clock."""
        others = replace(self, model=0.0)
        return replace(others, model=max(0.0, seconds - sum(asdict(others).values())))

    def __truediv__(self, count: int) -> Phases:
        return Phases(**{name: seconds / count for name, seconds in asdict(self).items()})


@dataclass(frozen=True, slots=True)
class AnswerTimings:
    """Wall-clock seconds, without the time a streaming caller kept the generation waiting.

    ``seconds_per_token`` covers decoding only: from the first token to the last, per token after the first;
    None where there was one token. ``decode`` splits it up (zeros where it is None); ``prefill`` splits the
    first token.
    """

    seconds: float
    seconds_to_first_token: float
    seconds_per_token: float | None
    prefill: Phases
    decode: Phases


@dataclass(frozen=True, slots=True)
class Decoding:
    """How the ``tokens`` after the first came about: ``rounds`` of ``passes`` through all ``layers``, which carried
    ``drafted`` guesses of which ``accepted`` were right."""

    tokens: int
    layers: int
    rounds: int
    passes: int
    drafted: int
    accepted: int

    @property
    def rounds_per_token(self) -> float | None:
        """As it went; without speculation it is ``layers``. None where there was one token."""
        return self.rounds / self.tokens if self.tokens else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        without = {"rounds_per_token_without_speculation": self.layers if self.tokens else None}
        return asdict(self) | {"rounds_per_token": self.rounds_per_token} | without


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished answer. ``token_ids`` are all tokens the model chose, an end-of-turn token included;
    ``text`` is what they say, up to a stop string and without ``tool_calls``. ``finish_reason`` is "stop" (end of
    turn, of a grammar or at a stop string), "tool_calls" (the same, after calls) or "length"; a call that "length" cut
    off is ``unfinished_tool_call``. ``cached_tokens`` of the ``prompt_tokens`` came from the prefix cache."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    timings: AnswerTimings
    receipt: PrivacyReceipt
    decoding: Decoding
    cached_tokens: int = 0
    tool_calls: tuple[ToolCall, ...] = ()
    unfinished_tool_call: str = ""

    @property
    def completion_tokens(self) -> int:
        """Number of tokens the model chose."""
        return len(self.token_ids)

    def to_dict(self) -> dict[str, Any]:
        """Plain data with stable names, as ``fhe-llm generate --json`` prints it."""
        return {
            "text": self.text,
            "token_ids": list(self.token_ids),
            "tool_calls": [call.to_dict() for call in self.tool_calls],
            "finish_reason": self.finish_reason,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "seconds_per_token": self.timings.seconds_per_token,
            "seconds_to_first_token": self.timings.seconds_to_first_token,
            "bytes_up": self.receipt.bytes_up,
            "bytes_down": self.receipt.bytes_down,
            "rounds": self.receipt.rounds,
            "decoding": self.decoding.to_dict(),
            "timings": asdict(self.timings),
            "receipt": self.receipt.to_dict(),
        }

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        per_token = self.timings.seconds_per_token
        speed = "" if per_token is None else f", then {per_token:.2f} s a token"
        cached = f" ({self.cached_tokens} cached)" if self.cached_tokens else ""
        rows = (
            ("answer", self.text),
            *(("tool call", f"{call.name}({call.arguments})") for call in self.tool_calls),
            (
                "tokens",
                f"{self.prompt_tokens} read{cached}, {self.completion_tokens} written ({self.finish_reason})",
            ),
            ("time", f"{self.timings.seconds_to_first_token:.1f} s to the first token{speed}"),
        )
        return html_table("Encrypted answer", rows) + self.receipt._repr_html_()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed answer. All ``text`` joined is the answer's text, all ``token_ids`` its token
    ids, all ``tool_calls`` its calls; only the last chunk carries the ``answer``. Text can be empty while a
    character, a stop string or a tool call is incomplete."""

    text: str
    token_ids: tuple[int, ...]
    answer: Answer | None = None
    tool_calls: tuple[ToolCall, ...] = ()
