"""The same model in the clear: transformers with torch where installed, and a float32 reference everywhere.

Both decode greedily with a KV cache and time each phase themselves, so that loading and tokenising never count.
transformers runs where the proxy does: on its GPU where ``FHE_LLM_DEVICE`` names one and torch sees it.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from fhe_llm.cli.bench.record import gpu_name, plain, record, spread, usable_cores
from fhe_llm.cli.bench.subject import PROMPT, Subject, open_subject
from fhe_llm.models.plaintext import run_plaintext
from fhe_llm.params import preset

NEEDED: Final = ("torch", "transformers", "accelerate")


@dataclass(frozen=True, slots=True)
class PlainRun:
    """One greedy continuation: seconds to the first token, seconds for each one after it, and the tokens."""

    first: float
    per_token: float
    token_ids: tuple[int, ...]


class PlaintextModel(Protocol):
    """A model in the clear. ``name`` says what computes and where, ``device`` is "cpu" or "cuda"."""

    name: str
    device: str

    def run(self, prompt_ids: Sequence[int], tokens: int) -> PlainRun:
        """Continue the prompt by ``tokens`` tokens, end-of-turn tokens or not."""
        ...


class FloatReference:
    """The library's own client half with its linear layers as float32 NumPy products."""

    device = "cpu"

    def __init__(self, subject: Subject) -> None:
        self._half, self._weights = subject.half, subject.weights
        self.name = "float reference (numpy float32)" + ("" if gpu_name() is None else ", CPU")

    def run(self, prompt_ids: Sequence[int], tokens: int) -> PlainRun:
        """See :class:`PlaintextModel`."""
        cache, fed, found, times = self._half.new_cache(), list(prompt_ids), list[int](), list[float]()
        begun = time.perf_counter()
        for _ in range(tokens):
            logits = run_plaintext(self._half.forward(fed, cache), self._weights)
            found.append(int(logits[-1].argmax()))
            fed = found[-1:]
            times.append(time.perf_counter() - begun)
        return _plain_run(times, found)


class Transformers:
    """transformers' own model from the same GGUF file, dequantised to float32; on a CPU one thread per usable core."""

    def __init__(self, subject: Subject) -> None:
        self._torch: Any = importlib.import_module("torch")
        self._torch.set_num_threads(usable_cores())
        self._library: Any = importlib.import_module("transformers")
        self._library.logging.set_verbosity_error()
        self._library.logging.disable_progress_bar()
        self._network = self._library.AutoModelForCausalLM.from_pretrained(
            subject.path.parent, gguf_file=subject.path.name, dtype=self._torch.float32
        ).eval()
        self.device, where = torch_device(self._torch)
        self._network.to(self.device)
        self.name = f"transformers {self._library.__version__} float32, torch {self._torch.__version__}{where}"
        # version 5.24 renamed the argument
        named = inspect.signature(inspect.unwrap(self._network.forward)).parameters
        self._cache_argument = "cache" if "cache" in named else "past_key_values"

    def run(self, prompt_ids: Sequence[int], tokens: int) -> PlainRun:
        """See :class:`PlaintextModel`."""
        fed = self._torch.tensor([list(prompt_ids)], device=self.device)
        found, times = list[int](), list[float]()
        begun = self._now()
        cache = {self._cache_argument: self._library.DynamicCache(config=self._network.config)}
        with self._torch.inference_mode():
            for _ in range(tokens):
                # the cache grows in place; only the last position's logits are computed, as generate() does
                logits = self._network(fed, use_cache=True, logits_to_keep=1, **cache).logits
                fed = logits[:, -1:].argmax(-1)
                found.append(int(fed))
                times.append(self._now() - begun)
        return _plain_run(times, found)

    def _now(self) -> float:
        """The clock, once everything asked of the device is done."""
        if self.device == "cuda":
            self._torch.cuda.synchronize()
        return time.perf_counter()


def torch_device(torch: Any) -> tuple[str, str]:
    """Where torch computes, and what to add to an engine's name: a GPU's, or that torch does not see the proxy's."""
    gpu = gpu_name()
    if gpu is None:
        return "cpu", ""
    if torch.cuda.is_available():
        return "cuda", f", {torch.cuda.get_device_name(0)}"
    return "cpu", f", CPU (torch does not see {gpu})"


def best_plaintext(subject: Subject) -> PlaintextModel:
    """transformers where torch is installed and the model is a GGUF file, else the float reference."""
    return Transformers(subject) if has_transformers(subject) else FloatReference(subject)


def has_transformers(subject: Subject) -> bool:
    """Whether the outside implementation can run here."""
    installed = all(importlib.util.find_spec(name) is not None for name in NEEDED)
    return installed and subject.path.suffix == ".gguf"


def bench_plaintext(model: str, tokens: int, repeats: int) -> dict[str, Any]:
    """The record of every plaintext engine there is, interleaved."""
    subject = open_subject(model)
    engines: list[PlaintextModel] = [FloatReference(subject)]
    if has_transformers(subject):
        engines.append(Transformers(subject))
    ids = subject.text_ids(PROMPT)
    for engine in engines:
        engine.run(ids, 2)
    runs = [[engine.run(ids, tokens) for engine in engines] for _ in range(repeats)]
    found = [
        {
            "engine": engine.name,
            "seconds_per_token": plain(spread([row[i].per_token for row in runs])),
            "seconds_to_first_token": plain(spread([row[i].first for row in runs])),
            "token_ids": list(runs[-1][i].token_ids),
        }
        for i, engine in enumerate(engines)
    ]
    figures = {
        "model": subject.source.config.name,
        "model_digest": subject.source.model_digest,
        "prompt_tokens": len(ids),
        "tokens": tokens,
        "threads": usable_cores(),
        "engines": found,
    }
    return record("plaintext", preset("default"), figures)


def _plain_run(times: list[float], found: list[int]) -> PlainRun:
    return PlainRun(times[0], (times[-1] - times[0]) / max(1, len(times) - 1), tuple(found))
