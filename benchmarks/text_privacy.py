"""What ε buys and what it costs, measured: questions perturbed token by token, and vectors under Gaussian noise.

``python benchmarks/text_privacy.py [--draws 2] [--output FILE]`` prints one JSON record. For every mechanism and ε:

- ``similarity``: cosine of the sentence embeddings (all-MiniLM-L6-v2) of original and perturbed question.
- ``accuracy``: topic of the perturbed question by the nearest of six centroids of other questions in clear.
- ``unchanged``: P[a token comes out as itself], from the exact distribution.
- ``tokens_recovered``: the best guess there is at a token from its replacement, by an attacker who knows the mechanism
  and how often each word occurs in these questions (Bayes' rule on the exact distribution).
- ``questions_identified``: the best guess at which of all 216 questions was asked, from all its replacements.

Each is a mean over the questions with a 95 % interval. Draws come from the operating system's generator, so no run
repeats another. Run with ``OPENBLAS_NUM_THREADS=1`` where others are at work; it takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from labelled_questions import Question, questions
from numpy.typing import NDArray

from fhe_llm.cli.bench.record import keep, record
from fhe_llm.models.sentence_encoder import SentenceEncoder
from fhe_llm.params import PRESETS
from fhe_llm.privacy.embedding_noise import GaussianEmbedding
from fhe_llm.privacy.embedding_table import EmbeddingTable
from fhe_llm.privacy.text_tokens import tokens_of
from fhe_llm.privacy.token_mechanism import TokenMechanism

GROUP: Final = 20
MECHANISMS: Final[dict[str, dict[str, Any]]] = {
    "plain": {},
    "plain, one near": {"near": 1},
    "metric": {"metric": True},
    "group": {"neighbourhood": GROUP},
}
EPSILONS: Final = (1, 2, 4, 6, 8, 10, 12, 16, 20, 30)
VECTOR_EPSILONS: Final = (1, 10, 30, 100, 300, 1000, 3000)
DELTA: Final = 1e-6
Z: Final = 1.96

Floats = NDArray[np.float64]


class Corpus:
    """The questions, what is known of them in clear, and how they are judged."""

    def __init__(self, encoder: SentenceEncoder, asked: Sequence[Question]) -> None:
        self.encoder = encoder
        self.texts = [q.text for q in asked]
        self.tested = [i for i, q in enumerate(asked) if not q.trains]
        self.tokens = [tokens_of(text) for text in self.texts]
        counts = Counter(token for tokens in self.tokens for token in tokens)
        self.vocabulary = sorted(counts)
        self.prior = np.array([counts[token] for token in self.vocabulary]) / counts.total()
        self.number = {token: i for i, token in enumerate(self.vocabulary)}
        self.vectors = encoder.encode(self.texts).astype(np.float64)
        self.topics = sorted({q.topic for q in asked})
        self.labels = np.array([self.topics.index(q.topic) for q in asked])
        trains = np.array([q.trains for q in asked])
        means = [self.vectors[trains & (self.labels == n)].mean(0) for n in range(len(self.topics))]
        self.centroids = np.stack([mean / np.linalg.norm(mean) for mean in means])

    def right(self, vectors: Floats) -> Floats:
        """Whether each tested question's topic is found from its vector [n, d]."""
        return ((vectors @ self.centroids.T).argmax(1) == self.labels[self.tested]).astype(float)


def interval(values: Floats, *, share: bool) -> dict[str, float]:
    """Mean and 95 % interval of one number a question; of shares by Wilson's formula (1927), which holds at 0 and 1."""
    mean, n = float(values.mean()), values.size
    centre, half = mean, Z * float(values.std(ddof=1)) / math.sqrt(n)
    if share:
        scale = 1 + Z**2 / n
        centre = (mean + Z**2 / (2 * n)) / scale
        half = Z / scale * math.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2))
    return {"mean": round(mean, 4), "low": round(centre - half, 4), "high": round(centre + half, 4)}


def perturbed(corpus: Corpus, mechanism: TokenMechanism, draws: int) -> dict[str, Any]:
    """One mechanism at one ε."""
    shares = np.stack([mechanism.shares(token) for token in corpus.vocabulary])  # [words asked, V]
    similar, right, identified = [], [], []
    for _ in range(draws):
        drawn = mechanism.protect([corpus.texts[i] for i in corpus.tested]).value
        vectors = corpus.encoder.encode(drawn).astype(np.float64)
        similar.append((vectors * corpus.vectors[corpus.tested]).sum(1))
        right.append(corpus.right(vectors))
        guesses = [guess(corpus, shares, indices(mechanism.table, text)) for text in drawn]
        identified.append(
            [1 / len(found) if i in found else 0.0 for i, found in zip(corpus.tested, guesses, strict=True)]
        )
    each = np.array([mechanism.table.index(token) for token in corpus.vocabulary], dtype=object)
    same = np.array([0.0 if i is None else row[i] for i, row in zip(each, shares, strict=True)])
    return {
        "similarity": interval(np.mean(similar, 0), share=False),
        "accuracy": interval(np.mean(right, 0), share=True),
        "unchanged": round(float(corpus.prior @ same), 4),
        "tokens_recovered": round(float((corpus.prior[:, None] * shares).max(0).sum()), 4),
        "questions_identified": interval(np.mean(identified, 0), share=True),
    }


def indices(table: EmbeddingTable, text: str) -> list[int]:
    """The words of a perturbed text; all are the table's."""
    return [i for i in map(table.index, tokens_of(text)) if i is not None]


def guess(corpus: Corpus, shares: Floats, drawn: Sequence[int]) -> set[int]:
    """The questions that most likely came out as ``drawn``, all alike beforehand."""
    with np.errstate(divide="ignore"):
        logs = np.log(shares[:, drawn])  # [words asked, tokens]
    likely = {
        i: float(logs[[corpus.number[t] for t in tokens], range(len(tokens))].sum())
        for i, tokens in enumerate(corpus.tokens)
        if len(tokens) == len(drawn)
    }
    most = max(likely.values())
    return {i for i, value in likely.items() if value >= most - 1e-9}


def noised(corpus: Corpus, epsilon: float) -> dict[str, Any]:
    """Vectors under noise: their topic, and whether the clear vector of a question still finds its own."""
    mechanism = GaussianEmbedding(epsilon=epsilon, delta=DELTA)
    vectors = mechanism.protect(corpus.vectors[corpus.tested]).value
    found = (corpus.vectors[corpus.tested] @ vectors.T).argmax(1) == np.arange(len(corpus.tested))
    return {
        "mechanism": "gaussian vectors",
        "epsilon": epsilon,
        "noise_multiplier": round(mechanism.noise_multiplier, 6),
        "accuracy": interval(corpus.right(vectors), share=True),
        "found_again": interval(found.astype(float), share=True),
    }


def measure(draws: int) -> dict[str, Any]:
    """All mechanisms at all ε."""
    corpus, table = Corpus(SentenceEncoder.load(), questions()), EmbeddingTable.load()
    text = []
    for name, options in MECHANISMS.items():
        for epsilon in EPSILONS:
            mechanism = TokenMechanism(float(epsilon), table=table, **options)
            unit = mechanism.quote([]).unit
            found = perturbed(corpus, mechanism, draws)
            text.append({"mechanism": name, "epsilon": epsilon, "unit": unit, **found})
            sys.stderr.write(f"{name}, ε = {epsilon}\n")
    tokens = [len(corpus.tokens[i]) for i in corpus.tested]
    return {
        "questions": len(corpus.texts),
        "tested": len(corpus.tested),
        "draws": draws,
        "tokens_a_question": round(float(np.mean(tokens)), 2),
        "words_asked": len(corpus.vocabulary),
        "table": {"words": len(table), "group": GROUP},
        "delta": DELTA,
        "without": {
            "accuracy": interval(corpus.right(corpus.vectors[corpus.tested]), share=True),
            "tokens_recovered": round(float(corpus.prior.max()), 4),
            "questions_identified": by_length(corpus),
        },
        "text": text,
        "vectors": [noised(corpus, epsilon) for epsilon in VECTOR_EPSILONS],
    }


def by_length(corpus: Corpus) -> float:
    """How often a question is guessed from its number of tokens alone, which no mechanism hides."""
    alike = Counter(map(len, corpus.tokens))
    return round(float(np.mean([1 / alike[len(corpus.tokens[i])] for i in corpus.tested])), 4)


def main() -> None:
    """Measure, print, and keep where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--draws", type=int, default=2, help="of every question")
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()
    result = record("text-privacy", PRESETS["default"], measure(arguments.draws))
    del result["preset"]  # nothing here is encrypted
    print(json.dumps(result, indent=1, ensure_ascii=False))
    if arguments.output:
        keep(result, arguments.output)


if __name__ == "__main__":
    main()
