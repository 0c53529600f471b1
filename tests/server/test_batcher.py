"""Grouping, fairness, bounds, cancellation and failure of the queue."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rounds_kit import DEFAULT, InstantEvaluator, job, residues

from fhe_llm.evaluator.contract import EncodedLayer, EvaluationKeys, Job
from fhe_llm.evaluator.cpu import CpuEvaluator
from fhe_llm.evaluator.device import DeviceLostError
from fhe_llm.evaluator.packed_plan import plan_elements
from fhe_llm.evaluator.plan import plan_linear
from fhe_llm.params import preset
from fhe_llm_server.batcher import BATCH_JOBS, Batcher
from fhe_llm_server.metrics import Metrics
from fhe_llm_server.refusal import Refusal
from fhe_llm_server.steps import PATIENCE_JOBS

PLAN = plan_linear(preset("default"), 8, 8)
A, B = (EncodedLayer(name, PLAN, 24, np.zeros(1, np.uint32)) for name in "ab")
JOB = job(0, PLAN)


class Gate:
    """Blocks the first evaluation until it is opened, so that a queue can build up."""

    def __init__(self) -> None:
        self.begun, self.opened = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        self.opened.wait(20)


async def queued(batcher: Batcher, jobs: int) -> None:
    while batcher.queued_jobs != jobs:
        await asyncio.sleep(0.005)


async def blocked(before: Callable[[], None], most: int = 1024) -> tuple[Batcher, InstantEvaluator, Any]:
    """A batcher whose worker is held inside a first round."""
    evaluator = InstantEvaluator(before=before)
    batcher = Batcher(evaluator, most, Metrics())
    first = asyncio.create_task(batcher.submit("first", A, [JOB]))
    while batcher.queued_jobs or not getattr(before, "begun").is_set():  # noqa: B009
        await asyncio.sleep(0.005)
    return batcher, evaluator, first


async def test_a_lone_request_is_evaluated_at_once_and_timed() -> None:
    evaluator = InstantEvaluator()
    batcher = Batcher(evaluator, 100, Metrics())
    result = await batcher.submit("s", A, [JOB])
    assert evaluator.batches == [("a", 1)]
    assert (result.rotations, result.products, result.finish) == (0.001, 0.002, 0.003)
    assert result.total >= result.queue >= 0
    batcher.close()


async def test_what_waits_for_one_layer_shares_a_pass_and_gets_its_own_answers() -> None:
    gate = Gate()
    batcher, evaluator, first = await blocked(gate)
    jobs = [job(seed, PLAN) for seed in range(3)]
    rounds = [asyncio.create_task(batcher.submit(f"s{n}", A, [jobs[n]])) for n in range(3)]
    other = asyncio.create_task(batcher.submit("s9", B, [JOB]))
    await queued(batcher, 4)
    gate.opened.set()
    results = await asyncio.gather(*rounds)
    await asyncio.gather(first, other)
    assert evaluator.batches == [("a", 1), ("a", 3), ("b", 1)]
    for result, asked in zip(results, jobs, strict=True):
        assert np.array_equal(result.outputs[0][0], asked.inputs[0, :, :1])
    batcher.close()


async def test_a_long_request_is_sliced_and_others_get_their_turn() -> None:
    gate = Gate()
    batcher, evaluator, first = await blocked(gate)
    long_jobs = [job(seed, PLAN) for seed in range(2)] * 20
    long = asyncio.create_task(batcher.submit("long", A, long_jobs))
    await queued(batcher, 40)
    short = asyncio.create_task(batcher.submit("short", B, [JOB]))
    await queued(batcher, 41)
    gate.opened.set()
    await asyncio.gather(first, short)
    assert evaluator.batches[:3] == [("a", 1), ("a", BATCH_JOBS), ("b", 1)]
    result = await long
    assert len(result.outputs) == 40
    assert all(
        np.array_equal(out[0], asked.inputs[0, :, :1])
        for out, asked in zip(result.outputs, long_jobs, strict=True)
    )
    batcher.close()


async def test_sessions_take_turns() -> None:
    gate = Gate()
    batcher, evaluator, first = await blocked(gate)
    order: list[str] = []

    async def ask(session: str) -> None:
        await batcher.submit(session, A if session == "greedy" else B, [JOB] * BATCH_JOBS)
        order.append(session)

    greedy = [asyncio.create_task(ask("greedy")) for _ in range(4)]
    await queued(batcher, 4 * BATCH_JOBS)
    modest = asyncio.create_task(ask("modest"))
    await queued(batcher, 5 * BATCH_JOBS)
    gate.opened.set()
    await asyncio.gather(first, modest, *greedy)
    assert order.index("modest") == 1
    assert [name for name, _ in evaluator.batches] == ["a", "a", "b", "a", "a", "a"]
    batcher.close()


async def test_a_full_queue_says_busy_and_one_key_cannot_fill_it() -> None:
    gate = Gate()
    batcher, _, first = await blocked(gate, most=512)
    waiting = [asyncio.create_task(batcher.submit("one", A, [JOB] * 256))]
    await queued(batcher, 256)
    with pytest.raises(Refusal, match="capacity") as refused:
        await batcher.submit("one", A, [JOB])
    assert refused.value.proxy_code == "busy"
    assert 50 <= (refused.value.retry_after_ms or 0) <= 10_000
    waiting.append(asyncio.create_task(batcher.submit("two", A, [JOB] * 256)))
    await queued(batcher, 512)
    with pytest.raises(Refusal, match="capacity"):
        await batcher.submit("three", A, [JOB])
    gate.opened.set()
    await asyncio.gather(first, *waiting)
    assert batcher.queued_jobs == 0
    await batcher.submit("three", A, [JOB])
    batcher.close()


async def test_cancelled_work_is_dropped() -> None:
    gate = Gate()
    batcher, evaluator, first = await blocked(gate)
    gone = asyncio.create_task(batcher.submit("gone", B, [JOB] * 5))
    await queued(batcher, 5)
    gone.cancel()
    await queued(batcher, 0)
    gate.opened.set()
    await first
    await batcher.submit("s", A, [JOB])
    assert evaluator.batches == [("a", 1), ("a", 1)]
    batcher.close()


async def test_a_failing_round_fails_alone() -> None:
    gate = Gate()
    poison = job(99, PLAN)

    class Picky(InstantEvaluator):
        def evaluate(self, layer: EncodedLayer, jobs: Any) -> Any:
            gate()
            if any(each is poison for each in jobs):
                raise MemoryError if len(jobs) == 2 else ValueError("bad job")
            return super().evaluate(layer, jobs)

    batcher = Batcher(Picky(), 100, Metrics())
    first = asyncio.create_task(batcher.submit("first", A, [JOB]))
    while batcher.queued_jobs or not gate.begun.is_set():
        await asyncio.sleep(0.005)
    good = asyncio.create_task(batcher.submit("good", A, [JOB]))
    bad = asyncio.create_task(batcher.submit("bad", A, [poison]))
    await queued(batcher, 2)
    gate.opened.set()
    await asyncio.gather(first, good)
    with pytest.raises(Refusal, match="cannot evaluate") as refused:
        await bad
    assert refused.value.proxy_code == "internal"
    assert "bad job" not in str(refused.value)
    await batcher.submit("after", A, [JOB])
    batcher.close()


async def test_memory_running_out_is_busy() -> None:
    def exhausted() -> None:
        raise MemoryError

    batcher = Batcher(InstantEvaluator(before=exhausted), 100, Metrics())
    with pytest.raises(Refusal) as refused:
        await batcher.submit("s", A, [JOB])
    assert refused.value.proxy_code == "busy"
    batcher.close()


async def test_a_lost_device_is_said_once_and_nobody_tries_again() -> None:
    gate, lost = Gate(), list[DeviceLostError]()
    evaluations = 0

    class Lost(InstantEvaluator):
        def evaluate(self, layer: EncodedLayer, jobs: Any) -> Any:
            nonlocal evaluations
            gate()
            evaluations += 1
            raise DeviceLostError("cannot compute on a GPU: cudaErrorECCUncorrectable. Start this process again.")

    batcher = Batcher(Lost(), 100, Metrics(), on_lost=lost.append)
    first = asyncio.create_task(batcher.submit("first", A, [JOB]))
    while batcher.queued_jobs or not gate.begun.is_set():
        await asyncio.sleep(0.005)
    others = [asyncio.create_task(batcher.submit(name, A, [JOB])) for name in ("one", "two")]
    await queued(batcher, 2)
    gate.opened.set()
    for round_ in (first, *others):
        with pytest.raises(Refusal, match="lost its device") as refused:
            await round_
        assert refused.value.proxy_code == "not_ready"
    await asyncio.sleep(0)
    assert (evaluations, len(lost)) == (2, 2)  # those two together, not one by one
    batcher.close()


async def test_closing_fails_what_waits_and_refuses_what_comes() -> None:
    gate = Gate()
    batcher, _, first = await blocked(gate)
    waiting = asyncio.create_task(batcher.submit("s", A, [JOB]))
    await queued(batcher, 1)
    closing = asyncio.create_task(asyncio.to_thread(batcher.close))
    with pytest.raises(Refusal, match="shutting down"):
        await waiting
    gate.opened.set()
    await closing
    await first
    with pytest.raises(Refusal, match="shutting down"):
        await batcher.submit("s", A, [JOB])


async def test_a_held_round_is_overtaken_by_so_many_jobs_and_no_more() -> None:
    gate = Gate()
    batcher, evaluator, first = await blocked(gate)
    batcher.set_pass([A, B])
    ahead = asyncio.create_task(batcher.submit("ahead", B, [JOB]))
    await queued(batcher, 1)
    behind = [asyncio.create_task(batcher.submit(f"s{n}", A, [JOB])) for n in range(PATIENCE_JOBS + 16)]
    await queued(batcher, 1 + len(behind))
    gate.opened.set()
    await asyncio.gather(first, ahead, *behind)
    before = PATIENCE_JOBS // BATCH_JOBS
    assert evaluator.batches == [("a", 1), *[("a", 8)] * before, ("b", 1), *[("a", 8)] * 2]
    batcher.close()


class GatedEvaluator(CpuEvaluator):
    """The real evaluator behind a gate, with a list of the batches it was given."""

    def __init__(self, before: Callable[[], None]) -> None:
        super().__init__(DEFAULT, 2)
        self.before = before
        self.batches: list[tuple[str, int]] = []

    def evaluate(self, layer: EncodedLayer, jobs: Any) -> Any:
        self.before()
        self.batches.append((layer.name, len(jobs)))
        return super().evaluate(layer, jobs)


async def test_sessions_with_their_own_keys_share_a_pass_and_get_the_bytes_they_would_get_alone() -> None:
    gate = Gate()
    evaluator = GatedEvaluator(gate)
    plan = plan_linear(DEFAULT, 24, 40)
    layers = [
        evaluator.encode(name, plan, np.random.default_rng(n).standard_normal((24, 40)).astype(np.float32))
        for n, name in enumerate("ab")
    ]
    elements = plan_elements(DEFAULT, [plan])
    shape = (len(elements), 2, 2, 3, DEFAULT.ring_degree)
    keys = [
        evaluator.prepare_keys(EvaluationKeys(DEFAULT, elements, residues(shape, DEFAULT.primes, seed)))
        for seed in range(6)
    ]
    jobs = [job(seed, plan, key) for seed, key in enumerate(keys)]
    batcher = Batcher(evaluator, 100, Metrics())
    batcher.set_pass(layers)
    first = asyncio.create_task(batcher.submit("first", layers[0], jobs[:1]))
    while batcher.queued_jobs or not gate.begun.is_set():
        await asyncio.sleep(0.005)
    # the last one stands a layer ahead: it is held until those behind had their turn
    places = [1, 0, 0, 0, 0, 1]
    rounds = [
        asyncio.create_task(batcher.submit(f"s{n}", layers[place], [jobs[n]]))
        for n, place in enumerate(places)
    ]
    await queued(batcher, 6)
    gate.opened.set()
    results = await asyncio.gather(*rounds)
    await first
    assert evaluator.batches == [("a", 1), ("a", 4), ("b", 2)]
    for n, place in enumerate(places):
        alone = evaluator.evaluate(layers[place], [jobs[n]])[0][0]
        assert results[n].outputs[0].tobytes() == alone.tobytes()
    batcher.close()
    evaluator.close()


async def test_two_workers_run_two_layers_side_by_side() -> None:
    together = threading.Barrier(2, timeout=20)
    batcher = Batcher(InstantEvaluator(before=lambda: void(together.wait())), 100, Metrics(), workers=2)
    results = await asyncio.gather(batcher.submit("s", A, [JOB]), batcher.submit("t", B, [JOB]))
    assert [len(result.outputs) for result in results] == [1, 1]  # neither would pass the barrier alone
    batcher.close()


async def test_two_workers_keep_the_slices_of_a_request_in_order() -> None:
    evaluator = InstantEvaluator(before=lambda: time.sleep(random.uniform(0, 0.003)))
    batcher = Batcher(evaluator, 1024, Metrics(), workers=2)
    kinds = [job(seed, PLAN) for seed in range(3)]
    asked = [[kinds[(i + n) % 3] for i in range(5 * BATCH_JOBS + n)] for n in range(4)]
    results = await asyncio.gather(*(batcher.submit(f"s{n % 2}", A, jobs) for n, jobs in enumerate(asked)))
    for result, jobs in zip(results, asked, strict=True):
        assert len(result.outputs) == len(jobs)
        for out, wanted in zip(result.outputs, jobs, strict=True):
            assert np.array_equal(out[0], wanted.inputs[0, :, :1])
    batcher.close()


class PoisonedEvaluator(InstantEvaluator):
    """Fails, after a moment, wherever one job takes part."""

    def __init__(self, poison: Job) -> None:
        super().__init__(before=lambda: time.sleep(random.uniform(0, 0.003)))
        self.poison = poison

    def evaluate(self, layer: EncodedLayer, jobs: Any) -> Any:
        outcome = super().evaluate(layer, jobs)
        if any(each is self.poison for each in jobs):
            raise ValueError("bad job")
        return outcome


async def test_with_two_workers_a_failing_round_fails_alone() -> None:
    poison = job(99, PLAN)
    batcher = Batcher(PoisonedEvaluator(poison), 1024, Metrics(), workers=2)
    batcher.set_pass([A, B])
    good = [batcher.submit(f"s{n}", (A, B)[n % 2], [JOB] * (1 + n)) for n in range(12)]
    bad = [batcher.submit(f"bad{n}", (A, B)[n], [JOB, poison, JOB]) for n in range(2)]
    outcomes = await asyncio.gather(*bad, *good, return_exceptions=True)
    assert [getattr(outcome, "proxy_code", None) for outcome in outcomes[:2]] == ["internal"] * 2
    assert [len(outcome.outputs) for outcome in outcomes[2:]] == list(range(1, 13))  # type: ignore[union-attr]
    assert batcher.queued_jobs == 0
    await both_workers_live(batcher)
    batcher.close()


async def test_with_two_workers_a_failing_slice_fails_its_whole_request() -> None:
    poison = job(99, PLAN)
    batcher = Batcher(PoisonedEvaluator(poison), 1024, Metrics(), workers=2)
    jobs = [JOB] * (5 * BATCH_JOBS)
    jobs[2 * BATCH_JOBS] = poison
    long, others = batcher.submit("long", A, jobs), [batcher.submit(f"s{n}", A, [JOB] * 9) for n in range(3)]
    outcomes = await asyncio.gather(long, *others, return_exceptions=True)
    assert getattr(outcomes[0], "proxy_code", None) == "internal"
    assert [len(outcome.outputs) for outcome in outcomes[1:]] == [9] * 3  # type: ignore[union-attr]
    assert batcher.queued_jobs == 0
    await both_workers_live(batcher)
    batcher.close()


async def test_closing_two_workers_finishes_what_runs_and_fails_the_rest() -> None:
    running, opened = threading.Semaphore(0), threading.Event()

    def before() -> None:
        running.release()
        opened.wait(20)

    evaluator = InstantEvaluator(before=before)
    batcher = Batcher(evaluator, 1024, Metrics(), workers=2)
    long = asyncio.create_task(batcher.submit("long", A, [JOB] * (BATCH_JOBS + 1)))
    short = asyncio.create_task(batcher.submit("short", B, [JOB]))
    for _ in range(2):
        await asyncio.to_thread(running.acquire)
    waiting = asyncio.create_task(batcher.submit("waiting", B, [JOB]))
    await queued(batcher, 2)
    closing = asyncio.create_task(asyncio.to_thread(batcher.close))
    for refused in (waiting, long):  # the slice that runs would have been followed by another
        with pytest.raises(Refusal, match="shutting down"):
            await refused
    opened.set()
    await closing
    assert len((await short).outputs) == 1
    assert sorted(evaluator.batches) == [("a", BATCH_JOBS), ("b", 1)]
    assert not any(thread.is_alive() for thread in batcher._threads)


async def both_workers_live(batcher: Batcher) -> None:
    """Rounds of two layers that end only together."""
    together = threading.Barrier(2, timeout=20)
    batcher._evaluator = InstantEvaluator(before=lambda: void(together.wait()))
    await asyncio.gather(batcher.submit("s", A, [JOB]), batcher.submit("t", B, [JOB]))


def void(_: object) -> None:
    """Take a value where a call must return nothing."""
