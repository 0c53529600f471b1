"""Seconds per token of a whole encrypted generation, where they go, and the same model in the clear in the same run."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Final

import numpy as np

from fhe_llm import progress
from fhe_llm.answer import Answer, Phases
from fhe_llm.cli.asking import served
from fhe_llm.cli.bench_record import plain, record, spread, usable_cores
from fhe_llm.client.generation import Outcome, Task, generate
from fhe_llm.client.sampling import SamplingParams
from fhe_llm.llm import EncryptedLLM
from fhe_llm.models.bundle import load_bundle, write_bundle
from fhe_llm.models.registry import client_half
from fhe_llm.models.resolve import cache_root, open_model, resolve
from fhe_llm.models.source import ModelSource
from fhe_llm.models.steps import Floats, Linear
from fhe_llm.models.tokenizer import IncrementalDecoder, TextTokenizer
from fhe_llm.params import preset as find_preset

PROMPT: Final = (
    "The sea was calm that morning, and the old fisherman had been out since before dawn. He pulled in"
)


def bench_generation(
    model: str, tokens: int, repeats: int, preset: str = "default", base_url: str | None = None
) -> dict[str, Any]:
    """The record of ``repeats`` generations of ``tokens`` tokens after one that warms up; all greedy."""
    source = open_model(model, progress=progress.bar())
    with (
        served(base_url, model if base_url is None else source.config.name, preset) as proxy,
        EncryptedLLM(
            proxy.model, proxy.base_url, preset=preset, prefix_cache=False, speculation=False
        ) as llm,
    ):
        warm_up = llm.generate(PROMPT, max_tokens=tokens)
        answers = [llm.generate(PROMPT, max_tokens=tokens) for _ in range(repeats)]
    reference = _reference(source, tokens, repeats)
    decode = spread([answer.timings.seconds_per_token or 0.0 for answer in answers])
    figures = {
        "model": source.config.name,
        "model_digest": source.model_digest,
        "prompt_tokens": warm_up.prompt_tokens,
        "tokens": len(warm_up.token_ids),
        "batch": 1,
        "threads": {"proxy": usable_cores() if base_url is None else None, "client": usable_cores()},
        "proxy": "same machine" if base_url is None else base_url,
        "seconds_per_token": plain(decode),
        "seconds_to_first_token": plain(spread([a.timings.seconds_to_first_token for a in answers])),
        "first_use_seconds_to_first_token": warm_up.timings.seconds_to_first_token,
        "split_seconds_per_token": _split(answers),
        "bytes_per_token": _bytes_per_token(answers[-1]),
        "precision_log2": answers[-1].receipt.precision_log2,
        "plaintext": reference,
        "ratio_to_plaintext": decode.median / reference["seconds_per_token"]["median"],
        "tokens_equal_plaintext": list(warm_up.token_ids) == reference["token_ids"],
        "transformers": _transformers(model, source, tokens, repeats),
    }
    return record("generation", find_preset(preset), figures)


def _split(answers: list[Answer]) -> dict[str, float]:
    """The median of each phase of decoding, in seconds per token."""
    decodes = [asdict(answer.timings.decode) for answer in answers]
    return {f.name: float(np.median([decode[f.name] for decode in decodes])) for f in fields(Phases)}


def _bytes_per_token(answer: Answer) -> dict[str, float]:
    """Averages over prompt and answer tokens: every token that passed the layers."""
    passed = answer.prompt_tokens + len(answer.token_ids) - 1
    return {"up": answer.receipt.bytes_up / passed, "down": answer.receipt.bytes_down / passed}


def _reference(source: ModelSource, tokens: int, repeats: int) -> dict[str, Any]:
    """The same generation with the linear layers in float32 NumPy."""
    path = cache_root() / "bench-bundle.safetensors"
    bundle = load_bundle(path, write_bundle(source, path))
    path.unlink(missing_ok=True)
    half, tokenizer, weights = (
        client_half(bundle),
        TextTokenizer(bundle.tokenizer),
        dict(source.linear_weights()),
    )

    def run() -> Outcome:
        return run_in_the_clear(
            Task(
                half=half,
                decoder=IncrementalDecoder(tokenizer),
                prompt_ids=tuple(tokenizer.encode(PROMPT, add_special=True, parse_special=False)),
                params=SamplingParams(max_tokens=tokens),
                end_ids=tokenizer.eos_ids,
                context_length=half.config.context_length,
                layers=len(weights),
            ),
            weights,
        )

    run()
    outcomes = [run() for _ in range(repeats)]
    seconds = [(o.seconds - o.seconds_to_first_token) / max(1, len(o.token_ids) - 1) for o in outcomes]
    return {
        "engine": "numpy float32",
        "seconds_per_token": plain(spread(seconds)),
        "seconds_to_first_token": plain(spread([o.seconds_to_first_token for o in outcomes])),
        "token_ids": list(outcomes[-1].token_ids),
    }


def run_in_the_clear(task: Task, weights: Mapping[str, Floats]) -> Outcome:
    """Drive a generation with plain products."""
    steps, reply = generate(task), None
    while True:
        try:
            step = steps.send(reply)
        except StopIteration as stop:
            outcome: Outcome = stop.value
            return outcome
        reply = step.x @ weights[step.layer].T if isinstance(step, Linear) else None


def _transformers(model: str, source: ModelSource, tokens: int, repeats: int) -> dict[str, Any] | None:
    """transformers on the same GGUF file, where it and torch are installed; None elsewhere."""
    path = resolve(model)
    needed = ("torch", "transformers", "accelerate")
    if path.suffix != ".gguf" or any(importlib.util.find_spec(name) is None for name in needed):
        return None
    torch: Any = importlib.import_module("torch")
    network = importlib.import_module("transformers").AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    tokenizer = TextTokenizer(source.tokenizer)
    ids = torch.tensor([tokenizer.encode(PROMPT, add_special=True, parse_special=False)])

    def seconds(new: int) -> float:
        begun = time.perf_counter()
        network.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False)
        return time.perf_counter() - begun

    seconds(2)
    per_token = [(seconds(tokens) - seconds(1)) / max(1, tokens - 1) for _ in range(repeats)]
    return {
        "engine": f"transformers float32, torch {torch.__version__}",
        "seconds_per_token": plain(spread(per_token)),
    }
