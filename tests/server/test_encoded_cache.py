"""The encoded-weights file: what goes in comes out, and whatever is wrong with it is noticed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fhe_llm.evaluator.contract import EncodedLayer
from fhe_llm.evaluator.plan import plan_linear
from fhe_llm.params import preset
from fhe_llm_server.encoded_cache import DamagedCacheError, cache_writer, open_cache

IDENTITY = {"version": "1", "model_digest": "aa", "preset": "default", "evaluator": "x"}
PLANS = {f"layers.{n}.o": plan_linear(preset("default"), 8 + n, 8) for n in range(3)}
LAYERS = {
    name: EncodedLayer(name, plan, 20 + n, np.arange(1000 * (n + 1), dtype=np.uint32).reshape(2, -1))
    for n, (name, plan) in enumerate(PLANS.items())
}


def quiet(_done: int, _total: int) -> None:
    """A progress nobody watches."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A complete cache file."""
    target = tmp_path / "sub" / "model.enc"
    with cache_writer(target, IDENTITY) as writer:
        for layer in LAYERS.values():
            writer.add(layer)
        writer.commit()
    return target


def test_layers_come_back_read_only_and_aligned(path: Path) -> None:
    seen: list[tuple[int, int]] = []
    layers = open_cache(path, IDENTITY, PLANS, lambda done, total: seen.append((done, total)))
    for name, layer in LAYERS.items():
        assert np.array_equal(layers[name].words, layer.words)
        assert layers[name].words.dtype == layer.words.dtype
        assert (layers[name].plan, layers[name].log_weight_scale) == (layer.plan, layer.log_weight_scale)
        assert not layers[name].words.flags.writeable
        assert layers[name].words.ctypes.data % 64 == 0
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_an_unfinished_file_is_no_cache_and_is_removed(tmp_path: Path) -> None:
    target = tmp_path / "model.enc"
    (tmp_path / ".model.enc.123.tmp").write_bytes(b"left by a crash")
    with cache_writer(target, IDENTITY) as writer:
        writer.add(next(iter(LAYERS.values())))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        open_cache(target, IDENTITY, PLANS, quiet)


@pytest.mark.parametrize(
    ("change", "value"), [("model_digest", "bb"), ("preset", "wide"), ("evaluator", "y"), ("version", "2")]
)
def test_a_file_made_for_something_else_is_refused(path: Path, change: str, value: str) -> None:
    with pytest.raises(DamagedCacheError, match="another model"):
        open_cache(path, {**IDENTITY, change: value}, PLANS, quiet)


def test_a_file_with_other_plans_or_layers_is_refused(path: Path) -> None:
    first = next(iter(PLANS))
    for plans in (
        {**PLANS, first: plan_linear(preset("default"), 600, 576)},
        {**PLANS, "layers.9.o": PLANS[first]},
        {first: PLANS[first]},
    ):
        with pytest.raises(DamagedCacheError):
            open_cache(path, IDENTITY, plans, quiet)


@pytest.mark.parametrize("keep", [0, 7, 100, 4096, -1, -56, -200])
def test_a_truncated_file_is_noticed(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DamagedCacheError):
        open_cache(path, IDENTITY, PLANS, quiet)


def regions(size: int) -> list[Callable[[int], int]]:
    """Positions in a layer, in the index, in the trailer."""
    return [lambda n: 4096 + n % 3000, lambda n: size - 60 - n % 400, lambda n: size - 1 - n % 56]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(region=st.integers(0, 2), position=st.integers(0, 10_000), mask=st.integers(1, 255))
def test_a_flipped_bit_is_noticed(path: Path, region: int, position: int, mask: int) -> None:
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[regions(len(whole))[region](position)] ^= mask
    path.write_bytes(damaged)
    try:
        with pytest.raises(DamagedCacheError):
            open_cache(path, IDENTITY, PLANS, quiet)
    finally:
        path.write_bytes(whole)


def test_random_files_are_noticed(tmp_path: Path) -> None:
    target = tmp_path / "x.enc"
    for size in (0, 1, 56, 64, 5000):
        target.write_bytes(os.urandom(size))
        with pytest.raises(DamagedCacheError):
            open_cache(target, IDENTITY, PLANS, quiet)
