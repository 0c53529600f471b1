"""Which layer to evaluate next, so that conversations fall into step and share passes over the weights.

Every conversation walks the same ring of layers. Two at different layers meet when the one behind catches up: so the
one ahead is *held* while others have work, the nearest pair first. A held round is served anyway when nothing else
can be, or once ``PATIENCE_JOBS`` jobs have overtaken it. A single conversation holds nobody and waits for nobody.
Pure bookkeeping without threads: the batcher calls in with its lock held.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

PATIENCE_JOBS: Final = 64
"""Jobs that may overtake a round. Bounds the unfairness."""
ACTIVE_SECONDS: Final = 1.0
"""A session that has not asked for this long is not waited for."""
WINDOW_SHARE: Final = 0.25
"""The longest wait for a session expected at this very layer, as a share of the time its evaluation takes."""


@dataclass(frozen=True, slots=True)
class Group:
    """Rounds waiting for one layer, in line order; ``place`` is the layer's on the ring, None for one outside it.
    ``overtaken`` is the work evaluated ahead of the one passed over most: jobs, or single tokens' worth of time where
    jobs are larger."""

    place: int | None
    sessions: int
    overtaken: float


@dataclass(frozen=True, slots=True)
class Choice:
    """Serve group ``index`` now, or unless something arrives within ``wait`` seconds."""

    index: int
    wait: float = 0.0


@dataclass(slots=True)
class _Walk:
    """Where a session was answered last, when, and how long it usually takes to come back (None: not known yet)."""

    place: int
    answered: float
    pause: float | None = None


class Steps:
    """Follows sessions around the ring and chooses among waiting groups."""

    def __init__(self) -> None:
        self._ring = 0
        self._walks: dict[str, _Walk] = {}

    def set_ring(self, layers: int) -> None:
        """The number of layers of a pass; until it is known every choice is first come, first served."""
        self._ring = layers

    def asked(self, session: str, now: float) -> None:
        """A session has come back with a round."""
        walk = self._walks.get(session)
        if walk is not None:
            paused = now - walk.answered
            if paused < ACTIVE_SECONDS:
                walk.pause = paused if walk.pause is None else walk.pause + 0.25 * (paused - walk.pause)

    def answered(self, session: str, place: int | None, now: float) -> None:
        """A session's round has been answered; ``place`` None takes it off the ring."""
        if place is None:
            self._walks.pop(session, None)
            return
        walk = self._walks.get(session)
        pause = None if walk is None else walk.pause
        self._walks[session] = _Walk(place, now, pause)

    def choose(
        self, groups: Sequence[Group], waiting: Iterable[str], now: float, seconds_per_job: float
    ) -> Choice:
        """The group to serve among at least one; ``waiting`` are the sessions that have a round in the queue."""
        overdue = [i for i, group in enumerate(groups) if group.overtaken >= PATIENCE_JOBS]
        if overdue:
            return Choice(overdue[0])
        away = self._expected(set(waiting), now)
        held = self._held([g.place for g in groups if g.place is not None], [place for place, _ in away])
        free = [i for i, group in enumerate(groups) if group.place is None or group.place not in held]
        if free:
            return Choice(_largest(groups, free))
        index = _largest(groups, range(len(groups)))
        window = WINDOW_SHARE * seconds_per_job * groups[index].sessions
        soonest = min((due - now for _, due in away), default=window + 1)
        return Choice(index, window if soonest <= window else 0.0)

    def _expected(self, waiting: set[str], now: float) -> list[tuple[int, float]]:
        """(place, due) of every session that is with its client and on its way back."""
        gone = [s for s, walk in self._walks.items() if now - walk.answered > ACTIVE_SECONDS]
        for session in gone:
            if session not in waiting:
                del self._walks[session]
        return [
            ((walk.place + 1) % self._ring, walk.answered + walk.pause)
            for session, walk in self._walks.items()
            if self._ring
            and session not in waiting
            and walk.pause is not None
            and now <= walk.answered + 2 * walk.pause
        ]

    def _held(self, waiting: Sequence[int], away: Sequence[int]) -> set[int]:
        """Waiting places to hold: those whose mates are about to arrive, and the front one of each nearest pair."""
        held = set(waiting) & set(away)
        if not self._ring:
            return held
        places = sorted(set(waiting) | set(away))
        pairs = [
            ((ahead - behind) % self._ring, behind, ahead)
            for behind, ahead in zip(places, places[1:] + places[:1], strict=True)
            if ahead != behind
        ]
        chasing: set[int] = set()
        caught: set[int] = set()
        for _, behind, ahead in sorted(pairs):
            if behind not in caught and ahead not in chasing:
                chasing.add(behind)
                caught.add(ahead)
        return held | (caught & set(waiting))


def _largest(groups: Sequence[Group], among: Iterable[int]) -> int:
    """The group most sessions wait for; of equal ones the first in line."""
    return max(among, key=lambda i: (groups[i].sessions, -i))
