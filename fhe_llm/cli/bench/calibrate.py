"""Fit the planner's cost model to this machine, and say what it would plan with it.

The fitted costs change no plan: client and proxy must lay a layer out alike without asking each other, so both use the
model in the source. They show how far that model is from a machine, and what a change of it would be worth.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fhe_llm.cli.bench.product import Parts, prepare
from fhe_llm.cli.bench.record import record, usable_cores
from fhe_llm.cli.bench.subject import open_subject
from fhe_llm.client.keys import KeyRing
from fhe_llm.client.packing import pack, unpack
from fhe_llm.evaluator.contract import Job
from fhe_llm.evaluator.plan import CostModel, LinearPlan, best_plan, plan_linear
from fhe_llm.models.config import layer_kind, linear_shapes
from fhe_llm.params import Preset
from fhe_llm.params import preset as find_preset
from fhe_llm.wire import frame as wire

SHAPES: Final = (
    (64, 64),
    (256, 256),
    (576, 576),
    (960, 576),
    (576, 1536),
    (1536, 576),
    (2048, 1024),
    (4096, 512),
    (512, 5000),
    (1024, 4096),
)
"""Products that differ in rotations, products and ciphertexts each way."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The microseconds of one round of ``plan``: arithmetic, and everything a request and a reply go through."""

    plan: LinearPlan
    arithmetic: float
    request: float
    reply: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.arithmetic + self.request + self.reply


def bench_calibrate(model: str, repeats: int, preset_name: str, threads: int) -> dict[str, Any]:
    """The record of the fitted :class:`CostModel`, the fit's errors, and each layer's plan under either model.

    It only tells: plans go on being made with the costs in the source.
    """
    preset, subject = find_preset(preset_name), open_subject(model)
    with KeyRing.generate(preset) as ring:
        samples = [_sample(ring, shape, repeats, threads) for shape in SHAPES]
    fitted = fit(samples)
    shapes = {layer_kind(name): shape for name, shape in linear_shapes(subject.source.config).items()}
    figures = {
        "model": subject.source.config.name,
        "threads": {"evaluator": threads, "client": usable_cores()},
        "fitted": asdict(fitted),
        "in_use": asdict(CostModel()),
        "median_error": float(np.median([abs(s.plan.cost(fitted) / s.total - 1) for s in samples])),
        "samples": [_sample_figures(sample, fitted) for sample in samples],
        "layers": {name: compare(preset, shape, fitted) for name, shape in shapes.items()},
    }
    return record("calibrate", preset, figures)


def fit(samples: Sequence[Sample]) -> CostModel:
    """Costs that minimise the squared relative error of ``LinearPlan.cost`` over the samples; none is negative.

    The cost is linear in the model's fields, so a plan's cost under each unit model is its row of the regression.
    Fields that come out negative are set to zero and the others fitted again (Lawson and Hanson's active set, one way).
    """
    names = [f.name for f in fields(CostModel)]
    seconds = np.array([sample.total for sample in samples])
    rows = np.array([[_unit_cost(sample.plan, name, names) for name in names] for sample in samples])
    rows, free = rows / seconds[:, None], list(range(len(names)))
    while True:
        found = np.zeros(len(names))
        found[free] = np.linalg.lstsq(rows[:, free], np.ones(len(seconds)), rcond=None)[0]
        if (found >= 0).all():
            return CostModel(**{name: float(cost) for name, cost in zip(names, found, strict=True)})
        free = [i for i in free if found[i] > 0]


def compare(preset: Preset, shape: tuple[int, int], fitted: CostModel) -> dict[str, Any]:
    """The plan in use and the one ``fitted`` would choose, both priced by ``fitted``, in microseconds."""
    used, wanted = plan_linear(preset, *shape), best_plan(preset, *shape, fitted)
    return {
        "shape": {"out_features": shape[0], "in_features": shape[1]},
        "same": used == wanted,
        "in_use": plan_figures(used, fitted),
        "fitted": plan_figures(wanted, fitted),
    }


def plan_figures(plan: LinearPlan, model: CostModel) -> dict[str, Any]:
    """A plan's layout and counts, and its cost under ``model``."""
    return {
        "fold": plan.fold,
        "segments": plan.segments,
        "baby_steps": plan.baby_steps,
        "rotations": plan.rotation_count,
        "products": plan.product_count,
        "input_ciphertexts": plan.input_ciphertexts,
        "output_ciphertexts": plan.output_ciphertexts,
        "cost_microseconds": plan.cost(model),
    }


def _unit_cost(plan: LinearPlan, name: str, names: Sequence[str]) -> float:
    return plan.cost(CostModel(**{other: float(other == name) for other in names}))


def _sample(ring: KeyRing, shape: tuple[int, int], repeats: int, threads: int) -> Sample:
    """The shortest of ``repeats`` rounds, part by part, without a network."""
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal(shape) / math.sqrt(shape[1])).astype(np.float32)
    parts, x = prepare(ring, weights, threads), rng.standard_normal((1, shape[1])).astype(np.float32)
    rows = [_round(parts, x) for _ in range(repeats + 1)][1:]
    parts.evaluator.close()
    return Sample(parts.plan, *(1e6 * float(value) for value in np.min(rows, axis=0)))


def _round(parts: Parts, x: NDArray[np.float32]) -> tuple[float, float, float]:
    """Seconds of the evaluation, of everything ahead of it, and of everything after it."""
    preset, clock, cipher = parts.cipher.preset, time.perf_counter, parts.cipher
    words = cipher.encrypt(pack(parts.plan, x)[0][0])
    cipher.prepare(len(words), seeded=True)  # as a client does while it waits for the reply before
    begun = clock()
    slots, scale = pack(parts.plan, x)
    cipher.encrypt_seeded(slots[0])
    request = wire.EvaluateRequest(preset, 1, bytes(32), bytes(32), parts.plan.plan_id, "layer", words[None])
    received = wire.decode(wire.encode(request))
    assert isinstance(received, wire.EvaluateRequest)  # noqa: S101  just encoded
    job = Job(parts.keys, received.words[0])
    sent = clock()
    reply = parts.evaluator.evaluate(parts.layer, [job])[0][0]
    evaluated = clock()
    answer = wire.decode(wire.encode(wire.EvaluateReply(preset, 1, np.stack([reply]))))
    assert isinstance(answer, wire.EvaluateReply)  # noqa: S101  just encoded
    log_scale = preset.log_reply_scale(parts.layer.log_weight_scale)
    unpack(parts.plan, cipher.decrypt(answer.words[0], log_scale)[None], scale)
    return evaluated - sent, sent - begun, clock() - evaluated


def _sample_figures(sample: Sample, fitted: CostModel) -> dict[str, Any]:
    return {
        "shape": {"out_features": sample.plan.out_features, "in_features": sample.plan.in_features},
        **plan_figures(sample.plan, fitted),
        "measured_microseconds": sample.total,
        "evaluator_microseconds": sample.arithmetic,
        "request_microseconds": sample.request,
        "reply_microseconds": sample.reply,
    }
