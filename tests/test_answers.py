"""The answers are the model's: transformers' tokens, through the encrypted path and a real proxy process."""

from __future__ import annotations

import json

import pytest
from fidelity import VECTORS, compare


@pytest.mark.slow
def test_teacher_forced_tokens_agree_with_transformers() -> None:
    vectors = sorted(json.loads(VECTORS.read_text())["prompts"], key=lambda v: len(v["prompt_ids"]))[:2]
    report = compare(vectors, tokens=32)
    assert report["positions"] >= 48
    assert report["agreement"] >= 0.995
    assert set(report["log2_error"]) == {"qkv", "o", "gate_up", "down"}
    assert all(errors["median"] < -12 for errors in report["log2_error"].values())
