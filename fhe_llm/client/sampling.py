"""From logits to the next token, and from token text to streamed text. No key, no socket."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from fhe_llm.errors import ReplyError, RequestError

MAX_STOP_STRINGS = 16
"""More stop strings than any chat template needs; a bound keeps the matcher's cost per token flat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose tokens and when to stop; checked when made, so that a bad value costs no round.

    ``temperature`` 0 is greedy. ``top_k`` 0, ``top_p`` 1 and ``repetition_penalty`` 1 are off. ``seed`` makes
    sampling reproducible on every platform. ``stop`` strings end the text and are not part of it.
    Raises :class:`RequestError`.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        given: Any = self.stop
        stop = (given,) if isinstance(given, str) else tuple(given or ())
        object.__setattr__(self, "stop", stop)
        require_int("max_tokens", self.max_tokens, 1)
        require_int("top_k", self.top_k, 0)
        if self.seed is not None:
            require_int("seed", self.seed, 0)
        _require_real("temperature", self.temperature, 0.0, 100.0)
        _require_real("top_p", self.top_p, 0.0, 1.0, above=True)
        _require_real("repetition_penalty", self.repetition_penalty, 0.0, 100.0, above=True)
        if len(stop) > MAX_STOP_STRINGS or not all(isinstance(s, str) and s for s in stop):
            raise RequestError(
                f"cannot use stop={self.stop!r}: it must be up to {MAX_STOP_STRINGS} non-empty strings. "
                "Drop the empty ones."
            )

    @classmethod
    def of(cls, **values: Any) -> SamplingParams:
        """The same from keyword arguments a caller gave; an unknown name is a :class:`RequestError`."""
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            known = ", ".join(cls.__dataclass_fields__)
            raise RequestError(
                f"cannot use parameter {unknown[0]!r}: there is no such parameter. Use one of {known}."
            )
        return cls(**values)


class Constraint(Protocol):
    """Which tokens may come next, as a grammar sees it (:mod:`fhe_llm.client.grammar`)."""

    def forced(self) -> Sequence[int]:
        """The tokens that must come next; empty where there is a choice."""
        ...

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next, [vocabulary]; never none."""
        ...

    def accept(self, token: int) -> None:
        """Go on behind an allowed ``token``."""
        ...

    @property
    def complete(self) -> bool:
        """Whether nothing but the end of the turn may follow."""
        ...

    def fork(self) -> Self:
        """An independent constraint at the same place."""
        ...


class Sampler:
    """Chooses the tokens of one generation. The same parameters, seed and logits give the same tokens.

    Order as in transformers: repetition penalty, constraint, temperature, top-k, top-p, one draw per token. A token
    that the constraint forces costs no draw.
    """

    def __init__(
        self, params: SamplingParams, prompt_ids: Iterable[int] = (), constraint: Constraint | None = None
    ) -> None:
        self._params, self._constraint = params, constraint
        self._random = np.random.Generator(np.random.PCG64(params.seed))
        self._seen = set(prompt_ids)
        self._forced: list[int] = []

    def __call__(self, logits: NDArray[Any]) -> int:
        """The next token for ``logits`` [vocabulary]; raises :class:`ReplyError` unless all are finite."""
        if not np.isfinite(logits).all():
            raise ReplyError(
                "cannot choose a token: the logits are not finite. Make a new key and try again."
            )
        forced = self.forced()
        token = forced[0] if forced else self._choose(self._permitted(self._penalised(logits)))
        self.accept(token)
        return token

    def forced(self) -> Sequence[int]:
        """The next tokens, where the constraint leaves no choice."""
        if not self._forced and self._constraint is not None:
            self._forced = list(self._constraint.forced())
        return tuple(self._forced)

    def accept(self, token: int) -> None:
        """Count ``token`` as chosen."""
        self._seen.add(token)
        del self._forced[:1]
        if self._constraint is not None and not self.complete:
            self._constraint.accept(token)

    @property
    def complete(self) -> bool:
        """Whether the constraint allows nothing more."""
        return self._constraint is not None and self._constraint.complete

    def fork(self) -> Sampler:
        """An independent sampler that would choose as this one does from here on."""
        other = Sampler(self._params, self._seen, self._constraint and self._constraint.fork())
        other._random.bit_generator.state = self._random.bit_generator.state
        other._forced = list(self._forced)
        return other

    def _permitted(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        if self._constraint is None:
            return logits
        return np.where(self._constraint.allowed(), logits, -np.inf)

    def _penalised(self, raw: NDArray[Any]) -> NDArray[np.float64]:
        """Divide positive logits of seen tokens by the penalty, multiply negative ones (Keskar et al.,
        "CTRL", 2019, section 4.1, with the sign rule of transformers)."""
        penalty, logits = self._params.repetition_penalty, np.asarray(raw, dtype=np.float64)
        if penalty == 1.0 or not self._seen:
            return logits
        seen = np.fromiter(self._seen, dtype=np.int64)
        seen = seen[(seen >= 0) & (seen < logits.size)]
        logits = logits.copy()
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        return logits

    def _choose(self, logits: NDArray[np.float64]) -> int:
        if self._params.temperature == 0.0:
            return int(np.argmax(logits))
        ids = likeliest(logits, self._params.top_k)
        with np.errstate(over="ignore"):
            weights = np.exp((logits[ids] - logits[ids[0]]) / self._params.temperature)
        mass = np.cumsum(weights)
        # Nucleus sampling (Holtzman et al., 2020): the fewest likely tokens whose probability reaches top_p.
        kept = min(int(np.searchsorted(mass, self._params.top_p * mass[-1])) + 1, ids.size)
        drawn = np.searchsorted(mass[:kept], self._random.random() * mass[kept - 1], side="right")
        return int(ids[min(int(drawn), kept - 1)])


def likeliest(logits: NDArray[np.float64], top_k: int) -> NDArray[np.intp]:
    """Indices of the ``top_k`` largest logits (0: all), largest first, ties by the lower index."""
    if 0 < top_k < logits.size:
        threshold = np.partition(logits, logits.size - top_k)[logits.size - top_k]
        candidates = np.flatnonzero(logits >= threshold)
    else:
        candidates = np.arange(logits.size)
    order = candidates[np.argsort(-logits[candidates], kind="stable")]
    return order[:top_k] if top_k else order


class StopMatcher:
    """Finds stop strings in text that arrives in pieces, and holds back what may yet become one.

    The text ends before the stop string that is complete first (of those, the longest), so the result does
    not depend on how the text was cut into pieces.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Add ``piece``; return the text that is now safe to show. After a match there is none."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [(start + len(s), start) for s in self._stop if (start := text.find(s)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        cut = len(text) - self._possible_prefix(text)
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """The held-back text, once no more can come."""
        held, self._held = self._held, ""
        return held

    def _possible_prefix(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        longest = max((len(s) for s in self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(len(s) > length and s.startswith(text[-length:]) for s in self._stop):
                return length
        return 0


def require_int(name: str, value: object, least: int) -> None:
    """Raise :class:`RequestError` unless ``value`` is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise RequestError(
            f"cannot use {name}={value!r}: it must be a whole number of at least {least}. Change it."
        )


def _require_real(name: str, value: object, low: float, high: float, *, above: bool = False) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= float(value) <= high or (above and float(value) == low):  # type: ignore[arg-type]
        bound = "above" if above else "at least"
        raise RequestError(
            f"cannot use {name}={value!r}: it must be {bound} {low:g} and at most {high:g}. Change it."
        )
