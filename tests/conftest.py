"""Fixtures every test may use: a tiny random model, the real one, and a proxy process that serves the tiny one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from provider_server import ProviderServer
from tiny_model import PROMPT, write_tiny_gguf

from fhe_llm import EncryptedLLM
from fhe_llm.cli.bench.generation import run_in_the_clear
from fhe_llm.cli.proxy_process import ProxyProcess
from fhe_llm.client.generation import Task
from fhe_llm.client.sampling import SamplingParams
from fhe_llm.errors import DownloadError
from fhe_llm.models.bundle import load_bundle, write_bundle
from fhe_llm.models.registry import client_half
from fhe_llm.models.resolve import open_model, resolve
from fhe_llm.models.tokenizer import IncrementalDecoder, TextTokenizer

# how long an example takes, or making one, says something about the machine, not about the code
hypothesis.settings.register_profile(
    "fhe-llm", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("fhe-llm")

GPU_OUTCOMES = pytest.StashKey[dict[str, str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-gpu", action="store_true", help="fail where tests marked gpu find no device")
    parser.addoption("--gpu-record", default=None, help="write what the tests marked gpu came to, as JSON")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Remember how the tests marked gpu ended, for ``--gpu-record``."""
    report = yield
    if item.get_closest_marker("gpu") and (report.when == "call" or report.outcome != "passed"):
        item.config.stash.setdefault(GPU_OUTCOMES, {})[item.nodeid] = report.outcome
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--gpu-record")
    if path:
        from fhe_llm.cli.bench.record import keep, record
        from fhe_llm.evaluator.cupy_device import open_device
        from fhe_llm.params import PRESETS

        device = open_device(PRESETS["default"])
        outcomes = session.config.stash.get(GPU_OUTCOMES, {})
        counts = {kind: list(outcomes.values()).count(kind) for kind in ("passed", "failed", "skipped")}
        result = record("gpu-tests", PRESETS["default"], {"counts": counts, "outcomes": outcomes})
        result["device"]["gpu"] = device.name
        keep(result, Path(path))


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of a random Llama model: 2 layers, d=64, 4 heads sharing 2, MLP 96, context 256."""
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The real SmolLM2-135M GGUF, from the cache or downloaded once (only in tests marked ``slow``)."""
    try:
        return resolve("smollm2-135m")
    except DownloadError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def proxy(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    """A proxy with the tiny model."""
    with ProxyProcess(str(tiny_model_path), data_dir=tmp_path_factory.mktemp("proxy")) as process:
        yield process


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where clients keep what they fetch."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def llm(proxy: ProxyProcess, cache: Path) -> Iterator[EncryptedLLM]:
    """A client of the proxy."""
    with EncryptedLLM("tiny", proxy.base_url, cache_dir=cache) as client:
        yield client


@pytest.fixture(scope="module")
def expected(tiny_model_path: Path, cache: Path) -> tuple[int, ...]:
    """What the tiny model says to ``PROMPT`` in the clear, 8 tokens."""
    source = open_model(tiny_model_path)
    bundle = load_bundle(cache / "b", write_bundle(source, cache / "b"))
    tokenizer = TextTokenizer(bundle.tokenizer)
    task = Task(
        half=client_half(bundle),
        decoder=IncrementalDecoder(tokenizer),
        prompt_ids=tuple(tokenizer.encode(PROMPT)),
        params=SamplingParams(max_tokens=8),
        end_ids=tokenizer.eos_ids,
        context_length=bundle.config.context_length,
        layers=8,
    )
    return run_in_the_clear(task, dict(source.linear_weights())).token_ids


@pytest.fixture
def provider_server() -> Iterator[ProviderServer]:
    """A server that speaks the providers' APIs, at an address that no test has used: circuits are kept by address."""
    with ProviderServer() as server:
        yield server
