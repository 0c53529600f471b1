"""The answers are the model's: transformers' tokens, through the encrypted path and a real proxy process."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest
from fidelity import VECTORS, compare, spread_evenly, summary

from fhe_llm.models.resolve import KNOWN


def named_in_the_script(name: str) -> Any:
    """A constant of ``make_vectors.py``, which itself needs torch; ``user(text)`` stands for one message."""
    tree = ast.parse((VECTORS.parent / "make_vectors.py").read_text())
    for node in tree.body:
        target = node.target if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [None])[0]
        if isinstance(target, ast.Name) and target.id == name:
            value = node.value  # type: ignore[attr-defined,union-attr]
            names = {"user": lambda text: [{"role": "user", "content": text}]}
            return eval(compile(ast.Expression(value), "make_vectors", "eval"), names)
    raise AssertionError(name)


def test_the_vectors_are_those_of_the_script_and_the_pinned_model() -> None:
    made = json.loads(VECTORS.read_text())
    assert made["gguf_sha256"] == KNOWN["smollm2-135m"].gguf_sha256
    assert made["n_tokens"] == named_in_the_script("N_TOKENS") == 32
    assert [prompt["messages"] for prompt in made["prompts"]] == named_in_the_script("PROMPTS")
    assert len(made["prompts"]) >= 20
    for prompt in made["prompts"]:
        assert len(prompt["greedy_ids"]) == len(prompt["margins"]) == 32
        assert prompt["prompt_ids"]
        assert min(prompt["margins"]) >= 0


def test_parts_add_up() -> None:
    parts = [
        {"positions": 30, "agreeing": 30, "log2_errors": {"qkv": [-16.0, -15.0], "o": [-14.0]}},
        {"positions": 10, "agreeing": 9, "log2_errors": {"qkv": [-17.0]}},
    ]
    found = summary(parts, 32)
    assert (found["prompts"], found["positions"], found["agreement"]) == (2, 40, 39 / 40)
    assert found["log2_error"]["qkv"] == {"median": -16.0, "worst": -15.0, "vectors": 3}
    assert found["log2_error"]["o"] == {"median": -14.0, "worst": -14.0, "vectors": 1}
    assert spread_evenly([{"n": i} for i in range(28)], 4) == [{"n": i} for i in (0, 9, 18, 27)]


@pytest.mark.slow
def test_teacher_forced_tokens_agree_with_transformers() -> None:
    vectors = sorted(json.loads(VECTORS.read_text())["prompts"], key=lambda v: len(v["prompt_ids"]))[:2]
    report = compare(vectors, tokens=32)
    assert report["positions"] >= 48
    assert report["agreement"] >= 0.995
    assert set(report["log2_error"]) == {"qkv", "o", "gate_up", "down"}
    assert all(errors["median"] < -12 for errors in report["log2_error"].values())
