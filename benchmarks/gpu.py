"""What the CUDA evaluator takes for SmolLM2-135M's shapes, beside what the device's bandwidth and multiplier allow.

    python benchmarks/gpu.py --output docs/results/gpu.json

Random weights, random words for keys and inputs (every bit is computed all the same), no client and no wire: the
proxy's arithmetic by itself. The whole encrypted token is measured by ``fhe-llm bench decode`` with
``FHE_LLM_DEVICE=cuda``; ``gpu_targets.py`` puts both beside the targets.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from gpu_roofline import Machine, memory_estimate, products_share, work
from numpy.typing import NDArray

from fhe_llm.cli.bench.record import clocked, keep, plain, record, spread
from fhe_llm.errors import FheLlmError
from fhe_llm.evaluator.contract import EncodedLayer, EvaluationKeys, Job
from fhe_llm.evaluator.cuda import CudaEvaluator
from fhe_llm.evaluator.cupy_device import CupyDevice, open_device
from fhe_llm.evaluator.packed_plan import Plan, layer_plans, plan_elements
from fhe_llm.evaluator.plan import plan_linear
from fhe_llm.params import PRESETS, Preset

SHAPES = ((960, 576), (576, 576), (3072, 576), (576, 1536))
LAYERS = 30
LARGE = (8192, 8192)
"""A layer of half a gigabyte, which no second-level cache holds: for the fraction of the bandwidth."""
WORDS_A_CYCLE = 64
"""32-bit multiplications a multiprocessor issues a cycle (compute capability 8 and 9)."""
ASSUMED_GAP = 1.5e-6


class Subject:
    """SmolLM2's layers with random weights, on the device; clients' keys and inputs are uniform words."""

    def __init__(self, device: CupyDevice, preset: Preset) -> None:
        self.preset, self.device = preset, device
        self.rng = np.random.default_rng(0)
        self.evaluator = CudaEvaluator(device, preset)
        self.plans = [layer_plans(preset, *shape) for shape in SHAPES]
        self.layers: list[list[EncodedLayer]] = []  # [position, plan]
        for plans in self.plans:
            weights = self._weights(plans[0])
            encoded = self.evaluator.encode("layer", plans[0], weights)
            for _ in range(LAYERS):  # words of their own, or the caches would hold them all
                own = EncodedLayer("layer", plans[0], encoded.log_weight_scale, encoded.words.copy())
                copy = weights.copy()
                self.layers.append([own, *(self.evaluator.encode("layer", p, copy) for p in plans[1:])])
        self.evaluator.hold([layer for position in self.layers for layer in position])

    def client(self, plans: list[Plan] | None = None) -> Any:
        """Keys for these plans, or all of the model's."""
        elements = plan_elements(self.preset, plans or [plan for some in self.plans for plan in some])
        words = self.words(self.preset.primes, len(elements), len(self.preset.data_primes), 2)
        return self.evaluator.prepare_keys(EvaluationKeys(self.preset, elements, words))

    def words(self, primes: tuple[int, ...], *shape: int) -> NDArray[np.uint32]:
        """Uniform residues [*shape, primes, N]."""
        out = np.empty((*shape, len(primes), self.preset.ring_degree), dtype=np.uint32)
        for limb, q in enumerate(primes):
            out[..., limb, :] = self.rng.integers(0, q, out.shape[:-2] + out.shape[-1:], dtype=np.uint32)
        return out

    def jobs(self, plan: Plan, keys: list[Any]) -> list[Job]:
        """A job of each client."""
        inputs = self.words(self.preset.data_primes, plan.input_ciphertexts, 2)
        return [Job(k, inputs) for k in keys]

    def prepared(self, keys: list[Any], which: int = 0) -> dict[int, list[Job]]:
        """Jobs of every plan that :meth:`pass_over_layers` meets, by its id."""
        return {id(plans[which]): self.jobs(plans[which], keys) for plans in self.plans}

    def pass_over_layers(self, jobs: dict[int, list[Job]], which: int = 0) -> dict[str, float]:
        """Every layer once for every job; seconds of the device's phases."""
        spent = dict.fromkeys(("rotations", "products", "finish"), 0.0)
        for position in self.layers:
            layer = position[which]
            _, timings = self.evaluator.evaluate(layer, jobs[id(layer.plan)])
            for name in spent:
                spent[name] += getattr(timings, name)
        return spent

    def _weights(self, plan: Plan) -> NDArray[np.float32]:
        return self.rng.normal(scale=0.05, size=(plan.out_features, plan.in_features)).astype(np.float32)


def measured_machine(device: CupyDevice) -> Machine:
    """Bandwidth as a copy on the device reaches it, multiplications from the clock."""
    cupy = device.cupy
    with device.cuda_device:
        source = cupy.zeros(1 << 28, dtype=cupy.uint8)
        target = cupy.empty_like(source)
        begun, ended = cupy.cuda.Event(), cupy.cuda.Event()
        seconds = []
        for _ in range(12):
            begun.record()
            target[...] = source
            ended.record()
            ended.synchronize()
            seconds.append(cupy.cuda.get_elapsed_time(begun, ended) / 1e3)
        clock = cupy.cuda.runtime.deviceGetAttribute(13, 0) * 1e3  # cudaDevAttrClockRate, in kHz
        del source, target
        cupy.get_default_memory_pool().free_all_blocks()
    return Machine(2 * (1 << 28) / min(seconds), device.multiprocessors * WORDS_A_CYCLE * clock, ASSUMED_GAP)


def measured(subject: Subject, keys: list[Any], which: int, repeats: int, machine: Machine) -> dict[str, Any]:
    """Seconds of passes over all layers, the device's phases, and the estimate."""
    jobs = subject.prepared(keys, which)
    subject.pass_over_layers(jobs, which)
    subject.pass_over_layers(jobs, which)  # the second time captures, from the third on graphs are replayed
    phases: list[dict[str, float]] = []
    seconds = spread(clocked(lambda: phases.append(subject.pass_over_layers(jobs, which)), repeats))
    clients = len({id(k) for k in keys})
    estimate = LAYERS * sum(work(p[which], len(keys), clients).seconds(machine) for p in subject.plans)
    best = min(phases, key=lambda phase: sum(phase.values()))
    return {"wall": plain(seconds), "device_phases": best, "roofline_estimate": estimate}


def bandwidth(subject: Subject, machine: Machine) -> list[dict[str, Any]]:
    """The products of one job: bytes of weights a second over what a copy reaches. Layers that the second-level cache
    holds may pass it; the last one is no such layer."""
    evaluator, found = subject.evaluator, []
    for shape in (*SHAPES, LARGE):
        plan = plan_linear(subject.preset, *shape)
        layer = evaluator.encode("layer", plan, subject._weights(plan))
        jobs = subject.jobs(plan, [subject.client([plan])])
        seconds = min(evaluator.evaluate(layer, jobs)[1].products for _ in range(20))
        found.append(
            {
                "shape": shape,
                "bytes": layer.words.nbytes,
                "seconds": seconds,
                "share": layer.words.nbytes / seconds / machine.bandwidth,
                "share_estimate": products_share(plan, machine),
            }
        )
    return found


def memory(subject: Subject, clients: list[Any]) -> dict[str, int]:
    """Bytes with the model, and the keys of clients that all ask at once, on the device. ``in_use`` is what the driver
    counts for the whole device: its context and captured graphs too, and other programs, if there are any."""
    half = len(clients) // 2
    with ThreadPoolExecutor(2) as lanes:
        list(lanes.map(lambda some: subject.pass_over_layers(subject.prepared(some)), (clients[:half], clients[half:])))
    free, total = subject.device.cupy.cuda.runtime.memGetInfo()
    return {
        "sessions": len(clients),
        "in_use": int(total) - int(free),
        "reserved": subject.device.reserved(),
        "keys_held": len(subject.evaluator._keys),
        "keys": subject.evaluator._keys.used,
        "weights": subject.evaluator._weights.used,
        "estimate": memory_estimate(subject.preset, subject.plans, LAYERS, len(clients), half),
    }


def main() -> int:
    """Measure everything; one JSON record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--sessions", type=int, default=100)
    chosen = parser.parse_args()
    preset = PRESETS[chosen.preset]
    try:
        device = open_device(preset)
    except FheLlmError as error:
        print(error, file=sys.stderr)
        return 2
    result = record("gpu", preset, figures(Subject(device, preset), chosen.repeats, chosen.sessions))
    result["device"]["gpu"] = device.name
    result["software"]["cupy"] = device.cupy.__version__
    result["software"]["cuda_driver"] = device.cupy.cuda.runtime.driverGetVersion()
    if chosen.output:
        keep(result, chosen.output)
    print(json.dumps(result, indent=1))
    return 0


def figures(subject: Subject, repeats: int, sessions: int, conversations: int = 64) -> dict[str, Any]:
    """One token, many conversations, a prompt, the products alone, and memory; in seconds and bytes."""
    machine = measured_machine(subject.device)
    clients = [subject.client() for _ in range(max(conversations, sessions))]
    token = measured(subject, clients[:1], 0, repeats, machine)
    together = measured(subject, clients[:conversations], 0, max(3, repeats // 3), machine)
    rounds = conversations * token["wall"]["median"] / together["wall"]["median"]
    prefill = measured(subject, clients[:1] * 8, len(subject.plans[0]) - 1, max(3, repeats // 3), machine)
    held = memory(subject, clients[:sessions])
    return {
        "machine": {
            "bandwidth": machine.bandwidth,
            "multiplications": machine.multiplications,
            "gap": machine.gap,
        },
        "token": token,
        "conversations": {"count": conversations, **together, "rounds_over_batch_1": rounds},
        "prefill": {"tokens": 8 * 64, **prefill},
        "memory": held,
        "products": bandwidth(subject, machine),
    }


if __name__ == "__main__":
    sys.exit(main())
