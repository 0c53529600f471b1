"""Weights encoded on the device are the host's words, and what might be rounded otherwise is noticed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from host_device import HostDevice, compiler

from fhe_llm.evaluator import cuda_encoding
from fhe_llm.evaluator.cuda_encoding import DeviceEncoder
from fhe_llm.evaluator.cuda_loader import Loader
from fhe_llm.evaluator.plan import plan_linear
from fhe_llm.evaluator.schedule import encode_layer
from fhe_llm.params import PRESETS

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
PRESET = PRESETS["default"]


def encoder() -> DeviceEncoder:
    device = HostDevice(PRESET)
    return DeviceEncoder(device, PRESET, Loader(device, PRESET))


@pytest.mark.parametrize("shape", [(5, 3), (128, 64), (960, 576), (5000, 96), (1, 700), (701, 1)])
def test_words_equal_the_hosts(shape: tuple[int, int]) -> None:
    plan = plan_linear(PRESET, *shape)
    weights = np.random.default_rng().standard_t(3, size=shape).astype(np.float32)
    with ThreadPoolExecutor(2) as pool:
        expected = encode_layer(PRESET, "layer", plan, weights, pool)
    found = encoder().encode("layer", plan, weights)
    assert found is not None
    assert found.log_weight_scale == expected.log_weight_scale
    np.testing.assert_array_equal(found.words, expected.words)


def test_uncertain_plaintexts_are_encoded_at_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    encode_group = cuda_encoding.encode_group

    def watched(*arguments: object) -> None:
        groups.append(arguments[5])  # type: ignore[arg-type]
        encode_group(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cuda_encoding, "encode_group", watched)
    monkeypatch.setattr(cuda_encoding, "rounding_margin", lambda *_: 2.0**-14)
    shape = (960, 576)
    plan, weights = plan_linear(PRESET, *shape), np.random.default_rng().normal(size=shape).astype(np.float32)
    with ThreadPoolExecutor(2) as pool:
        expected = encode_layer(PRESET, "layer", plan, weights, pool)
    found = encoder().encode("layer", plan, weights)
    assert found is not None
    np.testing.assert_array_equal(found.words, expected.words)
    assert groups == sorted(set(groups))
    assert groups


def test_real_margins_leave_little_to_the_host() -> None:
    shape = (960, 576)
    plan, weights = plan_linear(PRESET, *shape), np.random.default_rng().normal(size=shape).astype(np.float32)
    scale = encode_layer_scale(weights)
    margin = cuda_encoding.rounding_margin(plan, cuda_encoding.fold_weights("layer", plan, weights), scale)
    assert 2 * PRESET.ring_degree * margin < 0.1  # plaintexts that are uncertain


def encode_layer_scale(weights: np.ndarray) -> int:  # type: ignore[type-arg]
    return cuda_encoding.log_weight_scale(PRESET, plan_linear(PRESET, *weights.shape), weights)


def test_presets_that_do_not_fit_shared_memory_are_left_to_the_host() -> None:
    wide = PRESETS["wide"]
    device = HostDevice(wide)
    plan = plan_linear(wide, 5, 3)
    weights = np.ones((5, 3), dtype=np.float32)
    assert DeviceEncoder(device, wide, Loader(device, wide)).encode("layer", plan, weights) is None


def test_a_full_device_leaves_encoding_to_the_host() -> None:
    device = HostDevice(PRESET)
    found = DeviceEncoder(device, PRESET, Loader(device, PRESET))
    device.memory = device.used()
    assert found.encode("layer", plan_linear(PRESET, 5, 3), np.ones((5, 3), dtype=np.float32)) is None
