"""A receipt is immutable, plain data, complete about leaks, and safe to put into a page."""

from __future__ import annotations

import dataclasses
import json

import pytest

from fhe_llm.receipt import PrivacyReceipt, html_table, human_bytes

RECEIPT = PrivacyReceipt(
    guarantee="ciphertext",
    preset="default",
    ring_degree=4096,
    log_qp=91,
    security_bits=128,
    security_row="quantum",
    key_id="ab" * 32,
    model="smollm2-135m",
    model_digest="cd" * 32,
    model_trust="pinned",
    rounds=240,
    bytes_up=7_200_000,
    bytes_down=3_600_000,
    seconds=4.2,
    prompt_tokens_seen=12,
    generated_tokens_seen=1,
    layers_seen=120,
    precision_log2=-14.6,
)


def test_a_receipt_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RECEIPT.rounds = 1  # type: ignore[misc]


def test_json_has_every_field_and_what_leaked() -> None:
    data = json.loads(RECEIPT.to_json())
    fields = {field.name for field in dataclasses.fields(PrivacyReceipt)}
    assert set(data) == fields | {"leaked"}
    assert [leak["what"] for leak in data["leaked"]] == [
        "rounds",
        "prompt length",
        "timing",
        "model and layer names",
    ]


def test_text_names_guarantee_security_model_and_leaks() -> None:
    text = str(RECEIPT)
    for part in (
        "ciphertext",
        "128 bits (quantum row)",
        "N=4096, log QP=91",
        "abababababababab",
        "digest pinned in this library",
        "7.2 MB up, 3.6 MB down",
        "2^-14.6",
        "240, hence 1 generated token",
        "12 tokens",
        "120 layer names",
    ):
        assert part in text, part
    assert "ab" * 32 not in text


def test_padding_and_first_use_are_said() -> None:
    text = str(dataclasses.replace(RECEIPT, pad_to=64, model_trust="first_use", precision_log2=None))
    assert "12 tokens (padded up to a multiple of 64)" in text
    assert "trusted on first use" in text
    assert "not measured" in text


def test_a_cached_prefix_is_a_leak() -> None:
    receipt = dataclasses.replace(RECEIPT, prompt_tokens_cached=1)
    assert "1 prompt token not sent: this prompt begins like an earlier one" in str(receipt)
    assert [leak.what for leak in receipt.leaked].count("prefix cache") == 1


@pytest.mark.parametrize(
    ("fixed", "shape"), [(False, "more where the text repeats itself"), (True, "as many in each")]
)
def test_drafted_tokens_are_a_leak_and_blur_the_count(fixed: bool, shape: str) -> None:
    receipt = dataclasses.replace(
        RECEIPT, generated_tokens_seen=9, decode_passes_seen=5, drafted_tokens_seen=20, drafts_fixed=fixed
    )
    text = str(receipt)
    assert "240, hence 6 to 26 generated tokens" in text
    assert f"20 in 5 passes, {shape}" in text


def test_html_escapes_what_the_proxy_named() -> None:
    page = dataclasses.replace(RECEIPT, model="<script>alert(1)</script>")._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert html_table("<b>", [("&", "<")]).count("&lt;") == 2


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_999, "1.0 MB"),
        (4_096_000, "4.1 MB"),
        (2 * 10**9, "2.00 GB"),
    ],
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert human_bytes(count) == text
