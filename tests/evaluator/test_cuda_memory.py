"""What lives on the device: leases, budgets, forms of weights, and recovery from a full device."""

from __future__ import annotations

import gc
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cuda_contract import assert_equals_the_cpu, random_inputs, random_keys, random_layer
from host_device import HostDevice, compiler

from fhe_llm.evaluator.contract import Job
from fhe_llm.evaluator.cpu import CpuEvaluator
from fhe_llm.evaluator.cuda import CudaEvaluator
from fhe_llm.evaluator.cuda_residency import WeightSize, plan_residency
from fhe_llm.evaluator.cuda_sequence import layout
from fhe_llm.evaluator.cuda_store import DeviceStore, Item
from fhe_llm.evaluator.device import DeviceMemoryError
from fhe_llm.evaluator.packed_plan import packed_plans
from fhe_llm.evaluator.plan import plan_linear
from fhe_llm.params import PRESETS

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
PRESET = PRESETS["default"]
MIB = 1 << 20


def item(key: int, nbytes: int, loaded: list[int]) -> Item:
    return Item(key, nbytes, lambda _buffer: loaded.append(key))


def test_the_least_recently_leased_goes_first() -> None:
    loaded: list[int] = []
    store = DeviceStore(HostDevice(PRESET), 300)
    for key in (1, 2, 3, 1, 4, 1, 2):
        with store.lease([item(key, 100, loaded)]):
            pass
    assert loaded == [1, 2, 3, 4, 2]
    assert store.used == 300


def test_what_is_leased_stays_and_a_full_store_goes_over_its_budget_for_it() -> None:
    loaded: list[int] = []
    store = DeviceStore(HostDevice(PRESET), 200)
    with store.lease([item(key, 100, loaded) for key in (1, 2, 3)]) as addresses:
        assert len(set(addresses)) == 3
        store.evict()
        assert store.used == 300
    with store.lease([item(3, 100, loaded)]), store.lease([item(4, 100, loaded)]):
        assert store.used == 200


def test_the_same_thing_twice_in_a_lease_is_there_once() -> None:
    loaded: list[int] = []
    store = DeviceStore(HostDevice(PRESET), 200)
    with store.lease([item(1, 100, loaded), item(1, 100, loaded)]) as (first, second):
        assert first == second
    assert loaded == [1]


def test_what_is_there_does_not_wait_for_what_is_loaded() -> None:
    store, begun, go_on = DeviceStore(HostDevice(PRESET), 1000), threading.Event(), threading.Event()

    def slow(_buffer: object) -> None:
        begun.set()
        assert go_on.wait(20)

    with ThreadPoolExecutor(2) as pool, store.lease([item(1, 100, [])]) as (first,):
        loading = pool.submit(lease_once, store, Item(2, 100, slow))
        assert begun.wait(20)
        assert pool.submit(lease_once, store, item(1, 100, [])).result(20) == first
        assert not loading.done()
        go_on.set()
        assert loading.result(20) != first
    assert store.used == 200


def lease_once(store: DeviceStore, wanted: Item) -> int:
    with store.lease([wanted]) as (address,):
        return address


def test_a_full_device_makes_room_before_it_gives_up() -> None:
    loaded: list[int] = []
    store = DeviceStore(HostDevice(PRESET, memory=250), 1000)
    for key in (1, 2, 3):
        with store.lease([item(key, 100, loaded)]):
            pass
    assert len(store) < 3
    with (
        store.lease([item(4, 200, loaded)]),
        pytest.raises(DeviceMemoryError),
        store.lease([item(5, 100, loaded)]),
    ):
        pass
    with store.lease([item(5, 100, loaded)]):  # a failed lease holds nothing
        assert store.used == 100


def test_what_passes_the_budget_is_refused() -> None:
    with (
        pytest.raises(DeviceMemoryError, match="its share"),
        DeviceStore(HostDevice(PRESET), 99).lease([item(1, 100, [])]),
    ):
        pass


def test_forgotten_entries_go_when_nobody_leases_them() -> None:
    store = DeviceStore(HostDevice(PRESET), 1000)
    with store.lease([item(1, 100, [])]):
        store.forget(1)
        with store.lease([item(2, 100, [])]):
            assert len(store) == 2
    with store.lease([]):
        assert len(store) == 1


SIZES = [WeightSize("a", 100, 50), WeightSize("b", 60, 30), WeightSize("c", 40, None)]


@pytest.mark.parametrize(
    ("room", "forms"),
    [
        (200, ("words", "words", "words")),
        (199, ("compact", "words", "words")),
        (150, ("compact", "words", "words")),
        (149, ("compact", "compact", "words")),
        (119, ("host", "host", "words")),
        (10, ("host", "host", "host")),
    ],
)
def test_the_largest_weights_give_way(room: int, forms: tuple[str, ...]) -> None:
    assert tuple(plan_residency(SIZES, room).values()) == forms


def held(memory: int, caplog: pytest.LogCaptureFixture) -> tuple[CudaEvaluator, list[str], bool]:
    """An evaluator that holds three layers, its log lines, and whether it gives the CPU's replies."""
    rng = np.random.default_rng()
    device = HostDevice(PRESET, memory=memory)
    cuda, cpu = CudaEvaluator(device, PRESET, lanes=1, threads=2), CpuEvaluator(PRESET, threads=2)
    plans = [plan_linear(PRESET, 500, 400), plan_linear(PRESET, 64, 64), packed_plans(PRESET, 64, 64)[-1]]
    layers = [random_layer(rng, cpu, plan) for plan in plans]
    with caplog.at_level(logging.INFO):
        cuda.hold(layers)
    keys = random_keys(rng, PRESET, plans)
    same = True
    for _ in range(2):
        for layer in layers:
            (inputs,) = random_inputs(rng, PRESET, layer.plan, 1)
            ((expected,), _) = cpu.evaluate(layer, [Job(cpu.prepare_keys(keys), inputs)])
            ((reply,), _) = cuda.evaluate(layer, [Job(cuda.prepare_keys(keys), inputs)])
            same = same and bool((reply == expected).all())
    cpu.close()
    return cuda, [record.getMessage() for record in caplog.records], same


def test_weights_that_fit_are_held_as_words(caplog: pytest.LogCaptureFixture) -> None:
    cuda, lines, same = held(1 << 30, caplog)
    assert same
    assert "3 arrays as words, 0 as coefficients (expanded in passing), 0 at the host" in lines[0]
    before = len(cuda.device.launches)
    assert "expand_weights" not in cuda.device.launches[:before]


@pytest.mark.parametrize(("room", "form"), [(0.7, "1 as coefficients"), (0.01, "3 at the host")])
def test_weights_that_do_not_fit_give_the_same_replies(
    room: float, form: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fhe_llm.evaluator import cuda

    def short(sizes: list[WeightSize], _room: int) -> dict[str, str]:
        return plan_residency(sizes, int(room * sum(size.words for size in sizes)))

    monkeypatch.setattr(cuda, "plan_residency", short)
    evaluator, lines, same = held(1 << 30, caplog)
    assert same
    assert form in lines[0]
    assert ("expand_weights" in evaluator.device.launches) == ("coefficients" in form)


def test_coefficients_that_pass_a_word_stay_at_the_host(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from fhe_llm.evaluator import cuda

    monkeypatch.setattr(cuda, "plan_residency", lambda sizes, _: {size.name: "compact" for size in sizes})
    evaluator = CudaEvaluator(HostDevice(PRESET), PRESET, threads=2)
    layer = random_layer(np.random.default_rng(), evaluator, plan_linear(PRESET, 64, 64))
    layer.words[0, 0, 0, :4] += 1  # one limb no longer agrees with the other
    with caplog.at_level(logging.INFO):
        evaluator.hold([layer])
    assert "1 at the host" in caplog.records[-1].getMessage()


def test_the_cap_holds_while_clients_come_and_go() -> None:
    device = HostDevice(PRESET, memory=192 * MIB)
    cuda = CudaEvaluator(device, PRESET, lanes=1, threads=2)
    plan = plan_linear(PRESET, 500, 400)
    for _ in range(4):
        assert_equals_the_cpu(cuda, plan, jobs=3, clients=3)
        assert device.used() <= device.memory


def test_keys_nobody_has_any_more_leave_the_device() -> None:
    cuda = CudaEvaluator(HostDevice(PRESET), PRESET, threads=2)
    plan = plan_linear(PRESET, 64, 64)
    assert_equals_the_cpu(cuda, plan, clients=3, jobs=3)
    gc.collect()
    with cuda._keys.lease([]):
        assert cuda._keys.used == 0


def test_evaluations_recover_from_a_full_device(monkeypatch: pytest.MonkeyPatch) -> None:
    device = HostDevice(PRESET)
    cuda = CudaEvaluator(device, PRESET, lanes=1, threads=2)
    plan = plan_linear(PRESET, 500, 400)
    assert_equals_the_cpu(cuda, plan)
    device.memory = device.used() + 8 * MIB  # a larger batch does not fit beside what is there
    assert_equals_the_cpu(cuda, plan, jobs=6, clients=2)
    device.memory = 0
    with pytest.raises(DeviceMemoryError):
        assert_equals_the_cpu(cuda, plan)
    device.memory = 1 << 30
    assert_equals_the_cpu(cuda, plan, jobs=6)


def test_a_full_device_drops_keys_before_weights() -> None:
    device = HostDevice(PRESET)
    cuda = CudaEvaluator(device, PRESET, lanes=1, threads=2)
    rng, plan = np.random.default_rng(), plan_linear(PRESET, 64, 64)
    layer = random_layer(rng, cuda, plan)
    cuda.hold([layer])
    jobs = [
        Job(cuda.prepare_keys(random_keys(rng, PRESET, [plan])), inputs)
        for inputs in random_inputs(rng, PRESET, plan, 3)
    ]
    expected = [cuda.evaluate(layer, [job])[0][0] for job in jobs]
    weights, uploads = cuda._weights.used, device.launches.count("prepare_keys")
    cuda._keys.evict()
    cuda._runners[0].release()
    scratch, keys = layout(PRESET, plan, 1, False).nbytes, jobs[0].keys
    device.memory = device.used() + keys.nbytes + keys.words[0].nbytes + scratch
    np.testing.assert_array_equal(cuda.evaluate(layer, jobs)[0], expected)
    assert cuda._weights.used == weights
    assert device.launches.count("prepare_keys") > uploads


def test_clients_whose_keys_do_not_fit_together_take_turns() -> None:
    cuda = CudaEvaluator(HostDevice(PRESET), PRESET, lanes=2, threads=2)
    rng, plan = np.random.default_rng(), plan_linear(PRESET, 64, 64)
    layer, clients = random_layer(rng, cuda, plan), [random_keys(rng, PRESET, [plan]) for _ in range(5)]
    keys = [cuda.prepare_keys(client) for client in clients]
    jobs = [Job(keys[i % 5], inputs) for i, inputs in enumerate(random_inputs(rng, PRESET, plan, 10))]
    expected = cuda.evaluate(layer, jobs)[0]
    cuda._keys.budget = 2 * 2 * keys[0].nbytes  # two clients a lane
    before = cuda.device.launches.count("rescale")
    assert len(cuda._together(jobs)) == 2
    assert len(cuda._together([jobs[0], jobs[5], jobs[1], jobs[6], jobs[2]])) == 4
    np.testing.assert_array_equal(cuda.evaluate(layer, jobs)[0], expected)
    assert cuda.device.launches.count("rescale") == before + 5
    cuda._keys.budget = keys[0].nbytes
    assert len(cuda._together(jobs)) == 1


def test_compact_weights_that_have_no_room_to_be_made_stay_at_the_host(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from fhe_llm.evaluator import cuda

    monkeypatch.setattr(cuda, "plan_residency", lambda sizes, _: {size.name: "compact" for size in sizes})
    device = HostDevice(PRESET)
    evaluator = CudaEvaluator(device, PRESET, threads=2)
    layer = random_layer(np.random.default_rng(), evaluator, plan_linear(PRESET, 64, 64))
    evaluator._encoder.release()
    device.memory = device.used() + layer.words.nbytes
    with caplog.at_level(logging.INFO):
        evaluator.hold([layer])
    assert "1 at the host" in caplog.records[-1].getMessage()


def test_a_layer_that_fits_in_no_form_is_said_at_once() -> None:
    evaluator = CudaEvaluator(HostDevice(PRESET), PRESET, threads=2)
    layer = random_layer(np.random.default_rng(), evaluator, plan_linear(PRESET, 64, 64))
    evaluator._weights.budget, evaluator._keys.budget = layer.words.nbytes // 3, 0
    with pytest.raises(DeviceMemoryError, match="cannot hold layer"):
        evaluator.hold([layer])


def test_pinned_memory_is_asked_for_in_doubling_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    device, asked = HostDevice(PRESET), []
    pinned = device.pinned

    def counted(nbytes: int) -> np.ndarray:  # type: ignore[type-arg]
        asked.append(nbytes)
        return pinned(nbytes)

    monkeypatch.setattr(device, "pinned", counted)
    cuda = CudaEvaluator(device, PRESET, lanes=1, threads=2)
    rng, plan = np.random.default_rng(), plan_linear(PRESET, 64, 64)
    layer, keys = random_layer(rng, cuda, plan), cuda.prepare_keys(random_keys(rng, PRESET, [plan]))
    for jobs in range(1, 9):
        cuda.evaluate(layer, [Job(keys, inputs) for inputs in random_inputs(rng, PRESET, plan, jobs)])
    assert len(asked) <= 4
    assert all(size & (size - 1) == 0 for size in asked)


def test_recovery_takes_the_scratch_of_every_idle_lane() -> None:
    cuda = CudaEvaluator(HostDevice(PRESET), PRESET, lanes=3, threads=2)
    plan = plan_linear(PRESET, 64, 64)
    before = cuda.device.used()
    runners = [cuda._idle.get() for _ in range(3)]
    for runner in runners:
        runner._block = cuda.device.allocate(MIB)
        cuda._idle.put(runner)
    cuda._recover(everything=True)
    assert cuda.device.used() == before
    assert_equals_the_cpu(cuda, plan)


def test_sequences_are_replayed_with_new_keys_weights_and_inputs() -> None:
    cuda = CudaEvaluator(HostDevice(PRESET), PRESET, lanes=1, threads=2)
    plan = plan_linear(PRESET, 64, 64)
    for _ in range(3):
        assert_equals_the_cpu(cuda, plan, jobs=2, clients=2, rounds=2)
    (runner,) = cuda._runners
    assert runner.lane.replayed == 5  # type: ignore[attr-defined]
