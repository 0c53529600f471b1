"""What a user may be told about one answer: which guarantee held, what leaked all the same, and what it cost.

A receipt holds names, digests and counts only. It never holds a secret, a prompt, an answer or a token id.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Guarantee = Literal["ciphertext"]
ModelTrust = Literal["pinned", "first_use", "remembered"]

_TRUST_NOTES: dict[ModelTrust, str] = {
    "pinned": "digest pinned in this library",
    "first_use": "trusted on first use: compare the digest with the model's publisher",
    "remembered": "same digest as at first use",
}


@dataclass(frozen=True, slots=True)
class Leak:
    """One thing the proxy learned: ``what`` in a few words, ``value`` as the proxy saw it."""

    what: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyReceipt:
    """The receipt of one answer.

    ``security_row`` is the row of the 128-bit table that the preset meets. ``prompt_tokens_seen`` and
    ``generated_tokens_seen`` are counts the proxy could infer from the rounds; with ``pad_to`` the first is
    the padded one, and ``prompt_tokens_cached``, which the prefix cache had, are not in it. With speculation the
    second is one of a range: ``decode_passes_seen`` passes carried ``drafted_tokens_seen`` guesses, the same
    number each where ``drafts_fixed`` (fewer where the context ends), and the proxy cannot tell how many were right.

    ``precision_log2`` is log2 of the largest error of a decrypted layer output relative to that output's largest
    entry, as measured during this answer (None: not measured) and rounded up, towards the larger error, to a tenth of
    a bit: a receipt that is published shows little of the noise, which depends on the key.
    """

    guarantee: Guarantee
    preset: str
    ring_degree: int
    log_qp: int
    security_bits: int
    security_row: str
    key_id: str
    model: str
    model_digest: str
    model_trust: ModelTrust
    rounds: int
    bytes_up: int
    bytes_down: int
    seconds: float
    prompt_tokens_seen: int
    generated_tokens_seen: int
    layers_seen: int
    precision_log2: float | None = None
    pad_to: int | None = None
    prompt_tokens_cached: int = 0
    decode_passes_seen: int = 0
    drafted_tokens_seen: int = 0
    drafts_fixed: bool = False

    @property
    def leaked(self) -> tuple[Leak, ...]:
        """Everything the proxy learned besides the sizes of ciphertexts."""
        padding = f" (padded up to a multiple of {self.pad_to})" if self.pad_to else ""
        return (
            Leak("rounds", f"{self.rounds}, hence {self._generated()}"),
            Leak("prompt length", _count(self.prompt_tokens_seen, "token") + padding),
            *self._cache_leak(),
            *self._draft_leak(),
            Leak("timing", f"when each round came, {self.seconds:.1f} s in all"),
            Leak("model and layer names", f"{self.model}, {_count(self.layers_seen, 'layer name')}"),
        )

    def _cache_leak(self) -> Iterator[Leak]:
        if self.prompt_tokens_cached:
            cached = _count(self.prompt_tokens_cached, "prompt token")
            yield Leak("prefix cache", f"{cached} not sent: this prompt begins like an earlier one")

    def _generated(self) -> str:
        if not self.drafted_tokens_seen:
            return _count(self.generated_tokens_seen, "generated token")
        least = 1 + self.decode_passes_seen
        return f"{least} to {least + self.drafted_tokens_seen} generated tokens"

    def _draft_leak(self) -> Iterator[Leak]:
        if self.drafted_tokens_seen:
            drafted = f"{self.drafted_tokens_seen} in {_count(self.decode_passes_seen, 'pass', 'passes')}"
            shape = "as many in each" if self.drafts_fixed else "more where the text repeats itself"
            yield Leak("drafted tokens", f"{drafted}, {shape}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data with stable names; ``json.dumps`` takes it as it is."""
        return asdict(self) | {"leaked": [asdict(leak) for leak in self.leaked]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PrivacyReceipt:
        """The receipt that :meth:`to_dict` made plain; names it does not know are left out."""
        return cls(**{field.name: data[field.name] for field in fields(cls) if field.name in data})

    def to_json(self) -> str:
        """:meth:`to_dict` as JSON on one line."""
        return json.dumps(self.to_dict(), sort_keys=True)

    def rows(self) -> tuple[tuple[str, str], ...]:
        """Label and value pairs, in the order a person reads them."""
        return (
            ("guarantee", f"{self.guarantee}: the proxy computed on ciphertexts and has no key"),
            ("security", _security(self)),
            ("key", self.key_id[:16]),
            ("model", f"{self.model}, {self.model_digest[:16]}, {_TRUST_NOTES[self.model_trust]}"),
            ("rounds", str(self.rounds)),
            ("bytes", f"{human_bytes(self.bytes_up)} up, {human_bytes(self.bytes_down)} down"),
            ("precision", _precision(self.precision_log2)),
            *((f"leaked: {leak.what}", leak.value) for leak in self.leaked),
        )

    def __str__(self) -> str:
        width = max(len(label) for label, _ in self.rows())
        lines = [f"  {label:<{width}}  {value}" for label, value in self.rows()]
        return "\n".join(["Privacy receipt", *lines])

    def _repr_html_(self) -> str:
        return html_table("Privacy receipt", self.rows())


def html_table(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """A captioned table for notebooks; labels and values are escaped."""
    body = "".join(
        f'<tr><th style="text-align:left">{html.escape(label)}</th>'
        f'<td style="text-align:left;white-space:pre-wrap">{html.escape(value)}</td></tr>'
        for label, value in rows
    )
    return f"<table><caption>{html.escape(title)}</caption><tbody>{body}</tbody></table>"


def human_bytes(count: int) -> str:
    """``count`` bytes for a person, in powers of 1000."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < (1000 if unit == "B" else 999.95):
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def _security(receipt: PrivacyReceipt) -> str:
    return (
        f"{receipt.security_bits} bits ({receipt.security_row} row), preset {receipt.preset}: "
        f"N={receipt.ring_degree}, log QP={receipt.log_qp}"
    )


def _precision(log2: float | None) -> str:
    return (
        "not measured" if log2 is None else f"2^{log2:.1f} of a layer's largest output, worst of the samples"
    )


def _count(number: int, thing: str, things: str | None = None) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {things or thing + 's'}"
