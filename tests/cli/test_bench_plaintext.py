"""The plaintext side of a comparison runs where the proxy does, waits for its device, and says where it ran.

torch is not installed for tests: a stand-in writes down what it is asked.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fhe_llm.cli.bench import plaintext
from fhe_llm.cli.bench.plaintext import FloatReference, Transformers, torch_device


class Tensor:
    """Ids or logits, somewhere."""

    def __init__(self, device: str) -> None:
        self.device = device

    def __getitem__(self, _where: Any) -> Tensor:
        return self

    def argmax(self, _axis: int) -> Tensor:
        return self

    def __int__(self) -> int:
        return 7


class Network:
    def __init__(self, log: list[str]) -> None:
        self.log, self.device, self.config = log, "cpu", None

    def eval(self) -> Network:
        return self

    def to(self, device: str) -> None:
        self.device = device

    def forward(self, ids: Any, past_key_values: Any = None) -> None: ...

    def __call__(self, ids: Tensor, **_: Any) -> Any:
        assert ids.device == self.device
        self.log.append("forward")
        return SimpleNamespace(logits=Tensor(self.device))


def libraries(log: list[str], sees_a_gpu: bool) -> dict[str, Any]:
    cuda = SimpleNamespace(
        is_available=lambda: sees_a_gpu,
        get_device_name=lambda number: f"GPU {number} of torch",
        synchronize=lambda: log.append("synchronize"),
    )
    torch = SimpleNamespace(
        __version__="2",
        cuda=cuda,
        float32="float32",
        set_num_threads=lambda _: None,
        tensor=lambda _ids, device: Tensor(device),
        inference_mode=nullcontext,
    )
    quiet = SimpleNamespace(set_verbosity_error=lambda: None, disable_progress_bar=lambda: None)
    loader = SimpleNamespace(from_pretrained=lambda *_, **__: Network(log))
    library = SimpleNamespace(
        __version__="5", logging=quiet, AutoModelForCausalLM=loader, DynamicCache=lambda config: config
    )
    return {"torch": torch, "transformers": library}


def engine(
    monkeypatch: pytest.MonkeyPatch, gpu: str | None, sees_a_gpu: bool
) -> tuple[Transformers, list[str]]:
    log: list[str] = []
    found = libraries(log, sees_a_gpu)
    monkeypatch.setattr(plaintext, "gpu_name", lambda: gpu)
    monkeypatch.setattr(plaintext.importlib, "import_module", found.__getitem__)

    def clock() -> float:
        log.append("clock")
        return float(len(log))

    monkeypatch.setattr(plaintext, "time", SimpleNamespace(perf_counter=clock))
    return Transformers(SimpleNamespace(path=Path("model.gguf"))), log  # type: ignore[arg-type]


def test_on_the_proxys_gpu_the_clock_is_read_when_all_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu, log = engine(monkeypatch, "NVIDIA H100", sees_a_gpu=True)
    assert (on_gpu.device, on_gpu.name) == ("cuda", "transformers 5 float32, torch 2, GPU 0 of torch")
    run = on_gpu.run([1, 2, 3], 2)
    assert log == [
        "synchronize",
        "clock",
        "forward",
        "synchronize",
        "clock",
        "forward",
        "synchronize",
        "clock",
    ]
    assert run.token_ids == (7, 7)


def test_without_a_gpu_nothing_is_said_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu, log = engine(monkeypatch, None, sees_a_gpu=True)
    assert (on_cpu.device, on_cpu.name) == ("cpu", "transformers 5 float32, torch 2")
    on_cpu.run([1], 1)
    assert "synchronize" not in log


def test_a_torch_that_does_not_see_the_gpu_is_named_as_running_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_cpu, _ = engine(monkeypatch, "NVIDIA H100", sees_a_gpu=False)
    assert on_cpu.device == "cpu"
    assert on_cpu.name.endswith(", CPU (torch does not see NVIDIA H100)")


def test_the_reference_says_that_it_is_not_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    subject: Any = SimpleNamespace(half=None, weights=None)
    monkeypatch.setattr(plaintext, "gpu_name", lambda: "NVIDIA H100")
    assert FloatReference(subject).name == "float reference (numpy float32), CPU"
    monkeypatch.setattr(plaintext, "gpu_name", lambda: None)
    assert FloatReference(subject).name == "float reference (numpy float32)"


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_real_torch_says_where_it_computes(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    monkeypatch.setattr(plaintext, "gpu_name", lambda: "a GPU" if device == "cuda" else None)
    found, _ = torch_device(torch)
    assert found == ("cuda" if device == "cuda" and torch.cuda.is_available() else "cpu")
