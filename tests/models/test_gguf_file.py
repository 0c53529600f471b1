"""GGUF files: what is read, and what damaged or hostile ones come to."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import TinyShape, hf_weights, permute, write_tiny_gguf

from fhe_llm.errors import ModelError
from fhe_llm.models.config import linear_shapes
from fhe_llm.models.gguf_file import open_gguf
from fhe_llm.models.gguf_header import read_gguf
from fhe_llm.models.source import unpermute


def test_weights_are_fused_and_unpermuted(tiny_model_path: Path) -> None:
    model, hf = open_gguf(tiny_model_path), hf_weights(TinyShape())
    fused = dict(model.linear_weights())
    assert {name: w.shape for name, w in fused.items()} == linear_shapes(model.config)
    block = "model.layers.1"
    qkv = [hf[f"{block}.self_attn.{part}_proj.weight"] for part in "qkv"]
    np.testing.assert_array_equal(fused["layers.1.qkv"], np.concatenate(qkv))
    gate_up = [hf[f"{block}.mlp.{part}_proj.weight"] for part in ("gate", "up")]
    np.testing.assert_array_equal(fused["layers.1.gate_up"], np.concatenate(gate_up))
    np.testing.assert_array_equal(fused["layers.1.down"], hf[f"{block}.mlp.down_proj.weight"])


@given(n_heads=st.integers(1, 5), half=st.integers(1, 8), columns=st.integers(1, 3))
def test_unpermute_inverts_permute(n_heads: int, half: int, columns: int) -> None:
    rows = np.arange(n_heads * 2 * half * columns, dtype=np.float32).reshape(-1, columns)
    np.testing.assert_array_equal(unpermute(permute(rows, n_heads), n_heads), rows)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_stored_types_are_decoded_as_the_gguf_package_does(tmp_path: Path, kind: str) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", kind=kind)
    theirs = {t.name: t for t in gguf.GGUFReader(path).tensors}["blk.0.ffn_down.weight"]
    expected = gguf.quants.dequantize(theirs.data, theirs.tensor_type)
    np.testing.assert_array_equal(open_gguf(path).linear_weight("layers.0.down"), expected)


def test_untied_head_goes_to_the_client(tmp_path: Path) -> None:
    model = open_gguf(write_tiny_gguf(tmp_path / "tiny.gguf", TinyShape(tied=False)))
    assert not model.config.tied_embeddings
    assert "head" in model.client_tensors()


def test_header_agrees_with_the_gguf_package(tiny_model_path: Path) -> None:
    ours, theirs = read_gguf(tiny_model_path), gguf.GGUFReader(tiny_model_path)
    expected = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert ours.fields == expected
    for tensor in theirs.tensors:
        assert ours.tensors[tensor.name].shape == tuple(reversed(tensor.shape.tolist()))
        assert ours.tensors[tensor.name].data.tobytes() == tensor.data.tobytes()


def test_unknown_layer_is_a_typed_error(tiny_model_path: Path) -> None:
    with pytest.raises(ModelError, match=r"layers\.9\.qkv"):
        open_gguf(tiny_model_path).linear_weight("layers.9.qkv")


def _header(*parts: bytes, n_tensors: int = 0, n_fields: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_fields) + b"".join(parts)


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


HOSTILE = {
    "empty": b"",
    "wrong magic": b"GGML" + bytes(60),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "version 1": _header(version=1),
    "2^63 fields": _header(n_fields=1 << 63),
    "2^63 tensors": _header(n_tensors=1 << 63),
    "2^63 bytes in an array at the end": _header(
        _string(b"a"), struct.pack("<IIQ", 9, 0, 1 << 63), n_fields=1
    ),
    "2^60 strings": _header(_string(b"a"), struct.pack("<IIQ", 9, 8, 1 << 60), n_fields=1),
    "nested arrays": _header(_string(b"a"), struct.pack("<IIQIQ", 9, 9, 1, 9, 1), n_fields=1),
    "endless string": _header(struct.pack("<Q", 1 << 62), bytes(20), n_fields=1),
    "not UTF-8": _header(_string(b"\xff\xfe"), struct.pack("<IB", 0, 1), n_fields=1),
    "same field twice": _header(*2 * [_string(b"a") + struct.pack("<IB", 0, 1)], n_fields=2),
    "unknown value type": _header(_string(b"a"), struct.pack("<IB", 99, 1), n_fields=1),
    "zero dimensions": _header(_string(b"t"), struct.pack("<IIQ", 0, 0, 0), bytes(20), n_tensors=1),
    "2^40 x 2^40": _header(_string(b"t"), struct.pack("<IQQIQ", 2, 1 << 40, 1 << 40, 0, 0), n_tensors=1),
    "offset past the end": _header(_string(b"t"), struct.pack("<IQIQ", 1, 4, 0, 1 << 40), n_tensors=1),
    "unknown tensor type": _header(_string(b"t"), struct.pack("<IQIQ", 1, 4, 777, 0), n_tensors=1),
    "alignment zero": _header(_string(b"general.alignment"), struct.pack("<II", 4, 0), n_fields=1),
    "no architecture": _header(),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers(tmp_path: Path, name: str) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(ModelError, match=r"^cannot "):
        open_gguf(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_truncated_and_flipped_files(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    intact = _intact(tmp_path_factory)
    damaged = bytearray(intact[: data.draw(st.integers(0, len(intact)))])
    for at in data.draw(st.lists(st.integers(0, min(len(damaged), 9000) - 1), max_size=4)) if damaged else []:
        damaged[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(damaged)
    try:
        model = open_gguf(path)
        for _ in model.linear_weights():
            pass
    except ModelError as error:
        assert str(error).startswith("cannot ")  # noqa: PT017  some flips are harmless


def _intact(factory: pytest.TempPathFactory) -> bytes:
    path = factory.getbasetemp() / "intact.gguf"
    if not path.exists():
        write_tiny_gguf(path, TinyShape(n_layers=1))
    return path.read_bytes()


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("llama.rope.scaling.type", "yarn", "rope scaling"),
        ("llama.expert_count", 8, "experts"),
        ("llama.rope.dimension_count", 8, "rotated"),
        ("llama.attention.head_count", [4, 4], "head_count"),
        ("llama.attention.head_count_kv", 3, "evenly"),
        ("llama.block_count", 3, "layers.2"),
        ("llama.block_count", 1 << 40, "n_layers"),
        ("llama.context_length", None, "context_length"),
        ("general.architecture", "mamba", "mamba"),
        ("tokenizer.ggml.model", "llama", "byte-level"),
        ("tokenizer.ggml.eos_token_id", 99999, "special token"),
        ("tokenizer.ggml.tokens", 7, "tokens"),
        ("tokenizer.ggml.token_type", [1], "one type for each"),
    ],
)
def test_refused_variants(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: object, complaint: str
) -> None:
    def altered(path: Path) -> object:
        header = read_gguf(path)
        header.fields[key] = value
        return header

    monkeypatch.setattr("fhe_llm.models.gguf_file.read_gguf", altered)
    with pytest.raises(ModelError, match=complaint):
        open_gguf(tiny_model_path)
