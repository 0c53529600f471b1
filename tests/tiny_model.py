"""A random Llama model small enough for every test: real files, a real tokenizer, a real chat template.

``write_tiny_gguf`` and ``write_tiny_folder`` write the same weights in the two formats, so that one can check
the other.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import quantize
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from fhe_llm.models.tokenizer import byte_alphabet

PROMPT = "you and the other"
LONG = "you and the other thing in there are all on the stone and then another one in the rest"

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = (
    "Ġ t",
    "h e",
    "Ġt he",
    "i n",
    "e r",
    "o n",
    "Ġ a",
    "r e",
    "a n",
    "Ġa n",
    "l l",
    "o u",
    "Ġ y",
    "Ġy ou",
    "s t",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class TinyShape:
    """Sizes of the model to write; rows are whole blocks of 32, so that every quantisation fits."""

    n_layers: int = 2
    d_model: int = 64
    n_heads: int = 4
    n_kv_heads: int = 2
    d_mlp: int = 96
    context_length: int = 256
    rope_theta: float = 10000.0
    rms_eps: float = 1e-5
    tied: bool = True

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads


def vocabulary() -> list[str]:
    """Special tokens, the byte alphabet, then what the merges make."""
    return [*SPECIALS, *sorted(byte_alphabet()), *(merge.replace(" ", "") for merge in MERGES)]


def hf_weights(shape: TinyShape, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random float32 weights under transformers' names, in its rotate-half layout."""
    rng = np.random.default_rng(seed)
    d, kv = shape.d_model, shape.n_kv_heads * shape.head_dim

    def dense(*size: int) -> NDArray[np.float32]:
        return (rng.standard_normal(size) / np.sqrt(size[-1])).astype(np.float32)

    def norm() -> NDArray[np.float32]:
        return rng.uniform(0.5, 1.5, d).astype(np.float32)

    weights = {"model.embed_tokens.weight": dense(len(vocabulary()), d) * 4, "model.norm.weight": norm()}
    if not shape.tied:
        weights["lm_head.weight"] = dense(len(vocabulary()), d) * 4
    for i in range(shape.n_layers):
        block = f"model.layers.{i}"
        weights[f"{block}.input_layernorm.weight"] = norm()
        weights[f"{block}.post_attention_layernorm.weight"] = norm()
        weights[f"{block}.self_attn.q_proj.weight"] = dense(d, d)
        weights[f"{block}.self_attn.k_proj.weight"] = dense(kv, d)
        weights[f"{block}.self_attn.v_proj.weight"] = dense(kv, d)
        weights[f"{block}.self_attn.o_proj.weight"] = dense(d, d)
        weights[f"{block}.mlp.gate_proj.weight"] = dense(shape.d_mlp, d)
        weights[f"{block}.mlp.up_proj.weight"] = dense(shape.d_mlp, d)
        weights[f"{block}.mlp.down_proj.weight"] = dense(d, shape.d_mlp)
    return weights


def permute(rows: NDArray[np.float32], n_heads: int) -> NDArray[np.float32]:
    """llama.cpp's order of q and k rows (convert_hf_to_gguf.py, ``LlamaModel.permute``)."""
    split = rows.reshape(n_heads, 2, rows.shape[0] // n_heads // 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def write_tiny_gguf(path: Path, shape: TinyShape | None = None, *, seed: int = 0, kind: str = "F32") -> Path:
    """Write the model as GGUF with its matrices quantised to ``kind``; returns ``path``."""
    shape = shape or TinyShape()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(shape.n_layers)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.d_model)
    writer.add_feed_forward_length(shape.d_mlp)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary())
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(vocabulary()) - len(SPECIALS)))
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)
    qtype = gguf.GGMLQuantizationType[kind]
    for name, values in hf_weights(shape, seed).items():
        if ".q_proj" in name or ".k_proj" in name:
            values = permute(values, shape.n_heads if ".q_proj" in name else shape.n_kv_heads)
        if values.ndim == 2:
            writer.add_tensor(_gguf_name(name), quantize(values, qtype), raw_dtype=qtype)
        else:
            writer.add_tensor(_gguf_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_tiny_folder(
    folder: Path, shape: TinyShape | None = None, *, seed: int = 0, shards: int = 1, **settings: Any
) -> Path:
    """Write the model as a Hugging Face folder; ``settings`` override config.json; returns ``folder``."""
    shape = shape or TinyShape()
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "llama",
        "hidden_size": shape.d_model,
        "intermediate_size": shape.d_mlp,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "max_position_embeddings": shape.context_length,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": shape.rms_eps,
        "hidden_act": "silu",
        "vocab_size": len(vocabulary()),
        "tie_word_embeddings": shape.tied,
        "bos_token_id": 1,
        "eos_token_id": [2, 0],
    }
    (folder / "config.json").write_text(json.dumps(config | settings))
    (folder / "tokenizer.json").write_text(_tokenizer().to_str())
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    weights = hf_weights(shape, seed)
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return folder
    names = sorted(weights)
    files = {name: f"model-{n % shards + 1:05}-of-{shards:05}.safetensors" for n, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: weights[name] for name in names if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


def _tokenizer() -> Tokenizer:
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in MERGES)]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary())}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return tokenizer


def _gguf_name(name: str) -> str:
    outer = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in outer:
        return outer[name]
    inner = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    _, _, block, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{block}.{inner[part]}.weight"
