"""Every vector in ``frames/`` has the outcome written beside it; README.md explains the fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fhe_llm.errors import FrameError
from fhe_llm.wire.frame import ALL_KINDS, REASONS, Kind, decode, encode

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "wire" / "golden"
VECTORS = [
    pytest.param(vector, id=f"{path.stem}: {vector['idea']}")
    for path in sorted((HERE / "frames").glob("*.json"))
    for vector in json.loads(path.read_text())
]


def apply(edit: dict[str, Any], data: bytearray) -> None:
    """One edit of a vector, in place."""
    match edit:
        case {"keep": size}:
            del data[size:]
        case {"append": text}:
            data += bytes.fromhex(text)
        case {"copy": at, "bytes": size}:
            data += data[at : at + size]
        case {"cut": at, "bytes": size}:
            del data[at : at + size]
        case {"insert": at, "hex": text}:
            data[at:at] = bytes.fromhex(text)
        case {"at": at, "fill": size, "byte": value}:
            data[at : at + size] = bytes([value]) * size
        case {"at": at, "hex": text}:
            data[at : at + len(text) // 2] = bytes.fromhex(text)
        case _:
            raise ValueError(f"cannot apply edit {edit}: it is not in README.md. Correct the vector.")


def build(vector: dict[str, Any]) -> bytes:
    """The bytes of a vector."""
    data = bytearray((GOLDEN / f"{vector['base']}.bin").read_bytes())
    for edit in vector["edits"]:
        apply(edit, data)
    if vector.get("claim_true_length", True):
        data[8:16] = len(data).to_bytes(8, "little")
    return bytes(data)


@pytest.mark.parametrize("vector", VECTORS)
def test_outcome(vector: dict[str, Any]) -> None:
    data = build(vector)
    expect = {Kind(kind) for kind in vector["expect"]} if "expect" in vector else ALL_KINDS
    if vector["outcome"] == "accepted":
        assert encode(decode(data, expect=expect)) == data
        return
    with pytest.raises(FrameError) as refused:
        decode(data, expect=expect)
    assert refused.value.reason == vector["outcome"]


def test_every_reason_has_a_vector() -> None:
    assert {param.values[0]["outcome"] for param in VECTORS} == {"accepted", *REASONS}  # type: ignore[index]
