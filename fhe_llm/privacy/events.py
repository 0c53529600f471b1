"""What happened to a value that left. Events are facts; how they are counted is the accountant's business."""

from __future__ import annotations

import abc
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Final, Literal, Self

from fhe_llm.errors import PrivacyParameterError
from fhe_llm.privacy.charge import Kind, check_epsilon
from fhe_llm.receipt import PrivacyReceipt

TextUnit = Literal["epsilon", "group-epsilon", "metric-epsilon"]
CKKS_ASSUMPTION: Final = (
    "ring-LWE at 128 bits; the proxy follows the protocol and sees lengths, timing and sizes, "
    "never a decrypted value"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event(abc.ABC):
    """Base of all events: plain numbers and names only, never text, a secret or a value that was protected."""

    kind: ClassVar[Kind]
    name: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; :func:`event_from_dict` reads it."""
        return {"event": self.name, **asdict(self)}

    @classmethod
    def _from(cls, data: Mapping[str, Any]) -> Self:
        return cls(**{field.name: data[field.name] for field in fields(cls) if field.name in data})

    @abc.abstractmethod
    def describe(self) -> str:
        """One line for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensReplaced(Event):
    """Every one of ``tokens`` was replaced by a draw of its own, each with ``epsilon`` in ``unit``.

    The claim is between two texts of ``tokens`` tokens, which number is not hidden: ``epsilon`` where they differ in
    one token, ``tokens`` times ``epsilon`` where they differ in all.
    """

    kind: ClassVar[Kind] = "text"
    name: ClassVar[str] = "tokens-replaced"
    tokens: int
    epsilon: float
    unit: TextUnit
    mechanism: str

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        _check_count(self.tokens, "tokens")

    def describe(self) -> str:
        """See :meth:`Event.describe`."""
        return f"{self.tokens} tokens replaced at {self.epsilon:g} each ({self.mechanism})"


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorsNoised(Event):
    """``vectors`` vectors were clipped to length ``clip`` and given Gaussian noise.

    ``noise_multiplier`` is the noise's standard deviation over the sensitivity 2·clip (any vector for any other).
    """

    kind: ClassVar[Kind] = "embedding"
    name: ClassVar[str] = "vectors-noised"
    vectors: int
    noise_multiplier: float
    clip: float
    dimensions: int

    def __post_init__(self) -> None:
        _check_count(self.vectors, "vectors")
        if not 0 < self.noise_multiplier < math.inf:
            raise PrivacyParameterError(
                f"cannot use noise_multiplier={self.noise_multiplier!r}: it must be positive and finite. Change it."
            )

    def describe(self) -> str:
        """See :meth:`Event.describe`."""
        noise = f"{self.noise_multiplier:g} times their sensitivity"
        return f"{self.vectors} vectors of {self.dimensions} noised with {noise}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ValuesDisclosed(Event):
    """``values`` decrypted values were published ``queries`` times with flooding noise of ``noise`` a value,
    calibrated for ``statistical_bits`` over ``query_limit`` such queries."""

    kind: ClassVar[Kind] = "disclosure"
    name: ClassVar[str] = "values-disclosed"
    queries: int
    values: int
    noise: float
    statistical_bits: float
    query_limit: int

    def __post_init__(self) -> None:
        _check_count(self.queries, "queries")

    def describe(self) -> str:
        """See :meth:`Event.describe`."""
        return (
            f"{self.values} decrypted values published under flooding noise ({self.statistical_bits:g} bits)"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentifiersReplaced(Event):
    """Identifiers that were found were replaced by placeholders; the rest of the text left as it was. This earns no
    epsilon: what is not recognised leaves in clear."""

    kind: ClassVar[Kind] = "text"
    name: ClassVar[str] = "identifiers-replaced"
    replaced: int
    entity_types: tuple[str, ...] = ()

    def describe(self) -> str:
        """See :meth:`Event.describe`."""
        found = ", ".join(self.entity_types) or "none found"
        return f"{self.replaced} identifiers replaced ({found}); the rest left in clear: no guarantee"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextInClear(Event):
    """Text left as it was because its owner said ``guarantee="none"``."""

    kind: ClassVar[Kind] = "text"
    name: ClassVar[str] = "text-in-clear"
    messages: int
    characters: int

    def describe(self) -> str:
        """See :meth:`Event.describe`."""
        return f"{self.characters} characters left in clear: no guarantee"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncryptedCall(Event):
    """An answer of the encrypted model: costs no epsilon, under the ``assumption`` named."""

    kind: ClassVar[Kind] = "text"
    name: ClassVar[str] = "encrypted-call"
    model: str
    rounds: int
    bytes_up: int
    bytes_down: int
    assumption: str = CKKS_ASSUMPTION

    def describe(self) -> str:
        """See :meth:`Event.describe`."""
        return f"{self.rounds} encrypted rounds of {self.model}; costs nothing, assuming {self.assumption}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkDone(Event):
    """What the proxy did for a tenant."""

    kind: ClassVar[Kind] = "work"
    name: ClassVar[str] = "work-done"
    rounds: int
    ciphertexts: int
    bytes: int
    milliseconds: int

    def describe(self) -> str:
        """See :meth:`Event.describe`."""
        return f"{self.rounds} rounds, {self.ciphertexts} ciphertexts, {self.bytes} bytes, {self.milliseconds} ms"


def encrypted_call(receipt: PrivacyReceipt) -> EncryptedCall:
    """The event of an answer with this receipt."""
    return EncryptedCall(
        model=receipt.model, rounds=receipt.rounds, bytes_up=receipt.bytes_up, bytes_down=receipt.bytes_down
    )


EVENTS: Final[Mapping[str, type[Event]]] = {
    kind.name: kind
    for kind in (
        TokensReplaced,
        VectorsNoised,
        ValuesDisclosed,
        IdentifiersReplaced,
        TextInClear,
        EncryptedCall,
        WorkDone,
    )
}


def event_from_dict(data: Mapping[str, Any]) -> Event:
    """The event that :meth:`Event.to_dict` made plain; raises :class:`PrivacyParameterError` for anything else."""
    try:
        made = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        return EVENTS[data["event"]]._from(made)
    except (KeyError, TypeError):
        raise PrivacyParameterError(
            "cannot read an event: its name or a field is unknown. Was it written by a newer version?"
        ) from None


def _check_count(count: int, what: str) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise PrivacyParameterError(f"cannot use {what}={count!r}: it must be a count. Change it.")
