"""The real model, in the clear: fewer rounds a token where answers quote what they were asked about."""

from __future__ import annotations

import pytest
from speculation import PROMPTS, compare

from fhe_llm.client.speculation import SpeculationSettings


@pytest.mark.slow
def test_rounds_per_token_fall_on_summaries_and_questions() -> None:
    prompts = {kind: texts[:1] for kind, texts in PROMPTS.items()}
    modes = {"every_guess": SpeculationSettings(extra_cost=0.0)}
    report = compare(48, prompts, modes)  # raises where an answer changes
    for kind, figures in report["kinds"].items():
        assert figures["fewer"]["every_guess"]["overall"] >= 1.5, kind


def test_the_benchmark_has_prompts_of_both_kinds() -> None:
    assert all(len(texts) >= 4 for texts in PROMPTS.values())
    assert len(PROMPTS) == 2
