"""Speculative decoding: guess the next tokens at the client, check all guesses in one pass through the layers.

A pass costs its rounds whether it carries one token or several. The guesses (drafts) come from text that occurred
before (prompt look-up: Saxena, "Prompt Lookup Decoding", 2023) or from a small model at the client. What is chosen
never depends on a draft, only how many tokens a pass yields.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from fhe_llm.client.sampling import Sampler
from fhe_llm.errors import RequestError

MAX_DRAFT: Final = 32
"""More drafts in one pass than ever pay."""
_MOST_FORCED: Final = 63
"""Forced tokens in one pass, with the one before them: as many as a round of the prompt has."""
_LONGEST_MATCH: Final = 8
_WORTHWHILE: Final = 1.05
"""Gain in tokens per second, as estimated, below which a pass carries no drafts."""
_PRIORS: Final = (0.35, 0.5, 0.65, 0.75)
"""Chance of a drafted token after a match of 1, 2, 3 and more tokens, before this conversation has shown its own."""


@dataclass(frozen=True, slots=True)
class SpeculationSettings:
    """How far to guess ahead.

    ``max_draft`` bounds the drafts of a pass (0 to 32). ``extra_cost`` is what one more token adds to a pass, relative
    to a pass of one token: 0 counts passes only (a slow link), 1 says that tokens cost the same together as alone
    (nothing is ever drafted); None measures it. ``fixed`` sends exactly ``max_draft`` drafts in every pass, save where
    the context ends, so that the proxy cannot tell where the text repeats itself, how much of a draft was right, or
    where ``max_tokens`` is near. Raises :class:`RequestError`.
    """

    max_draft: int = 8
    fixed: bool = False
    extra_cost: float | None = None

    def __post_init__(self) -> None:
        whole = isinstance(self.max_draft, int) and not isinstance(self.max_draft, bool)
        if not whole or not 0 <= self.max_draft <= MAX_DRAFT:
            raise RequestError(
                f"cannot use max_draft={self.max_draft!r}: it must be a whole number up to {MAX_DRAFT}. Change it."
            )
        if self.extra_cost is not None and not 0 <= self.extra_cost <= 100:
            raise RequestError(
                f"cannot use extra_cost={self.extra_cost!r}: it must be None or from 0 to 100. Change it."
            )


def verify(
    sampler: Sampler, logits: NDArray[Any], drafts: Sequence[int], end_ids: Collection[int]
) -> list[int]:
    """The tokens a pass over the last token and ``drafts`` yields: logits [1 + drafts, vocab], one row a position.

    Each row's token is chosen as without drafts; the next row counts only if that token is the draft it was computed
    for. This is the rejection rule of Leviathan et al. ("Fast Inference from Transformers via Speculative Decoding",
    2023, algorithm 1) and Chen et al. (2023) for drafts that are point masses: x is kept with probability
    min(1, p(x)/1) = p(x), and otherwise replaced by a draw from norm(max(0, p - q)), which is p without x. One draw a
    token, so a seed gives the tokens it gives without drafts. Stops behind an end token and where a grammar ends.
    """
    chosen: list[int] = []
    for row, draft in zip(logits, [*drafts, None], strict=True):
        chosen.append(sampler(row))
        if chosen[-1] != draft or chosen[-1] in end_ids or sampler.complete:
            break
    return chosen


class Acceptance:
    """An estimate of the chance that a drafted token is right: a mean that forgets, begun from a prior."""

    _WEIGHT, _MEMORY = 6.0, 0.97

    def __init__(self, prior: float) -> None:
        self._hits, self._tries = prior * self._WEIGHT, self._WEIGHT

    @property
    def chance(self) -> float:
        """Between 0 and 1, exclusive."""
        return min(0.99, max(0.01, self._hits / self._tries))

    def observe(self, hits: int, tries: int) -> None:
        """``tries`` drafts were checked, in order, and ``hits`` of them were right."""
        fade = self._MEMORY**tries
        self._hits, self._tries = self._hits * fade + hits, self._tries * fade + tries


class PassCosts:
    """Seconds of a pass by the number of its tokens, as measured; threads may share one.

    The fastest of the last few passes stands for all of them: other load only ever adds. Between the counts that
    occurred the cost is interpolated.
    """

    _KEPT, _MOST = 8, 64

    def __init__(self) -> None:
        self._seconds: dict[int, deque[float]] = {}
        self._lock = threading.Lock()

    def observe(self, tokens: int, seconds: float) -> None:
        """A pass over ``tokens`` tokens took ``seconds``."""
        with self._lock:
            if tokens in self._seconds or len(self._seconds) < self._MOST:
                self._seconds.setdefault(tokens, deque(maxlen=self._KEPT)).append(seconds)

    def seconds(self, tokens: int) -> float | None:
        """The estimate; None until one token and some larger number have been seen."""
        with self._lock:
            known = {count: min(seen) for count, seen in sorted(self._seconds.items())}
        if 1 not in known or len(known) < 2:
            return None
        counts, costs = list(known), list(known.values())
        if tokens > counts[-1]:
            slope = max(0.0, (costs[-1] - costs[0]) / (counts[-1] - counts[0]))
            return costs[-1] + slope * (tokens - counts[-1])
        return float(np.interp(tokens, counts, costs))


class Drafter(Protocol):
    """A source of drafts for one generation."""

    seconds_per_token: float
    """What drafting costs the client; 0 where it is free."""

    def acceptance(self, ids: Sequence[int]) -> Acceptance | None:
        """How far a draft behind ``ids`` is to be trusted; None where there is none."""
        ...

    def draft(self, ids: Sequence[int], count: int, sampler: Sampler) -> Sequence[int]:
        """Up to ``count`` tokens behind the ``ids`` that :meth:`acceptance` was last asked about."""
        ...


class PromptLookup:
    """Drafts what followed the last time the same few tokens occurred: the longest match, of those the latest.

    Cost: one pass over the ids, no look at the model.
    """

    seconds_per_token = 0.0

    def __init__(self) -> None:
        self._acceptance = [Acceptance(prior) for prior in _PRIORS]
        self._source = 0

    def acceptance(self, ids: Sequence[int]) -> Acceptance | None:
        """See :class:`Drafter`; one estimate for each length of match."""
        text = np.asarray(ids)
        ends = np.flatnonzero(text[:-1] == text[-1])
        longest, length = ends, 1
        while len(ends) and length < _LONGEST_MATCH:
            ends = ends[ends >= length]
            ends = (
                ends[text[ends - length] == text[len(text) - 1 - length]] if length < len(text) else ends[:0]
            )
            if len(ends):
                longest, length = ends, length + 1
        if not len(longest):
            return None
        self._source = int(longest[-1]) + 1
        return self._acceptance[min(length, len(_PRIORS)) - 1]

    def draft(self, ids: Sequence[int], count: int, sampler: Sampler) -> Sequence[int]:  # noqa: ARG002
        """See :class:`Drafter`. A match that reaches the end of the text goes on in its own draft."""
        drafts = list(ids[self._source : self._source + count])
        period = len(drafts)
        while len(drafts) < count:
            drafts.append(drafts[len(drafts) - period])
        return drafts


class Speculator:
    """Decides how many drafts the next pass carries, and learns from what became of them. For one generation."""

    def __init__(
        self, settings: SpeculationSettings, drafters: Sequence[Drafter] = (), costs: PassCosts | None = None
    ) -> None:
        """``drafters`` compete for each pass (without any: prompt look-up); ``costs`` are shared by all generations
        through one proxy."""
        self.settings = settings
        self._drafters = tuple(drafters) or (PromptLookup(),)
        self.costs = costs or PassCosts()
        self._watched: tuple[Acceptance, Sequence[int]] | None = None

    def propose(self, ids: Sequence[int], most: int, sampler: Sampler) -> tuple[int, ...]:
        """Drafts behind ``ids`` (prompt and answer so far), at most ``most``; with ``fixed`` exactly as many as the
        settings say, filled up with repetitions of the last token. Tokens that a grammar forces are drafts that
        cannot be wrong."""
        forced = sampler.forced()[: max(0, min(most, _MOST_FORCED))]
        most = max(0, min(most, self.settings.max_draft))
        self._watched, drafts = None, tuple(forced[:most] if self.settings.fixed else forced)
        plan = self._plan(ids, most) if most and not drafts else None
        if plan is not None:
            drafter, acceptance, count = plan
            found = drafter.draft(
                ids, max(1, count), sampler
            )  # a free draft is watched even where it is not sent
            self._watched, drafts = (acceptance, found), tuple(found[:count])
        if self.settings.fixed:
            drafts += tuple(ids[-1:]) * (most - len(drafts))
        return drafts

    def observe(self, chosen: Sequence[int], tokens: int, seconds: float) -> None:
        """A pass over ``tokens`` tokens took ``seconds`` and yielded ``chosen``."""
        self.costs.observe(tokens, seconds)
        if self._watched is None:
            return
        acceptance, drafts = self._watched
        checked = min(len(drafts), len(chosen))
        hits = next((n for n in range(checked) if drafts[n] != chosen[n]), checked)
        acceptance.observe(hits, min(checked, hits + 1))

    def _plan(self, ids: Sequence[int], most: int) -> tuple[Drafter, Acceptance, int] | None:
        """Whom to ask for how many drafts: whoever promises most tokens for the cost, among equals the first. None
        where nobody has a draft that is sent, or free to watch."""
        best, most_gain = None, 0.0
        for drafter in self._drafters:
            acceptance = drafter.acceptance(ids)
            if acceptance is None:
                continue
            cost = self._cost(drafter)
            count = most if self.settings.fixed else best_count(acceptance.chance, cost, most)
            gain = tokens_of(acceptance.chance, count) / cost(count)
            if gain > most_gain and (count or not drafter.seconds_per_token):
                best, most_gain = (drafter, acceptance, count), gain
        return best

    def _cost(self, drafter: Drafter) -> Callable[[int], float]:
        """Cost of a pass with k drafts over that of one without, drafting included."""
        extra, alone, each = self.settings.extra_cost, self.costs.seconds(1), drafter.seconds_per_token
        if extra is not None:
            return lambda k: 1.0 + extra * k
        if not alone:
            return lambda k: 1.0 + k  # nothing measured yet: a pass without drafts is what shows its cost
        return lambda k: ((self.costs.seconds(1 + k) or alone) + each * k) / alone


def best_count(chance: float, cost: Callable[[int], float], most: int) -> int:
    """The number of drafts k that yields most tokens for its cost; 0 unless that beats no drafts by 5 %.

    ``cost(k)`` is relative to a pass without drafts; k is chosen as in Leviathan et al. 2023, theorem 3.8.
    """
    gain = [tokens_of(chance, k) / cost(k) for k in range(most + 1)]
    best = int(np.argmax(gain))
    return best if gain[best] > _WORTHWHILE * gain[0] else 0


def tokens_of(chance: float, count: int) -> float:
    """Tokens a pass with ``count`` drafts yields where each is right with ``chance``, below 1 (Leviathan et al. 2023,
    equation 1)."""
    return (1 - chance ** (count + 1)) / (1 - chance)
