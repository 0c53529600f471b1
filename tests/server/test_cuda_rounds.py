"""A proxy with the CUDA evaluator, on the host's build of its kernels, answers as one on the CPU, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from host_device import HostDevice, compiler
from rounds_kit import (
    InstantEvaluator,
    LiveProxy,
    live,
    make_settings,
    request_frame,
    upload,
    wait_until,
)

from fhe_llm.evaluator.contract import EncodedLayer, Timings
from fhe_llm.evaluator.cuda import CudaEvaluator
from fhe_llm.evaluator.device import DeviceLostError
from fhe_llm.params import preset
from fhe_llm.wire import frame as wire
from fhe_llm_server.settings import Settings

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")


def on_host(settings: Settings) -> CudaEvaluator:
    parameters = preset(settings.preset)
    return CudaEvaluator(HostDevice(parameters), parameters, threads=2)


def answer(url: str, data: bytes) -> wire.EvaluateReply:
    frame = wire.decode(httpx.post(f"{url}/v1/evaluate", content=data, timeout=120).content)
    assert isinstance(frame, wire.EvaluateReply), frame
    return frame


def test_replies_do_not_depend_on_the_device(
    proxy: LiveProxy, listing: dict[str, Any], key: bytes, tiny_model_path: Path, tmp_path: Path
) -> None:
    for start in ("encodes", "maps what was encoded"):
        with live(make_settings(tiny_model_path, tmp_path), on_host) as cuda:
            assert httpx.get(f"{cuda.url}/v1/models").json() == listing, start
            assert upload(cuda.url, key).status_code in (200, 201)
            for position in range(4):
                data = wire.encode(request_frame(listing, key, position, jobs=3, seed=position))
                mine, theirs = answer(cuda.url, data), answer(proxy.url, data)
                np.testing.assert_array_equal(mine.words, theirs.words)
                assert mine.timings.products > 0


def test_a_proxy_that_lost_its_device_says_so_and_ends(
    listing: dict[str, Any], key: bytes, tiny_model_path: Path, tmp_path: Path
) -> None:
    class Fragile(InstantEvaluator):
        lost = False

        def evaluate(self, layer: EncodedLayer, jobs: Any) -> tuple[list[Any], Timings]:
            if self.lost:
                raise DeviceLostError("cannot compute on a GPU: cudaErrorIllegalAddress. Start this process again.")
            return super().evaluate(layer, jobs)

    evaluator = Fragile()
    with live(make_settings(tiny_model_path, tmp_path), lambda _: evaluator) as fragile:
        own = httpx.get(f"{fragile.url}/v1/models").json()
        assert upload(fragile.url, key).status_code in (200, 201)
        evaluator.lost = True
        answer = httpx.post(
            f"{fragile.url}/v1/evaluate", content=wire.encode(request_frame(own, key, 0)), timeout=120
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
        wait_until(fragile.ended)
        assert isinstance(fragile.app.state.proxy.failure, DeviceLostError)
