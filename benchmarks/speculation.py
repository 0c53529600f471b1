"""Rounds per token with and without speculation, on prompts that ask about a passage or for its summary.

``python benchmarks/speculation.py [--tokens 64] [--draft-model NAME]`` prints one JSON object. Products are computed
in the clear: the number of rounds does not depend on encryption, and a run takes a minute. ``every_guess`` drafts
wherever earlier text suggests something (``extra_cost=0``: the fewest rounds, for a slow link); ``weighed`` drafts
where that pays if an extra token adds 0.6 of a round, as on a CPU; ``fixed`` sends as many drafts in every pass.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from fhe_llm.cli.bench.generation import run_in_the_clear
from fhe_llm.cli.bench.record import record
from fhe_llm.client.draft_model import DraftModel
from fhe_llm.client.generation import Outcome, Task
from fhe_llm.client.prefix_cache import PrefixCache
from fhe_llm.client.sampling import SamplingParams
from fhe_llm.client.speculation import PromptLookup, SpeculationSettings, Speculator
from fhe_llm.models.chat_template import ChatTemplate
from fhe_llm.models.registry import ClientHalf
from fhe_llm.models.resolve import open_model
from fhe_llm.models.steps import Floats
from fhe_llm.models.tokenizer import IncrementalDecoder, TextTokenizer
from fhe_llm.params import preset

MODEL = "smollm2-135m"
MEASURED_EXTRA_COST = 0.6
MODES = {
    "every_guess": SpeculationSettings(extra_cost=0.0),
    "weighed": SpeculationSettings(extra_cost=MEASURED_EXTRA_COST),
    "fixed": SpeculationSettings(max_draft=4, fixed=True),
}
PROMPTS = json.loads((Path(__file__).parent / "speculation_prompts.json").read_text())


@dataclass(frozen=True)
class Model:
    """Both halves of the model, in the clear."""

    half: ClientHalf
    weights: Mapping[str, Floats]
    tokenizer: TextTokenizer
    template: ChatTemplate
    prefixes: PrefixCache

    @classmethod
    def load(cls, name: str = MODEL) -> Model:
        source = open_model(name)
        tokenizer = TextTokenizer(source.tokenizer)
        whole = DraftModel.load(name, tokenizer)
        template = ChatTemplate(source.tokenizer.chat_template or "")
        return cls(whole.half, whole.weights, tokenizer, template, PrefixCache())

    def answer(self, prompt: str, tokens: int, speculator: Speculator | None) -> Outcome:
        """The greedy answer to one question; the question itself is run once for all modes."""
        config = self.half.config
        ids = self.template.encode(self.tokenizer, [{"role": "user", "content": prompt}])
        task = Task(
            half=self.half,
            decoder=IncrementalDecoder(self.tokenizer),
            prompt_ids=tuple(ids),
            params=SamplingParams(max_tokens=tokens),
            end_ids=self.tokenizer.eos_ids,
            context_length=config.context_length,
            layers=len(self.weights),
            prefix=self.prefixes.scope((config.n_layers, config.n_kv_heads, config.head_dim)),
            speculator=speculator,
        )
        return run_in_the_clear(task, self.weights)


def measure(
    model: Model, prompt: str, tokens: int, modes: Mapping[str, SpeculationSettings], draft: DraftModel | None
) -> dict[str, Any]:
    """One prompt without speculation and in every mode; raises where a mode changes the answer."""
    plain = model.answer(prompt, tokens, None)
    layers, after = len(model.weights), max(1, len(plain.token_ids) - 1)
    result: dict[str, Any] = {"tokens": len(plain.token_ids), "without": layers * plain.passes.count / after}
    for name, settings in modes.items():
        drafters = [PromptLookup(), *([draft.drafter()] if draft else [])]
        outcome = model.answer(prompt, tokens, Speculator(settings, drafters))
        if (outcome.token_ids, outcome.text) != (plain.token_ids, plain.text):
            raise SystemExit(f"{name} changed the answer to {prompt[:40]!r}")
        passes = outcome.passes
        result[name] = {
            "rounds_per_token": layers * passes.count / after,
            "fewer": plain.passes.count / max(1, passes.count),
            "vectors_per_token": (passes.count + passes.drafted) / after,
            "drafted": passes.drafted,
            "acceptance": passes.accepted / passes.drafted if passes.drafted else None,
        }
    return result


def compare(
    tokens: int,
    prompts: Mapping[str, Sequence[str]] = PROMPTS,
    modes: Mapping[str, SpeculationSettings] = MODES,
    draft_model: str | None = None,
) -> dict[str, Any]:
    """Every prompt of every kind, and per kind the rounds of all its prompts together."""
    model = Model.load()
    draft = DraftModel.load(draft_model, model.tokenizer) if draft_model else None
    kinds = {}
    for kind, texts in prompts.items():
        each = [measure(model, text, tokens, modes, draft) for text in texts]
        kinds[kind] = {"prompts": each, "fewer": {name: _spread(each, name) for name in modes}}
    return {"model": MODEL, "draft_model": draft_model, "max_tokens": tokens, "kinds": kinds}


def _spread(each: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    """How many times fewer rounds a token: over all tokens of the kind, and per prompt."""
    after = [r["tokens"] - 1 for r in each]
    without = sum(r["without"] * n for r, n in zip(each, after, strict=True))
    rounds = sum(r[name]["rounds_per_token"] * n for r, n in zip(each, after, strict=True))
    fewer = [r[name]["fewer"] for r in each]
    return {"overall": without / rounds, "median": median(fewer), "least": min(fewer), "most": max(fewer)}


def main() -> None:
    """Print the comparison as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--draft-model")
    asked = parser.parse_args()
    figures = compare(asked.tokens, draft_model=asked.draft_model)
    sys.stdout.write(json.dumps(record("speculation", preset("default"), figures), indent=2) + "\n")


if __name__ == "__main__":
    main()
