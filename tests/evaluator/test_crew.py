"""Evaluations share the threads, failures are told, and nothing is given up while a thread still uses it."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from fhe_llm.evaluator import crew as crews
from fhe_llm.evaluator import pipeline
from fhe_llm.evaluator.contract import EncodedLayer, EvaluationKeys, Job
from fhe_llm.evaluator.cpu import CpuEvaluator
from fhe_llm.evaluator.crew import Crew, Scratch
from fhe_llm.evaluator.packed_plan import Plan, packed_plans, plan_elements
from fhe_llm.evaluator.plan import plan_linear
from fhe_llm.params import PRESETS

PRESET = PRESETS["default"]
N, LIMBS = PRESET.ring_degree, len(PRESET.data_primes)


class Called:
    """Work that waits until ``wanted`` threads do it together."""

    def __init__(self, wanted: int) -> None:
        self.threads: set[int] = set()
        self.scratch: set[int] = set()
        self._all = threading.Barrier(wanted, timeout=20)

    def __call__(self, scratch: Scratch) -> None:
        self.threads.add(threading.get_ident())
        self.scratch.add(id(scratch))
        self._all.wait()


@pytest.fixture
def crew() -> Any:
    three = Crew(3, N, LIMBS)
    yield three
    three.close()


def test_one_evaluation_uses_all_threads_each_with_its_own_scratch(crew: Crew) -> None:
    work = Called(3)
    with crew.evaluation():
        crew.run(work)
    assert len(work.threads) == len(work.scratch) == 3


def test_a_thread_keeps_its_scratch(crew: Crew) -> None:
    seen = [Called(1) for _ in range(2)]
    with crew.evaluation(), crew.evaluation(), crew.evaluation():
        for work in seen:
            crew.run(work)
    assert seen[0].scratch == seen[1].scratch


def test_company_takes_threads_away_and_gives_them_back(crew: Crew) -> None:
    with crew.evaluation():
        for others, helpers in ((0, 2), (1, 1), (2, 0), (5, 0), (1, 1), (0, 2)):
            company = [crew.evaluation() for _ in range(others)]
            for one in company:
                one.__enter__()
            work = Called(1 + helpers)  # fewer threads would never pass the barrier, more would break it
            crew.run(work)
            assert len(work.threads) == 1 + helpers
            for one in company:
                one.__exit__(None, None, None)


def test_a_failing_helper_fails_the_evaluation(crew: Crew) -> None:
    caller = threading.get_ident()
    together = threading.Barrier(3, timeout=20)

    def work(_: Scratch) -> None:
        together.wait()
        if threading.get_ident() != caller:
            raise MemoryError

    with pytest.raises(MemoryError), crew.evaluation():
        crew.run(work)
    with crew.evaluation():
        crew.run(Called(3))


def test_a_failing_caller_waits_for_its_helpers(crew: Crew) -> None:
    caller, ended = threading.get_ident(), []
    together = threading.Barrier(3, timeout=20)

    def work(_: Scratch) -> None:
        together.wait()
        if threading.get_ident() == caller:
            raise ValueError("the caller's own")
        time.sleep(0.05)
        ended.append(True)

    with pytest.raises(ValueError, match="own"), crew.evaluation():
        crew.run(work)
    assert len(ended) == 2


def test_arenas_are_nobody_elses_and_are_not_used_again_after_a_failure(crew: Crew) -> None:
    with crew.evaluation() as first, crew.evaluation() as second:
        assert first is not second
    with crew.evaluation() as again:
        assert again in (first, second)
    with pytest.raises(ValueError, match="spoilt"), crew.evaluation() as spoilt:
        raise ValueError("spoilt")
    with crew.evaluation() as one, crew.evaluation() as two, crew.evaluation() as three:
        assert spoilt not in (one, two, three)


def job(evaluator: CpuEvaluator, plan: Plan) -> Job:
    """Uniform words under uniform keys."""
    rng, primes = np.random.default_rng(), np.array(PRESET.primes)[:, None]
    elements = plan_elements(PRESET, [plan])
    words = rng.integers(0, primes, (len(elements), LIMBS, 2, LIMBS + 1, N)).astype(np.uint32)
    inputs = rng.integers(0, primes[:LIMBS], (plan.input_ciphertexts, 2, LIMBS, N)).astype(np.uint32)
    return Job(evaluator.prepare_keys(EvaluationKeys(PRESET, elements, words)), inputs)


def layer(evaluator: CpuEvaluator, plan: Plan) -> EncodedLayer:
    weights = np.random.default_rng().normal(size=(plan.out_features, plan.in_features))
    return evaluator.encode("layer", plan, weights.astype(np.float32))


@pytest.mark.parametrize(
    "plan", [plan_linear(PRESET, 300, 130), packed_plans(PRESET, 300, 130)[-1]], ids=["single", "packed"]
)
def test_an_evaluation_with_company_keeps_to_its_thread(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluator = CpuEvaluator(PRESET, threads=2)
    encoded, jobs = layer(evaluator, plan), [job(evaluator, plan)]
    submitted, submit = [], ThreadPoolExecutor.submit

    def watched(pool: ThreadPoolExecutor, *arguments: Any) -> Any:
        submitted.append(arguments)
        return submit(pool, *arguments)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", watched)
    (alone,), _ = evaluator.evaluate(encoded, jobs)
    assert submitted
    submitted.clear()
    with evaluator._crew.evaluation():
        (beside,), _ = evaluator.evaluate(encoded, jobs)
    assert not submitted
    np.testing.assert_array_equal(beside, alone)
    evaluator.evaluate(encoded, jobs)
    assert submitted
    evaluator.close()


def test_a_packed_evaluation_gives_a_thread_up_between_its_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Company that comes in the midst of a prompt does not wait for its end."""
    evaluator = CpuEvaluator(PRESET, threads=2)
    plan, run = packed_plans(PRESET, 300, 130)[-1], Crew.run
    company, helpers = evaluator._crew.evaluation(), []

    def watched(crew: Crew, work: Callable[[Scratch], None]) -> None:
        if len(helpers) == 1:
            company.__enter__()
        helpers.append(crew.threads - crew._active)
        run(crew, work)

    monkeypatch.setattr(Crew, "run", watched)
    evaluator.evaluate(layer(evaluator, plan), [job(evaluator, plan)])
    company.__exit__(None, None, None)
    assert helpers == [1, *[0] * (len(helpers) - 1)]
    assert len(helpers) > 3
    evaluator.close()


def test_keys_stay_alive_while_a_helper_uses_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass holds addresses of keys; its caller may be interrupted, and gone, before a helper has ended."""
    evaluator = CpuEvaluator(PRESET, threads=2)
    plan, run = plan_linear(PRESET, 300, 130), pipeline.run
    encoded, jobs = layer(evaluator, plan), [job(evaluator, plan) for _ in range(2)]
    keys = [weakref.ref(each.keys.words) for each in jobs]
    begun, release, ended = threading.Event(), threading.Event(), threading.Event()
    caller = threading.get_ident()

    def slow(work: pipeline.Round, *rest: Any) -> None:
        if threading.get_ident() == caller:
            assert begun.wait(20)
            raise KeyboardInterrupt
        begun.set()
        assert release.wait(20)
        run(work, *rest)
        ended.set()

    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run", slow)
    monkeypatch.setattr(crews, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluator.evaluate(encoded, jobs)
    jobs.clear()
    gc.collect()
    assert all(key() is not None for key in keys)
    release.set()
    assert ended.wait(20)
    evaluator.close()
    gc.collect()
    assert all(key() is None for key in keys)
