"""The table that tokens are replaced from: words, and a vector for every word and for strings that are not in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from tokenizers import Tokenizer

from fhe_llm.errors import ModelError, PrivacyParameterError
from fhe_llm.models.sentence_encoder import minilm_folder
from fhe_llm.privacy.text_tokens import tokens_of
from fhe_llm.progress import Progress, silent

Grid = NDArray[np.float32]
"""Whole numbers, kept as float32 because that is what BLAS multiplies fast."""
Vectors = Callable[[str], "NDArray[np.floating[Any]] | None"]

RADIUS: Final = 4000
"""Length of every vector before its coordinates are rounded to whole numbers. With at most 16,384 of them no vector is
longer than 4000 + 64, so every partial sum of an inner product is a whole number below 2^24, which float32 holds
exactly: distances do not depend on the order of summation, the number of threads or what else is in a batch."""
STEPS: Final = 256
"""Steps of a distance of 1: :meth:`EmbeddingTable.distance` is rounded up to whole steps."""
MAX_WORDS: Final = 1 << 20
MAX_DIMENSIONS: Final = 1 << 14
PIECE_CHARS: Final = 100
"""WordPiece knows no word longer than this; a longer one is placed by its beginning."""


class EmbeddingTable:
    """``words`` and their vectors on a grid: unit vectors times :data:`RADIUS`, rounded to whole numbers.

    Shared by threads; nothing in it changes. The words of a table are public: never build one from private text.
    """

    def __init__(
        self, words: Sequence[str], vectors: NDArray[Any], *, elsewhere: Vectors | None = None
    ) -> None:
        """``vectors`` [V, d], finite, none zero. ``elsewhere`` gives a vector [d] to strings outside the table, as a
        function of the string alone; without it they are unknown.

        Raises :class:`PrivacyParameterError` for words that are not one token each or not unique, and for vectors of
        another shape.
        """
        self._words = tuple(words)
        self._index = {word: i for i, word in enumerate(self._words)}
        _check_words(self._words, self._index)
        try:
            array = np.asarray(vectors, dtype=np.float64)
        except (TypeError, ValueError):
            array = np.zeros(0)
        if array.ndim != 2 or len(array) != len(self._words) or not 0 < array.shape[1] <= MAX_DIMENSIONS:
            raise PrivacyParameterError(
                f"cannot use these vectors: one is needed for each of {len(self._words)} words, of 1 to "
                f"{MAX_DIMENSIONS} numbers. Change their shape."
            )
        rows = [on_grid(row) for row in array]
        if any(row is None for row in rows):
            raise PrivacyParameterError(
                "cannot use these vectors: one is zero or not finite. Leave its word out."
            )
        self._grid: Grid = np.array(rows, dtype=np.float32)
        self._squares = _squares(self._grid)
        self._elsewhere = elsewhere

    @classmethod
    def load(cls, cache: Path | None = None, progress: Progress = silent) -> Self:
        """The whole words and marks of all-MiniLM-L6-v2's vocabulary (23,000) with its input embeddings [384]; any
        other string gets the mean of its word pieces' embeddings.

        From the cache, or downloaded once (84 MB). Raises :class:`DownloadError`, :class:`ModelError`.
        """
        folder = minilm_folder(cache, progress)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()  # the mean of a rare word would be that of the padding
        try:
            with safe_open(folder / "model.safetensors", framework="np") as file:
                weights = file.get_tensor("embeddings.word_embeddings.weight")
        except (OSError, KeyError) as error:
            raise ModelError(f"cannot read the table of words: {error}. Remove {folder}.") from None
        vocabulary: dict[str, int] = tokenizer.get_vocab()
        words = [word for word in sorted(vocabulary, key=vocabulary.__getitem__) if tokens_of(word) == [word]]
        unknown = vocabulary["[UNK]"]

        def elsewhere(token: str) -> NDArray[np.float32] | None:
            ids = tokenizer.encode(token[:PIECE_CHARS], add_special_tokens=False).ids
            known = [i for i in ids if i != unknown]
            mean: NDArray[np.float32] | None = weights[known].mean(0) if known else None
            return mean

        return cls(words, weights[[vocabulary[word] for word in words]], elsewhere=elsewhere)

    @property
    def words(self) -> tuple[str, ...]:
        """All words, in the order of their indices."""
        return self._words

    @property
    def dimensions(self) -> int:
        """Coordinates of a vector."""
        return int(self._grid.shape[1])

    def __len__(self) -> int:
        return len(self._words)

    def __repr__(self) -> str:
        return f"EmbeddingTable({len(self)} words, {self.dimensions} dimensions)"

    def index(self, token: str) -> int | None:
        """Where ``token`` stands in the table; None where it does not."""
        return self._index.get(token)

    def vector(self, token: str) -> Grid | None:
        """The vector [d] of ``token`` on the grid, a function of the token alone; None where it has none."""
        index = self._index.get(token)
        if index is not None:
            row: Grid = self._grid[index]
            return row
        found = None if self._elsewhere is None else self._elsewhere(token)
        if found is None:
            return None
        found = np.asarray(found, dtype=np.float64)
        if found.shape != (self.dimensions,):
            raise PrivacyParameterError(
                f"cannot place a string outside the table: its vector must have {self.dimensions} numbers. "
                "Change `elsewhere`."
            )
        return on_grid(found)

    def rows(self, indices: NDArray[np.intp]) -> Grid:
        """Vectors [n, d] of words."""
        picked: Grid = self._grid[indices]
        return picked

    def squared_distances(self, vectors: Grid, among: NDArray[np.intp] | None = None) -> NDArray[np.int32]:
        """Exact squared distances on the grid of ``vectors`` [n, d] (or [d]) to all words, or to those ``among``:
        [n, V] (or [V]), from 0 to 2^26. 2·n·V·d operations."""
        grid, squares = (
            (self._grid, self._squares) if among is None else (self._grid[among], self._squares[among])
        )
        products = (vectors @ grid.T).astype(np.int32)
        own = _squares(np.atleast_2d(vectors))
        found: NDArray[np.int32] = (
            np.atleast_1d(own)[:, None] + squares[None, :] - 2 * np.atleast_2d(products)
        )
        return found[0] if vectors.ndim == 1 else found

    def distance(self, a: str, b: str) -> Fraction | None:
        """The distance that a metric claim is about: Euclidean, of the two vectors on the grid, in units of
        :data:`RADIUS` and rounded up to a multiple of 1/:data:`STEPS`. None where a token has no vector.

        It is a metric: rounding up keeps the triangle inequality, ⌈s + t⌉ ≤ ⌈s⌉ + ⌈t⌉.
        """
        one, other = self.vector(a), self.vector(b)
        if one is None or other is None:
            return None
        square = int(np.square(one.astype(np.int64) - other.astype(np.int64)).sum())
        if not square:
            return Fraction(0)
        # the smallest whole s with s·RADIUS ≥ STEPS·sqrt(square)
        return Fraction(1 + math.isqrt((square * STEPS**2 - 1) // RADIUS**2), STEPS)


def on_grid(vector: NDArray[np.floating[Any]]) -> Grid | None:
    """``vector`` [d] at length :data:`RADIUS`, rounded to whole numbers; None for zero or not finite."""
    largest = float(np.abs(vector).max(initial=0))
    if not 0 < largest < math.inf:
        return None
    scaled = np.asarray(vector, dtype=np.float64) / largest
    rounded: Grid = np.rint(scaled * (RADIUS / np.linalg.norm(scaled))).astype(np.float32)
    return rounded


def _squares(grid: Grid) -> NDArray[np.int32]:
    squares: NDArray[np.int32] = np.einsum("nd,nd->n", grid, grid, dtype=np.float64).astype(np.int32)
    return squares


def _check_words(words: tuple[str, ...], index: dict[str, int]) -> None:
    if not 2 <= len(words) <= MAX_WORDS or len(index) != len(words):
        raise PrivacyParameterError(
            f"cannot use this table: it must have 2 to {MAX_WORDS} words, each once. Change it."
        )
    wrong = sum(not isinstance(word, str) or tokens_of(word) != [word] for word in words)
    if wrong:
        raise PrivacyParameterError(
            f"cannot use this table: {wrong} of its words are not one lower-case word, number or mark each. "
            "Leave them out."
        )
