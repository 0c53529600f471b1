"""Weights encoded on the device are the host's words."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from host_device import HostDevice, compiler

from fhe_llm.errors import ParameterError
from fhe_llm.evaluator import cuda_encoding, schedule
from fhe_llm.evaluator.cpu import CpuEvaluator
from fhe_llm.evaluator.cuda import CudaEvaluator
from fhe_llm.evaluator.cuda_encoding import DeviceEncoder
from fhe_llm.evaluator.cuda_loader import Loader
from fhe_llm.evaluator.plan import plan_linear
from fhe_llm.evaluator.schedule import encode_layer
from fhe_llm.params import PRESETS, Preset

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
PRESET = PRESETS["default"]


def encoder(preset: Preset = PRESET, descending: bool = False) -> DeviceEncoder:
    device = HostDevice(preset, descending=descending)
    return DeviceEncoder(device, preset, Loader(device, preset))


def assert_words_equal_the_hosts(preset: Preset, shape: tuple[int, int], descending: bool = False) -> None:
    plan = plan_linear(preset, *shape)
    weights = np.random.default_rng().standard_t(3, size=shape).clip(-7, 7).astype(np.float32)
    with ThreadPoolExecutor(2) as pool:
        expected = encode_layer(preset, "layer", plan, weights, pool)
    found = encoder(preset, descending).encode("layer", plan, weights)
    assert found is not None
    assert found.log_weight_scale == expected.log_weight_scale
    np.testing.assert_array_equal(found.words, expected.words)


@pytest.mark.parametrize("shape", [(5, 3), (128, 64), (960, 576), (5000, 96), (1, 700), (701, 1)])
def test_words_equal_the_hosts(shape: tuple[int, int]) -> None:
    assert_words_equal_the_hosts(PRESET, shape)


@pytest.mark.parametrize("descending", [False, True])
def test_words_equal_the_hosts_with_three_primes(descending: bool) -> None:
    assert_words_equal_the_hosts(PRESETS["wide"], (40, 60), descending)


@pytest.mark.parametrize("preset", [PRESET, PRESETS["wide"]], ids=lambda p: p.name)
def test_the_last_bit_of_every_operation_is_the_hosts(
    preset: Preset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Coefficients nearly as long as a double: one operation that rounds otherwise, a contracted one say, shows."""
    for module in (cuda_encoding, schedule):
        monkeypatch.setattr(module, "log_weight_scale", lambda *_: 46)
    assert_words_equal_the_hosts(preset, (40, 60))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(960, 576), (5000, 96), (1, 700), (701, 1)])
def test_words_of_every_shape_equal_the_hosts_with_three_primes(shape: tuple[int, int]) -> None:
    assert_words_equal_the_hosts(PRESETS["wide"], shape)


def test_weights_that_leave_doubles_are_left_to_the_host() -> None:
    weights = np.full((5, 3), 2.0**24, dtype=np.float32)
    patched = encoder()
    assert patched.encode("layer", plan_linear(PRESET, 5, 3), weights / np.float32(2.0**24)) is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_encoding, "log_weight_scale", lambda *_: 26)
        assert patched.encode("layer", plan_linear(PRESET, 5, 3), weights) is None


def test_weights_that_are_not_finite_are_refused_as_at_the_host() -> None:
    weights = np.full((5, 3), np.nan, dtype=np.float32)
    with pytest.raises(ParameterError, match="not finite"):
        encoder().encode("layer", plan_linear(PRESET, 5, 3), weights)


def test_rings_that_do_not_fit_shared_memory_are_left_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_encoding, "MOST_SHARED_BYTES", 4 * PRESET.ring_degree)
    assert encoder().encode("layer", plan_linear(PRESET, 5, 3), np.ones((5, 3), dtype=np.float32)) is None


def test_encoded_files_are_the_cpus() -> None:
    assert CudaEvaluator.form == f"{CpuEvaluator.__module__}.{CpuEvaluator.__qualname__}"


def test_what_encoding_needs_is_given_back() -> None:
    made = encoder()
    before = made._device.used()
    made.encode("layer", plan_linear(PRESET, 5, 3), np.ones((5, 3), dtype=np.float32))
    assert made._device.used() > before
    made.release()
    assert made._device.used() == before


def test_a_full_device_leaves_encoding_to_the_host() -> None:
    device = HostDevice(PRESET)
    found = DeviceEncoder(device, PRESET, Loader(device, PRESET))
    device.memory = device.used()
    assert found.encode("layer", plan_linear(PRESET, 5, 3), np.ones((5, 3), dtype=np.float32)) is None
