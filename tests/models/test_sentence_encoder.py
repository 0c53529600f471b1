"""The sentence encoder against transformers, and its one approximation against the exact function."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fhe_llm import SentenceEncoder
from fhe_llm.models.sentence_encoder import gelu

TEXTS = (
    "The night ward opens at 8 pm.",
    "When does the pharmacy close on Sundays?",
    "Ünïcode, 12.5 mg — and a long text. " * 40,
    "x",
)
BEGINNINGS = (
    # transformers 5.24, AutoModel, mean over tokens, unit length
    (0.025620, 0.007845, -0.026866, 0.031555, -0.041823, -0.002791),
    (0.014444, 0.010275, -0.014906, -0.021176, -0.035950, 0.032353),
    (0.020346, -0.042272, 0.070077, 0.003173, -0.040062, -0.044077),
    (-0.097910, -0.064001, -0.023181, -0.046197, 0.021700, -0.028492),
)


def test_gelu_is_exact_to_seven_digits() -> None:
    x = np.linspace(-8, 8, 1601, dtype=np.float32)
    exact = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.tolist()]
    assert np.abs(gelu(x) - exact).max() < 1e-6


@pytest.mark.slow
def test_embeddings_are_those_of_transformers() -> None:
    found = SentenceEncoder.load().encode(TEXTS)
    assert found.shape == (4, 384)
    assert found[:, :6] == pytest.approx(np.array(BEGINNINGS), abs=2e-6)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
def test_a_question_is_nearest_to_its_answer() -> None:
    encoder = SentenceEncoder.load()
    documents = encoder.encode(
        ["Visiting hours are from two to six.", "The dose is one tablet a day.", "Parking is free."]
    )
    assert int(np.argmax(documents @ encoder.encode(["When may I visit?"])[0])) == 0
    assert encoder.encode([]).shape == (0, 384)
