"""Loading: phases, the cache on disk, and what happens when things are wrong."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from rounds_kit import InstantEvaluator, lifespan_of, live, make_settings, wait_until

from fhe_llm.errors import ModelError
from fhe_llm.evaluator.contract import EncodedLayer
from fhe_llm.evaluator.packed_plan import GROUP_TOKENS
from fhe_llm_server import model_host
from fhe_llm_server.app import create_app
from fhe_llm_server.model_host import ModelHost
from fhe_llm_server.refusal import Refusal

PLANS = 1 + len(GROUP_TOKENS)  # each layer is encoded for single tokens and for every size of group


def loaded(model: Path, data_dir: Path) -> tuple[ModelHost, InstantEvaluator]:
    evaluator = InstantEvaluator()
    host = ModelHost(str(model), evaluator, data_dir)
    host.load()
    return host, evaluator


def test_the_first_start_encodes_and_the_second_maps(tiny_model_path: Path, tmp_path: Path) -> None:
    first, encoder = loaded(tiny_model_path, tmp_path)
    second, mapper = loaded(tiny_model_path, tmp_path)
    assert len(encoder.encoded) == 8 * PLANS
    assert len(mapper.encoded) == 2  # the spot check: one plan of each kind
    assert first.ready().listing() == second.ready().listing()
    for name, layer in first.ready().layers.items():
        again = second.ready().layers[name]
        assert np.array_equal(layer.encoded.words, again.encoded.words)
        for group, mapped in zip(layer.packed, again.packed, strict=True):
            assert np.array_equal(group.encoded.words, mapped.encoded.words)
            assert group.encoded.words.ctypes.data == layer.packed[0].encoded.words.ctypes.data  # stored once


def test_loading_is_followed_and_every_step_ends(tiny_model_path: Path, tmp_path: Path) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}

    def watch(label: str, done: int, total: int, /) -> None:
        seen.setdefault(label, []).append((done, total))

    ModelHost(str(tiny_model_path), InstantEvaluator(), tmp_path, watch).load()
    assert list(seen) == ["Encoding", "Checking", "Warming up"]
    assert seen["Encoding"] == [(done, 8) for done in range(9)]
    assert all(steps[-1][0] == steps[-1][1] for steps in seen.values())


def test_the_bundle_is_the_file_its_digest_names(tiny_model_path: Path, tmp_path: Path) -> None:
    bundle = loaded(tiny_model_path, tmp_path)[0].ready().bundle
    assert hashlib.sha256(bundle.path.read_bytes()).hexdigest() == bundle.digest
    assert bundle.path.stat().st_size == bundle.size


@pytest.mark.parametrize("keep", [0, 1000, -1])
def test_a_damaged_cache_is_rebuilt(tiny_model_path: Path, tmp_path: Path, keep: int) -> None:
    loaded(tiny_model_path, tmp_path)
    (cache,) = (tmp_path / "encoded").iterdir()
    good = cache.read_bytes()
    cache.write_bytes(good[:keep])
    _, evaluator = loaded(tiny_model_path, tmp_path)
    assert len(evaluator.encoded) == 8 * PLANS
    assert cache.read_bytes() == good


def test_weights_of_an_older_encoder_are_encoded_again(tiny_model_path: Path, tmp_path: Path) -> None:
    class Newer(InstantEvaluator):
        def encode(self, name: str, plan: Any, weights: Any) -> EncodedLayer:
            return super().encode(name, plan, weights * 2)

    Newer.__qualname__, Newer.__module__ = InstantEvaluator.__qualname__, InstantEvaluator.__module__
    loaded(tiny_model_path, tmp_path)
    evaluator = Newer()
    ModelHost(str(tiny_model_path), evaluator, tmp_path).load()
    assert len(evaluator.encoded) == 1 + 8 * PLANS


def test_a_full_disk_keeps_the_weights_in_memory(
    tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(model_host, "cache_writer", full)
    host, evaluator = loaded(tiny_model_path, tmp_path)
    assert len(host.ready().layers) == 8
    assert len(evaluator.encoded) == 8 * PLANS


def test_a_model_that_cannot_be_found_is_a_failed_phase(tmp_path: Path) -> None:
    host = ModelHost(str(tmp_path / "none.gguf"), InstantEvaluator(), tmp_path)
    with pytest.raises(ModelError, match="cannot find model"):
        host.load()
    assert host.phase.name == "failed to load"
    with pytest.raises(Refusal, match="failed to load") as refused:
        host.ready()
    assert refused.value.proxy_code == "not_ready"


def test_stopping_interrupts_loading(tiny_model_path: Path, tmp_path: Path) -> None:
    host = ModelHost(str(tiny_model_path), InstantEvaluator(), tmp_path)
    host.stop()
    with pytest.raises(ModelError, match="stopping"):
        host.load()
    assert not list((tmp_path / "encoded").iterdir())


def test_health_answers_and_the_phase_shows_while_loading(tiny_model_path: Path, tmp_path: Path) -> None:
    class Slow(InstantEvaluator):
        def encode(self, name: str, plan: Any, weights: Any) -> EncodedLayer:
            wait_until(lambda: released or name.startswith("layers.0.qkv"))
            return super().encode(name, plan, weights)

    released: list[bool] = []
    with live(make_settings(tiny_model_path, tmp_path), lambda _: Slow(), ready=False) as proxy:
        wait_until(lambda: httpx.get(f"{proxy.url}/readyz").json()["done"] == 1)
        waiting = httpx.get(f"{proxy.url}/readyz")
        assert waiting.status_code == 503
        assert waiting.json()["error"]["code"] == "not_ready"
        assert "encoding 1/8" in waiting.json()["error"]["message"]
        assert httpx.get(f"{proxy.url}/healthz").status_code == 200
        assert httpx.get(f"{proxy.url}/v1/models").json()["error"]["code"] == "not_ready"
        refused = httpx.post(f"{proxy.url}/v1/evaluate", content=b"x")
        assert refused.json()["error"]["code"] == "not_ready"
        assert refused.headers["retry-after"] == "1"
        released.append(True)
        wait_until(lambda: httpx.get(f"{proxy.url}/readyz").status_code == 200)


async def test_two_applications_in_one_process_share_nothing(tiny_model_path: Path, tmp_path: Path) -> None:
    apps = [
        create_app(make_settings(tiny_model_path, tmp_path / name), lambda _: InstantEvaluator())
        for name in ("one", "two")
    ]

    async def outer(one: httpx.AsyncClient) -> None:
        async def inner(two: httpx.AsyncClient) -> None:
            await one.post("/v1/evaluate", content=b"x")
            assert 'code="bad_frame"} 1.0' in (await one.get("/metrics")).text
            assert "bad_frame" not in (await two.get("/metrics")).text

        await lifespan_of(apps[1], inner)

    await lifespan_of(apps[0], outer)
