"""The client bundle: the same bytes everywhere, and a typed error for any others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tiny_model import TinyShape, write_tiny_gguf

from fhe_llm.errors import ModelError
from fhe_llm.models.bundle import PINNED_DIGESTS, load_bundle, parse_bundle, write_bundle
from fhe_llm.models.chat_template import ChatTemplate
from fhe_llm.models.gguf_file import open_gguf
from fhe_llm.models.resolve import open_model
from fhe_llm.models.tokenizer import TextTokenizer


@pytest.fixture(scope="module")
def bundle_bytes(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("bundle") / "tiny.bundle"
    write_bundle(open_gguf(tiny_model_path), path)
    return path.read_bytes()


def array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def edited(data: bytes, key: str, value: str) -> np.ndarray:
    """The bundle with one metadata entry replaced."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"][key] = value
    text = json.dumps(header).encode()
    return array(len(text).to_bytes(8, "little") + text + data[8 + size :])


def metadata(data: bytes) -> dict[str, str]:
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size])["__metadata__"]


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip(tmp_path: Path, kind: str, tied: bool) -> None:
    model = open_gguf(write_tiny_gguf(tmp_path / "tiny.gguf", TinyShape(tied=tied), kind=kind))
    digest = write_bundle(model, tmp_path / "b")
    bundle = load_bundle(tmp_path / "b", digest)
    stored = model.client_tensors()
    assert (bundle.config, bundle.tokenizer) == (model.config, model.tokenizer)
    assert (bundle.digest, bundle.model_digest) == (digest, model.model_digest)
    np.testing.assert_array_equal(bundle.embedding, stored["embedding"].floats())
    np.testing.assert_array_equal(bundle.head, stored["embedding" if tied else "head"].floats())
    np.testing.assert_array_equal(bundle.mlp_norms[1], stored["layers.1.mlp_norm"].floats())
    assert (bundle.head is bundle.embedding) == tied


def test_bytes_are_deterministic(tmp_path: Path) -> None:
    digests = set()
    for n in range(2):
        (tmp_path / str(n)).mkdir()
        model = open_gguf(write_tiny_gguf(tmp_path / str(n) / "tiny.gguf"))
        digests.add(write_bundle(model, tmp_path / f"{n}.bundle"))
    assert len(digests) == 1


def test_the_safetensors_package_reads_it(tmp_path: Path, bundle_bytes: bytes) -> None:
    (tmp_path / "b.safetensors").write_bytes(bundle_bytes)
    with safe_open(tmp_path / "b.safetensors", framework="np") as file:
        assert file.metadata()["format"] == "fhe-llm bundle 1"
        np.testing.assert_array_equal(
            file.get_tensor("output_norm"), parse_bundle(array(bundle_bytes)).output_norm
        )


def test_wrong_digest(bundle_bytes: bytes) -> None:
    with pytest.raises(ModelError, match="expected 0000"):
        parse_bundle(array(bundle_bytes), "0" * 64)


def test_unwritable_and_missing_files(tmp_path: Path, tiny_model_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ModelError, match="cannot write bundle"):
        write_bundle(open_gguf(tiny_model_path), tmp_path / "file" / "bundle")
    with pytest.raises(ModelError, match="cannot read bundle"):
        load_bundle(tmp_path / "nothing")


def test_a_failed_write_leaves_the_old_bundle(
    tmp_path: Path, tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "b").write_bytes(b"old")
    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(ModelError, match="No space left"):
        write_bundle(open_gguf(tiny_model_path), tmp_path / "b")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("b", b"old")]


@pytest.mark.parametrize(
    ("key", "change", "complaint"),
    [
        ("config", {"n_layers": 3}, "not those of its configuration"),
        ("config", {"n_layers": 10**9}, "n_layers"),
        ("config", {"vocab_size": 1 << 21}, "embedding is not of shape"),
        ("config", {"vocab_size": 1 << 60}, "vocab_size"),
        ("config", {"architecture": "mamba"}, "architecture"),
        ("config", {"rope_theta": float("nan")}, "rope_theta"),
        ("config", {"surprise": 1}, "surprise"),
        ("config", {"tied_embeddings": False}, "not those of its configuration"),
        ("tokenizer", {"kind": "pickle"}, "kind"),
        ("tokenizer", {"tokens": ["a"]}, "one type for each"),
        ("tokenizer", {"merges": [1]}, "merges"),
        ("tensors", {"embedding": {"kind": "Q4_K", "shape": [274, 64]}}, "blocks"),
        ("tensors", {"embedding": {"kind": "NONE", "shape": [274, 64]}}, "unknown"),
        ("tensors", {"embedding": {"kind": "F16", "shape": [274, 64]}}, "bytes"),
        ("tensors", {"embedding": {"kind": 4, "shape": [274, 64]}}, "embedding"),
        ("tensors", {"embedding": [1]}, "embedding"),
    ],
)
def test_contradicting_metadata(
    bundle_bytes: bytes, key: str, change: dict[str, object], complaint: str
) -> None:
    value = json.loads(metadata(bundle_bytes)[key]) | change
    with pytest.raises(ModelError, match=complaint):
        parse_bundle(edited(bundle_bytes, key, json.dumps(value)))


@pytest.mark.parametrize("key", ["format", "model_digest", "config", "tokenizer", "tensors"])
@pytest.mark.parametrize("value", ["", "[]", "x" * 64, '{"a":' * 10000])
def test_malformed_metadata(bundle_bytes: bytes, key: str, value: str) -> None:
    with pytest.raises(ModelError, match=r"^cannot "):
        parse_bundle(edited(bundle_bytes, key, value))


def test_values_that_are_not_finite(bundle_bytes: bytes) -> None:
    damaged = bytearray(bundle_bytes)
    damaged[-4:] = np.float32(np.nan).tobytes()
    with pytest.raises(ModelError, match="not finite"):
        parse_bundle(array(bytes(damaged)))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_bytes(bundle_bytes: bytes, data: st.DataObject) -> None:
    size = len(bundle_bytes)
    stop = data.draw(st.one_of(st.just(size), st.integers(0, size)))
    damaged = bytearray(bundle_bytes[:stop])
    for at in data.draw(st.lists(st.integers(0, max(stop - 1, 0)), max_size=6)) if stop else []:
        damaged[at] = data.draw(st.integers(0, 255))
    use_like_a_client(bytes(damaged))


@settings(max_examples=200, deadline=None)
@given(
    data=st.one_of(
        st.binary(max_size=200), st.binary(max_size=200).map(lambda b: len(b).to_bytes(8, "little") + b)
    )
)
def test_random_bytes(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"^cannot "):
        parse_bundle(array(data))


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
        b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":["F32"],"shape":[1],"data_offsets":[0,4]}}',
        b'{"a":1}',
        b'{"__metadata__":{"format":1}}',
        b'{"__metadata__":[]}',
        b"[" * 20000,
    ],
)
def test_hostile_safetensors_headers(header: bytes) -> None:
    with pytest.raises(ModelError, match=r"^cannot "):
        parse_bundle(array(len(header).to_bytes(8, "little") + header + bytes(8)))


def use_like_a_client(data: bytes) -> None:
    """Whatever a bundle holds, loading it and building the tokenizer gives an object or a ModelError."""
    try:
        bundle = parse_bundle(array(data))
        TextTokenizer(bundle.tokenizer).encode("the 12 <|im_end|>")
        ChatTemplate(bundle.tokenizer.chat_template or "").render([{"role": "user", "content": "x"}])
    except ModelError as error:
        assert str(error).startswith("cannot ")  # noqa: PT017  some changes are harmless


@pytest.mark.slow
def test_the_pinned_digest_is_that_of_the_real_model(tmp_path: Path, smollm2_path: Path) -> None:
    digest = write_bundle(open_model(smollm2_path), tmp_path / "b")
    assert digest == PINNED_DIGESTS["smollm2-135m"]
    assert (tmp_path / "b").stat().st_size < 33e6
