"""The measurement of trade-offs measures what it says, and the page shows what was measured."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import text_privacy_tables as tables
from labelled_questions import TOPICS, questions
from text_privacy import EPSILONS, MECHANISMS, VECTOR_EPSILONS, Corpus, guess, indices, interval, perturbed

from fhe_llm.privacy.embedding_table import EmbeddingTable
from fhe_llm.privacy.text_tokens import tokens_of
from fhe_llm.privacy.token_mechanism import TokenMechanism


class ByWords:
    """An encoder whose vectors are what words a text has."""

    def __init__(self, words: list[str]) -> None:
        self.words = words

    def encode(self, texts: list[str]) -> np.ndarray:
        rows = np.array([[tokens_of(text).count(word) for word in self.words] for text in texts], float)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def table() -> EmbeddingTable:
    words = sorted({token for q in questions() for token in tokens_of(q.text)})
    return EmbeddingTable(words, np.random.default_rng(0).normal(size=(len(words), 48)))


@pytest.fixture(scope="module")
def corpus(table: EmbeddingTable) -> Corpus:
    return Corpus(ByWords(list(table.words)), questions())  # type: ignore[arg-type]


def test_the_questions_are_many_and_evenly_split() -> None:
    asked = questions()
    assert len({q.text for q in asked}) == len(asked) == 216
    assert set(Counter((q.topic, q.trains) for q in asked).values()) == {18}
    assert len(TOPICS) == 6


def test_an_interval_holds_at_the_ends() -> None:
    assert interval(np.ones(100), share=True) == {"mean": 1.0, "low": 0.963, "high": 1.0}
    assert interval(np.zeros(100), share=True) == {"mean": 0.0, "low": 0.0, "high": 0.037}
    some = interval(np.array([0.0, 1.0] * 50), share=False)
    assert some["mean"] == 0.5
    assert some["high"] - 0.5 == pytest.approx(1.96 * 0.5025 / 10, abs=1e-3)


def test_without_noise_everything_is_found_and_with_much_nothing(
    table: EmbeddingTable, corpus: Corpus
) -> None:
    clear = perturbed(corpus, TokenMechanism(60.0, table=table, near=1), 1)
    assert clear["similarity"]["mean"] == 1.0
    assert clear["accuracy"] == interval(corpus.right(corpus.vectors[corpus.tested]), share=True)
    assert clear["unchanged"] == clear["tokens_recovered"] == clear["questions_identified"]["mean"] == 1.0
    noise = perturbed(corpus, TokenMechanism(1e-6, table=table), 1)
    assert noise["tokens_recovered"] == pytest.approx(corpus.prior.max(), abs=1e-4)
    assert noise["questions_identified"]["mean"] < 0.15
    assert noise["unchanged"] == pytest.approx(1 / len(table), abs=1e-4)


def test_the_guess_is_the_likeliest_of_those_as_long(table: EmbeddingTable, corpus: Corpus) -> None:
    mechanism = TokenMechanism(6.0, table=table)
    shares = np.stack([mechanism.shares(token) for token in corpus.vocabulary])
    drawn = indices(table, corpus.texts[7])
    found = guess(corpus, shares, drawn)
    assert 7 in found
    by_hand = {
        i: np.prod([mechanism.shares(token)[w] for token, w in zip(tokens, drawn, strict=True)])
        for i, tokens in enumerate(corpus.tokens)
        if len(tokens) == len(drawn)
    }
    assert found == {i for i, value in by_hand.items() if value == pytest.approx(max(by_hand.values()))}


def test_the_record_has_every_mechanism_at_every_epsilon() -> None:
    record = tables.load()["text_privacy"]
    assert [(p["mechanism"], p["epsilon"]) for p in record["text"]] == [
        (name, epsilon) for name in MECHANISMS for epsilon in EPSILONS
    ]
    assert [p["epsilon"] for p in record["vectors"]] == list(VECTOR_EPSILONS)
    assert not record["commit"].endswith("-dirty")


def test_the_pages_show_the_committed_records() -> None:
    pages = [path.read_text("utf-8") for path in tables.PAGES]
    assert all(sum(f"<!-- table: {name} -->" in page for page in pages) == 1 for name in tables.TABLES)
    assert pages == [tables.filled(page, tables.load()) for page in pages], (
        "run: python benchmarks/text_privacy_tables.py"
    )
