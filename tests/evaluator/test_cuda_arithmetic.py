"""The device functions of the CUDA kernels, built for the host, against Python's integers and the CPU's kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_contract import random_keys, residues
from host_device import HostDevice, compiler
from numpy.typing import NDArray

from fhe_llm.evaluator import keyswitch, rns
from fhe_llm.evaluator.cuda_kernels import thread_count, transform_bytes
from fhe_llm.evaluator.cuda_loader import Loader
from fhe_llm.evaluator.device import Address
from fhe_llm.evaluator.plan import plan_linear
from fhe_llm.params import PRESETS, Preset

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")


class Bench:
    """Arrays on the host's device, and launches on them."""

    def __init__(self, preset: Preset, descending: bool = False) -> None:
        self.preset = preset
        self.device = HostDevice(preset, descending=descending)
        self._buffers: list[Any] = []
        self._loader = Loader(self.device, preset)
        self.tables = Address(self._loader.tables.address)

    def put(self, array: NDArray[Any]) -> Address:
        buffer = self.device.allocate(array.nbytes)
        self._buffers.append(buffer)
        self.device.lane().copy_in(Address(buffer.address), np.ascontiguousarray(array))
        return Address(buffer.address)

    def get(self, address: Address, like: NDArray[Any]) -> NDArray[Any]:
        out = np.empty_like(like)
        self.device.lane().copy_out(out, address)
        return out

    def transform(self, kernel: str, grid: tuple[int, int, int], *arguments: Any) -> None:
        threads, shared = (thread_count(self.preset), 1, 1), transform_bytes(self.preset)
        self.device.lane().launch(kernel, grid, threads, shared, *arguments)


@pytest.fixture(params=["default", "wide"])
def preset(request: pytest.FixtureRequest) -> Preset:
    return PRESETS[request.param]


def test_modular_arithmetic(preset: Preset) -> None:
    bench, rng = Bench(preset), np.random.default_rng()
    for limb, q in enumerate(preset.primes):
        x, y = rng.integers(0, 1 << 32, (2, 512), dtype=np.uint32)
        x[:8] = 0, 1, q - 1, q, q + 1, (1 << 32) - 1, 2 * q - 1 & 0xFFFFFFFF, 1 << 31
        y[:8] = q - 1, 0, q - 1, 1, q - 1, q - 1, 1, q // 2
        out = np.empty((7, 512), dtype=np.uint32)
        address = bench.put(out)
        lane = bench.device.lane()
        arguments = (bench.tables, bench.put(x), bench.put(y), address, limb)
        lane.launch("probe_arithmetic", (2, 1, 1), (256, 1, 1), 0, *arguments)
        words = bench.get(address, out)
        a, b, back = x.astype(object) % q, y.astype(object) % q, pow(1 << 32, -1, q)
        most = (2 * q * q - 1 + (q - 1) ** 2) * back % q
        lazy = x.astype(object) % (4 * q) if q < 1 << 30 else x.astype(object)
        expected = (a + b, a - b, x.astype(object) * b, a * b * back, a * 0 + most, lazy)
        expected = (*expected, ((1 << 32) - 1 - x.astype(object) % 8) * b)
        for found, wanted in zip(words, expected, strict=True):
            np.testing.assert_array_equal(found, (wanted % q).astype(np.uint32))


@pytest.mark.parametrize("descending", [False, True])
def test_transforms_equal_the_cpus(preset: Preset, descending: bool) -> None:
    bench, rng = Bench(preset, descending), np.random.default_rng()
    words = residues(rng, preset, preset.primes)
    words[:, :2] = 0
    words[:, 2] = np.array(preset.primes) - 1
    expected = rns.ntt_forward(words, preset.ring_degree, preset.primes)
    for limb in range(len(preset.primes)):
        address = bench.put(words[limb])
        bench.transform("probe_transform", (1, 1, 1), bench.tables, address, limb, 0)
        np.testing.assert_array_equal(bench.get(address, words[limb]), expected[limb])
        bench.transform("probe_transform", (1, 1, 1), bench.tables, address, limb, 1)
        np.testing.assert_array_equal(bench.get(address, words[limb]), words[limb])


def test_rotations_turn_each_half(preset: Preset) -> None:
    bench, half = Bench(preset), preset.slots
    for k in (0, 1, 31, half - 1):
        out = np.empty(preset.ring_degree, dtype=np.int32)
        address = bench.put(out)
        grid = (preset.ring_degree // 256, 1, 1)
        bench.device.lane().launch("probe_rotation", grid, (256, 1, 1), 0, address, k)
        expected = np.concatenate([np.roll(np.arange(half), -k), half + np.roll(np.arange(half), -k)])
        np.testing.assert_array_equal(bench.get(address, out), expected)


class Rotation:
    """One ciphertext [2, L, N], in SEAL's order and in slot order, and one key, as both sides take it."""

    def __init__(self, preset: Preset, k: int) -> None:
        rng, self.k = np.random.default_rng(), k
        plan = plan_linear(preset, 333, 300)
        self.ciphertext = residues(rng, preset, preset.data_primes, 2)
        ring = rns.ring_tables(preset.ring_degree, preset.primes)
        self.turned = np.ascontiguousarray(self.ciphertext[..., ring.slot_from_seal])
        raw = random_keys(rng, preset, [plan]).words[0]
        self.key = keyswitch.to_montgomery(raw[..., ring.slot_from_seal], preset.primes)
        self.tables = keyswitch.engine_tables(preset.ring_degree, preset.primes)


@pytest.mark.parametrize("descending", [False, True])
def test_a_hoisted_rotation_equals_the_cpus(preset: Preset, descending: bool) -> None:
    r, bench = Rotation(preset, 5), Bench(preset, descending)
    limbs, n = len(preset.data_primes), preset.ring_degree
    w = keyswitch.workspace(n, limbs)
    digits = np.empty((limbs, limbs + 1, n), dtype=np.uint32)
    for digit in range(limbs):
        keyswitch.decompose_digit(r.turned[1], digit, digits[digit], w, r.tables)
    expected = np.empty((2, limbs, n), dtype=np.uint32)
    keyswitch.rotate_hoisted(r.turned[0], digits, r.key, r.k, expected, w, r.tables)

    rotated = np.zeros((r.k + 1, 2, limbs, n), dtype=np.uint32)
    where, spread, stamps = bench.put(rotated), bench.put(digits * 0), bench.put(np.zeros(4, np.uint64))
    key = bench.put(r.key).value
    steps = bench.put(np.array([0, 0, *[key] * (r.k + 1)], dtype=np.uint64))
    plain = (bench.tables, bench.put(r.ciphertext), where, spread, r.k + 1, stamps)
    bench.transform("place_inputs", (limbs * limbs + limbs, 1, 1), *plain)
    for slices in (1, limbs):
        turned = (bench.tables, steps, spread, where, 1, r.k + 1, r.k + 1, limbs // slices)
        bench.transform("rotate_babies", (2 * r.k, 1, slices), *turned)
        found = bench.get(where, rotated)
        np.testing.assert_array_equal(found[0], r.turned)
        np.testing.assert_array_equal(found[r.k], expected)


@pytest.mark.parametrize("descending", [False, True])
def test_a_sum_that_turns_equals_the_cpus(preset: Preset, descending: bool) -> None:
    r, bench = Rotation(preset, 77), Bench(preset, descending)
    limbs, n = len(preset.data_primes), preset.ring_degree
    w = keyswitch.workspace(n, limbs)
    switched = np.zeros((2, limbs + 1, n), dtype=np.uint32)
    direct = np.zeros((limbs, n), dtype=np.uint32)
    keyswitch.rotate_lazily(r.turned, r.key, r.k, switched, direct, w, r.tables)
    for limb, q in enumerate(preset.data_primes):
        lifted = direct[limb].astype(np.uint64) * np.uint64(preset.primes[-1] % q)
        switched[0, limb] = (switched[0, limb] + lifted) % np.uint64(q)

    giant, digits = (
        bench.put(np.array([r.k], dtype=np.int32)),
        bench.put(np.zeros((limbs, limbs + 1, n), np.uint32)),
    )
    sums, totals = bench.put(r.turned), bench.put(switched * 0)
    steps = bench.put(np.array([0, 0, 0, bench.put(r.key).value], dtype=np.uint64))
    stamps = bench.put(np.zeros(4, np.uint64))
    bench.transform("decompose_sums", (limbs * limbs, 1, 1), bench.tables, sums, giant, digits, 1, stamps)
    grid, block = ((limbs + 1) * n // 128, 1, 1), (32, 8, 1)
    arguments = (bench.tables, steps, sums, digits, giant, totals, 1, 1)
    bench.device.lane().launch("turn_sums", grid, block, 4 * 2 * 128 * 8, *arguments)
    np.testing.assert_array_equal(bench.get(totals, switched), switched)
