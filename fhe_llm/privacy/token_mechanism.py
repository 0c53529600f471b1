"""Text perturbed token by token: every token is replaced by a draw of its own from a table of words.

What leaves tells the number of texts and of tokens in each, exactly, and about every token what the claim allows.
Claims add up: 100 tokens at ε = 1 are ε = 100 for a text that may differ in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fhe_llm.errors import PrivacyParameterError, UnknownTextError
from fhe_llm.privacy.embedding_table import EmbeddingTable
from fhe_llm.privacy.events import TokensReplaced
from fhe_llm.privacy.exact_weights import exact_epsilon
from fhe_llm.privacy.mechanism import Protected
from fhe_llm.privacy.text_tokens import joined, tokens_of
from fhe_llm.privacy.token_choice import GroupChoice, MetricChoice, TokenChoice, WholeTableChoice


class TokenMechanism:
    """The exponential mechanism (McSherry and Talwar, 2007) over a table of words; see :class:`TextMechanism`.

    - As it is: plain ε between any two tokens (:class:`WholeTableChoice`).
    - ``metric=True``: ε times their distance (:class:`MetricChoice`).
    - ``neighbourhood=k``: ε between tokens of one group of about k; the group is not hidden (:class:`GroupChoice`).

    The probabilities behind a claim are exact fractions and draws are exact (``exact_weights.py``); what an answer's
    timing tells about which tokens were met before is outside the claim. Thread-safe.
    """

    def __init__(
        self,
        epsilon: float,
        *,
        table: EmbeddingTable | None = None,
        metric: bool = False,
        neighbourhood: int | None = None,
        near: int | None = None,
        unknown: Literal["refuse", "uniform"] = "refuse",
    ) -> None:
        """``epsilon`` for each token, in (0, 1000]. ``table`` None: :meth:`EmbeddingTable.load`.

        ``near``: how many words get the higher weight under plain ε; fewer keep the meaning better and let the token
        itself through more often. None: as few as get three draws of four, and at least 5. ``unknown="uniform"``
        replaces a token that has no vector by any word alike (plain ε only).

        Raises :class:`PrivacyParameterError` for settings that make no sense together, and what ``load`` raises.
        """
        exact = exact_epsilon(epsilon)
        if metric + (neighbourhood is not None) > 1:
            raise PrivacyParameterError(
                "cannot make a mechanism: `metric` and `neighbourhood` exclude each other."
            )
        if (metric or neighbourhood is not None) and (near is not None or unknown != "refuse"):
            raise PrivacyParameterError(
                "cannot make a mechanism: `near` and `unknown` belong to plain ε. Leave them out."
            )
        if unknown not in ("refuse", "uniform"):
            raise PrivacyParameterError(f"cannot use unknown={unknown!r}: it is 'refuse' or 'uniform'.")
        self._epsilon = epsilon
        self._table = EmbeddingTable.load() if table is None else table
        self._choice: TokenChoice[Any]
        if metric:
            self._choice = MetricChoice(self._table, exact)
        elif neighbourhood is not None:
            self._choice = GroupChoice(self._table, exact, self._checked("neighbourhood", neighbourhood, 2))
        else:
            near = None if near is None else self._checked("near", near, 1)
            self._choice = WholeTableChoice(self._table, exact, near, uniform_unknown=unknown == "uniform")

    def _checked(self, what: str, count: int, least: int) -> int:
        if isinstance(count, bool) or not isinstance(count, int) or not least <= count <= len(self._table):
            raise PrivacyParameterError(
                f"cannot use {what}={count!r}: it must be {least} to {len(self._table)} words. Change it."
            )
        return count

    @property
    def name(self) -> str:
        """See :attr:`TextMechanism.name`."""
        return self._choice.name

    @property
    def epsilon(self) -> float:
        """For each token."""
        return self._epsilon

    @property
    def table(self) -> EmbeddingTable:
        """Where replacements come from."""
        return self._table

    def __repr__(self) -> str:
        return f"TokenMechanism(epsilon={self._epsilon:g}, {self.name}, {len(self._table)} words)"

    def distribution(self, token: str) -> list[Fraction]:
        """P[word i | ``token``], exactly, in the order of the table's words. Raises :class:`UnknownTextError`."""
        self._check([token])
        weights, total = self._choice.weights(token), self._choice.total(token)
        return [Fraction(weight, total) for weight in weights]

    def shares(self, token: str) -> NDArray[np.float64]:
        """:meth:`distribution` [V] in floating point and a thousand times faster: to measure by, never drawn from."""
        self._check([token])
        weights, total = self._choice.weights(token), self._choice.total(token)
        different = {
            id(weight): weight for weight in weights
        }  # equal ones are one object, and long to compare
        share = {key: weight / total for key, weight in different.items()}
        return np.array([share[id(weight)] for weight in weights])

    def quote(self, texts: Sequence[str]) -> TokensReplaced:
        """See :meth:`TextMechanism.quote`."""
        return self._event(self._read(texts))

    def protect(self, texts: Sequence[str]) -> Protected[tuple[str, ...]]:
        """See :meth:`TextMechanism.protect`. About 1 ms for each
        distinct token and 23,000 words."""
        read = self._read(texts)
        drawn = iter(self._choice.draws([token for tokens in read for token in tokens]))
        words = self._table.words
        return Protected(
            tuple(joined([words[next(drawn)] for _ in tokens]) for tokens in read), self._event(read)
        )

    def _read(self, texts: Sequence[str]) -> list[list[str]]:
        if isinstance(texts, str):
            raise PrivacyParameterError("cannot protect a string: a sequence of texts is needed. Use [text].")
        read = [tokens_of(text) for text in texts]
        self._check([token for tokens in read for token in tokens])
        return read

    def _check(self, tokens: Sequence[str]) -> None:
        known = {token: self._choice.knows(token) for token in set(tokens)}
        unknown = sum(not known[token] for token in tokens)
        if unknown:
            raise UnknownTextError(
                f"cannot protect {unknown} of {len(tokens)} tokens: the table has nothing like them. Leave them out, "
                "or use unknown='uniform'."
            )

    def _event(self, read: Sequence[Sequence[str]]) -> TokensReplaced:
        return TokensReplaced(
            tokens=sum(map(len, read)), epsilon=self._epsilon, unit=self._choice.unit, mechanism=self.name
        )
