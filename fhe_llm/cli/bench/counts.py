"""Counts of one decoded token of a whole model, from its plans alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from fhe_llm.evaluator.counts import Counts, counts
from fhe_llm.evaluator.packed_plan import layer_plans, plan_elements
from fhe_llm.evaluator.plan import plan_linear
from fhe_llm.models.config import layer_kind
from fhe_llm.params import Preset


def layer_counts(preset: Preset, shapes: Mapping[str, tuple[int, int]]) -> dict[str, dict[str, Any]]:
    """The counts of each kind of layer; ``shapes`` are [out, in] by layer name."""
    plans = {layer_kind(name): plan_linear(preset, *shape) for name, shape in shapes.items()}
    return {
        name: {"out_features": plan.out_features, "in_features": plan.in_features, **asdict(counts(plan))}
        for name, plan in plans.items()
    }


def token_counts(preset: Preset, shapes: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """The counts of a token: every layer once; ``rounds`` and the rotation keys a client uploads among them."""
    plans = [plan_linear(preset, *shape) for shape in shapes.values()]
    total = sum((counts(plan) for plan in plans), Counts())
    return {"rounds": len(plans), "rotation_keys": key_count(preset, shapes.values()), **asdict(total)}


def key_count(preset: Preset, shapes: Iterable[tuple[int, int]]) -> int:
    """Rotation keys that all plans of these layers need together, those for groups of tokens among them."""
    return len(plan_elements(preset, (plan for shape in shapes for plan in layer_plans(preset, *shape))))
