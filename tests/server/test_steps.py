"""The choice of the next layer: conversations are brought into step, nobody is held for long, one alone never waits."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from fhe_llm_server.steps import ACTIVE_SECONDS, PATIENCE_JOBS, WINDOW_SHARE, Choice, Group, Steps

RING = 40
JOB = 0.01
"""Seconds an evaluation takes in these tests, per job."""


def steps(*walks: tuple[str, int, float, float]) -> Steps:
    """Sessions answered at (place, moment) after pauses of the given length."""
    made = Steps()
    made.set_ring(RING)
    for session, place, moment, pause in walks:
        made.answered(session, place - 1, moment - pause)
        made.asked(session, moment)
        made.answered(session, place, moment)
    return made


def group(place: int | None, sessions: int = 1, overtaken: float = 0) -> Group:
    return Group(place, sessions, overtaken)


def test_without_a_ring_the_most_wanted_layer_goes_first_then_the_line() -> None:
    groups = [group(None), group(None, 3), group(None, 3)]
    assert Steps().choose(groups, "abcdefg", 0.0, JOB) == Choice(1)


def test_one_alone_never_waits() -> None:
    made = steps(("a", 4, 1.0, 0.004))
    assert made.choose([group(5)], ["a"], 1.004, JOB) == Choice(0)


def test_the_session_behind_catches_up_with_the_nearest_ahead() -> None:
    made = steps()
    # 10 chases 12, 30 chases 35: only the chasers may run
    groups = [group(12), group(35), group(30), group(10)]
    assert made.choose(groups, "abcd", 0.0, JOB) == Choice(2)
    assert made.choose(groups[:2], "ab", 0.0, JOB) == Choice(1)


def test_the_ring_has_no_beginning() -> None:
    assert steps().choose([group(1), group(RING - 1)], "ab", 0.0, JOB) == Choice(1)


def test_a_round_whose_mate_is_due_waits_for_a_share_of_its_evaluation_at_most() -> None:
    made = steps(("away", 6, 1.0, 0.002))
    assert made.choose([group(7)], ["a"], 1.001, JOB) == Choice(0, WINDOW_SHARE * JOB)
    assert made.choose([group(7, 3)], "abc", 1.001, JOB) == Choice(0, 3 * WINDOW_SHARE * JOB)
    assert made.choose([group(7), group(None)], ["a", "b"], 1.001, JOB) == Choice(1)


def test_nobody_waits_for_a_session_that_is_late_slow_or_gone() -> None:
    slow = steps(("away", 6, 1.0, 0.5))
    assert slow.choose([group(7)], ["a"], 1.001, JOB) == Choice(0)
    late = steps(("away", 6, 1.0, 0.004))
    assert late.choose([group(7)], ["a"], 1.010, JOB) == Choice(0)
    gone = steps(("away", 6, 1.0, 0.004))
    assert gone.choose([group(7)], ["a"], 1.1 + ACTIVE_SECONDS, JOB) == Choice(0)


def test_a_round_overtaken_too_often_goes_first() -> None:
    groups = [group(10, 5), group(12, 1, PATIENCE_JOBS)]
    assert steps().choose(groups, "abcdef", 0.0, JOB) == Choice(1)


def test_a_long_request_takes_its_session_off_the_ring() -> None:
    made = steps(("away", 6, 1.0, 0.004))
    made.answered("away", None, 1.0)
    assert made.choose([group(7)], ["a"], 1.001, JOB) == Choice(0)


def walk(starts: list[int], rounds: int, pause: float = 0.0) -> tuple[list[int], Counter[int]]:
    """Play sessions against the policy on a clock of its own: jobs per batch, and rounds per session."""
    made, now = steps(), 0.0
    queue = {n: (place, 0) for n, place in enumerate(starts)}
    back: dict[int, tuple[float, int]] = {}
    sizes, served = list[int](), Counter[int]()
    while len(sizes) < rounds:
        for n in [n for n, (due, _) in back.items() if due <= now]:
            due, place = back.pop(n)
            queue[n] = (place, 0)
            made.asked(str(n), due)
        if not queue:
            now = min(due for due, _ in back.values())
            continue
        by_place: dict[int, list[int]] = {}
        for n, (place, _) in queue.items():
            by_place.setdefault(place, []).append(n)
        groups = [
            Group(place, len(members), max(queue[n][1] for n in members))
            for place, members in by_place.items()
        ]
        choice = made.choose(groups, [str(n) for n in queue], now, JOB)
        arrivals = [due for due, _ in back.values() if due <= now + choice.wait]
        if choice.wait and arrivals:
            now = max(min(arrivals), now)
            continue
        members = list(by_place.values())[choice.index]
        place = groups[choice.index].place or 0
        now += JOB * len(members)
        for n in members:
            del queue[n]
            served[n] += 1
            made.answered(str(n), place, now)
            back[n] = (now + pause, (place + 1) % RING)
        queue = {n: (at, overtaken + len(members)) for n, (at, overtaken) in queue.items()}
        sizes.append(len(members))
    return sizes, served


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, RING - 1), min_size=2, max_size=8), st.sampled_from([0.0, 0.001, 0.002]))
def test_conversations_end_up_in_step_and_none_falls_behind(starts: list[int], pause: float) -> None:
    sizes, served = walk(starts, 600, pause)
    assert sizes[-1] == len(starts)
    assert max(served.values()) - min(served.values()) <= 3 * RING


def test_slow_clients_are_not_waited_for() -> None:
    sizes, _ = walk([0, 20], 100, pause=0.02)
    assert set(sizes) == {1}
