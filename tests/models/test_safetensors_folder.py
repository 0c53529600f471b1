"""Hugging Face folders give the model that the GGUF file of the same weights gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_model import TinyShape, hf_weights, write_tiny_folder

from fhe_llm.errors import ModelError
from fhe_llm.models.gguf_file import open_gguf
from fhe_llm.models.safetensors_folder import open_folder
from fhe_llm.models.tokenizer import TextTokenizer


@pytest.mark.parametrize("shards", [1, 3])
def test_folder_equals_gguf(tmp_path: Path, tiny_model_path: Path, shards: int) -> None:
    folder, gguf = open_folder(write_tiny_folder(tmp_path / "m", shards=shards)), open_gguf(tiny_model_path)
    same = folder.config.model_dump(exclude={"name", "rms_eps"})
    assert same == gguf.config.model_dump(exclude={"name", "rms_eps"})  # GGUF keeps eps as float32
    for (name, ours), (other, theirs) in zip(folder.linear_weights(), gguf.linear_weights(), strict=True):
        assert name == other
        np.testing.assert_array_equal(ours, theirs)
    text = "the 12 kittens in tin <|im_end|> 🙂"
    assert TextTokenizer(folder.tokenizer).encode(text) == TextTokenizer(gguf.tokenizer).encode(text)


def test_half_precision_weights(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "m")
    weights = {name: values.astype(np.float16) for name, values in hf_weights(TinyShape()).items()}
    save_file(weights, folder / "model.safetensors")
    down = open_folder(folder).linear_weight("layers.0.down")
    np.testing.assert_array_equal(down, weights["model.layers.0.mlp.down_proj.weight"].astype(np.float32))


def test_digest_depends_on_the_weights(tmp_path: Path) -> None:
    one = open_folder(write_tiny_folder(tmp_path / "a" / "m", seed=0))
    two = open_folder(write_tiny_folder(tmp_path / "b" / "m", seed=1))
    again = open_folder(write_tiny_folder(tmp_path / "c" / "m", seed=0))
    assert one.model_digest == again.model_digest != two.model_digest


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "mixtral"}, "mixtral"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "llama3"),
        ({"rope_scaling": "odd"}, "odd"),
        ({"attention_bias": True}, "biases"),
        ({"hidden_act": "gelu"}, "SiLU"),
        ({"hidden_size": 128}, "shape"),
        ({"num_attention_heads": 0}, "n_heads"),
        ({"num_hidden_layers": "two"}, "n_layers"),
        ({"eos_token_id": 10**6}, "special token"),
        ({"tie_word_embeddings": False}, "head"),
    ],
)
def test_refused_settings(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ModelError, match=complaint):
        open_folder(write_tiny_folder(tmp_path / "m", **change))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"[]", b"\xff\xff\xff", b'{"a":' * 5000])
def test_missing_and_damaged_files(tmp_path: Path, name: str, content: bytes | None) -> None:
    folder = write_tiny_folder(tmp_path / "m")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=r"^cannot "):
        TextTokenizer(open_folder(folder).tokenizer)


def test_an_index_cannot_point_outside(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "m")
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="index is damaged"):
        open_folder(folder)
