"""A proxy in a few lines: the real evaluator behind real frames, in this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fhe_llm.client.listing import ModelListing
from fhe_llm.client.transport.operations import Answer, HttpCall
from fhe_llm.errors import FheLlmError
from fhe_llm.evaluator.contract import EvaluationKeys, Job
from fhe_llm.evaluator.cpu import CpuEvaluator
from fhe_llm.evaluator.packed_plan import PackedPlan, layer_plans
from fhe_llm.params import preset
from fhe_llm.wire import frame as wire
from fhe_llm_server.inputs import ciphertexts

SHAPES = {"layers.0.up": (96, 40), "layers.0.down": (40, 96)}  # (out, in): one plan of each fold or not


class TinyProxy:
    """Serves layers of random weights; ``evaluate`` and ``serve`` plug into a FunctionTransport."""

    def __init__(self, preset_name: str = "default", shapes: Mapping[str, tuple[int, int]] = SHAPES) -> None:
        self.preset = preset(preset_name)
        self.requests: list[bytes] = []
        self.calls: list[HttpCall] = []
        self.keys: dict[bytes, Any] = {}
        self._upload = bytearray()
        generator = np.random.default_rng()
        self.weights: dict[str, NDArray[np.float32]] = {
            name: (generator.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)
            for name, shape in shapes.items()
        }
        self._evaluator = CpuEvaluator(self.preset, threads=1)
        self._layers = {
            name: [self._evaluator.encode(name, plan, w) for plan in layer_plans(self.preset, *w.shape)]
            for name, w in self.weights.items()
        }
        self.packed = False  # whether it offers plans for groups of tokens

    @property
    def listing(self) -> ModelListing:
        layers = [
            {
                "name": name,
                "in_features": layer.plan.in_features,
                "out_features": layer.plan.out_features,
                "plan_id": layer.plan.plan_id.hex(),
                "log_weight_scale": layer.log_weight_scale,
                "packed": [
                    {
                        "tokens": group.plan.tokens,
                        "plan_id": group.plan.plan_id.hex(),
                        "log_weight_scale": group.log_weight_scale,
                    }
                    for group in groups
                    if self.packed and isinstance(group.plan, PackedPlan)
                ],
            }
            for name, (layer, *groups) in self._layers.items()
        ]
        model = {
            "name": "tiny",
            "model_digest": "ab" * 32,
            "preset": self.preset.name,
            "bundle": {"digest": "cd" * 32, "size": 1},
            "context_length": 64,
            "layers": layers,
        }
        return ModelListing.model_validate(model)

    def evaluate(self, data: bytes) -> bytes:
        self.requests.append(data)
        request = wire.decode(data, expect=(wire.Kind.EVALUATE_REQUEST,))
        assert isinstance(request, wire.EvaluateRequest)
        if request.key_id not in self.keys:
            return wire.encode(wire.ErrorFrame(request.request_id, "unknown_key", "cannot use key: unknown."))
        jobs = [Job(self.keys[request.key_id], words) for words in ciphertexts(request)]
        (layer,) = (e for e in self._layers[request.layer] if e.plan.plan_id == request.plan_id)
        outputs, _ = self._evaluator.evaluate(layer, jobs)
        return wire.encode(wire.EvaluateReply(self.preset, request.request_id, np.stack(outputs)))

    def serve(self, call: HttpCall) -> Answer:
        self.calls.append(call)
        key_id = bytes.fromhex(call.path.rpartition("/")[2])
        if call.method == "HEAD":
            return Answer(200 if key_id in self.keys else 404, {}, b"")
        self._upload += call.body
        if len(self._upload) < int(call.headers["content-range"].rpartition("/")[2]):
            return Answer(202, {}, b"{}")
        frame, self._upload = bytes(self._upload), bytearray()
        assert wire.key_id(frame) == key_id
        keys = wire.decode(frame, expect=(wire.Kind.EVALUATION_KEYS,))
        assert isinstance(keys, wire.KeyFrame)
        self.keys[key_id] = self._evaluator.prepare_keys(
            EvaluationKeys(keys.preset, keys.elements, keys.words)
        )
        return Answer(201, {}, b"{}")


def text_of(error: BaseException) -> str:
    """An exception with everything chained to it, as a log would show it."""
    parts, current = [], error
    while current is not None:
        parts.append(f"{type(current).__name__} {current!s} {current.args!r}")
        current = current.__cause__ or current.__context__  # type: ignore[assignment]
    assert isinstance(error, FheLlmError | TypeError)
    return " | ".join(parts)
