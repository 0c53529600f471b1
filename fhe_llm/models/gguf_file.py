"""A Llama-architecture GGUF file as a model source."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from fhe_llm.errors import ModelError
from fhe_llm.models.config import ModelConfig, make_config
from fhe_llm.models.digests import file_sha256
from fhe_llm.models.gguf_header import GGUFHeader, read_gguf
from fhe_llm.models.source import ModelSource
from fhe_llm.models.tokenizer_data import CONTROL, TokenizerData, make_tokenizer_data

_END_OF_TURN: Final = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|end|>", "</s>")
"""Control tokens that end a turn even where the file names only one of them (as llama.cpp treats them)."""

_OUTER: Final = {
    "token_embd.weight": "embedding",
    "output_norm.weight": "output_norm",
    "output.weight": "head",
}
_INNER: Final = {
    "attn_norm": "attention_norm",
    "ffn_norm": "mlp_norm",
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_output": "o",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
}


def open_gguf(path: Path, *, name: str | None = None, digest: str | None = None) -> ModelSource:
    """Read and check the header of ``path``; tensors stay on disk. ``digest`` skips hashing a file just
    hashed.

    Raises :class:`ModelError` for damaged files and for models this client does not compute.
    """
    header, name = read_gguf(path), name or path.stem
    _refuse_variants(header, name)
    tokenizer = _tokenizer(header)
    return ModelSource(
        _config(header, name, tokenizer),
        tokenizer,
        {_our_name(theirs): tensor for theirs, tensor in header.tensors.items()},
        model_digest=digest or file_sha256(path),
        interleaved_rotary=True,
    )


def _our_name(theirs: str) -> str:
    inner = re.fullmatch(r"blk\.(\d{1,5})\.(\w+)\.weight", theirs)
    if inner and inner[2] in _INNER:
        return f"layers.{inner[1]}.{_INNER[inner[2]]}"
    return _OUTER.get(theirs, f"unknown.{theirs}")


def _refuse_variants(header: GGUFHeader, name: str) -> None:
    fields, tensors = header.fields, header.tensors
    architecture = fields.get("general.architecture")
    if architecture != "llama":
        raise ModelError(
            f"cannot use model {name}: architecture {architecture!r} is not supported. Use a "
            "Llama-architecture GGUF."
        )
    if fields.get("llama.rope.scaling.type", "none") != "none" or "rope_freqs.weight" in tensors:
        raise ModelError(f"cannot use model {name}: rope scaling is not supported. Use a model without it.")
    if fields.get("llama.expert_count", 0):
        raise ModelError(
            f"cannot use model {name}: mixtures of experts are not supported. Use a dense model."
        )
    biased = next((tensor for tensor in tensors if tensor.endswith(".bias")), None)
    if biased:
        raise ModelError(f"cannot use model {name}: it has a bias ({biased}). Use a model without biases.")


def _config(header: GGUFHeader, name: str, tokenizer: TokenizerData) -> ModelConfig:
    d_model, n_heads = _number(header, "embedding_length"), _number(header, "attention.head_count")
    head_dim = _number(header, "attention.key_length", d_model // max(n_heads, 1))
    same = ("attention.value_length", "rope.dimension_count")
    if any(_number(header, key, head_dim) != head_dim for key in same):
        raise ModelError(f"cannot use model {name}: its heads are not all rotated whole. Use another model.")
    embedding = header.tensors.get("token_embd.weight")
    return make_config(
        name=name,
        architecture="llama",
        n_layers=_number(header, "block_count"),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=_number(header, "attention.head_count_kv", n_heads),
        head_dim=head_dim,
        d_mlp=_number(header, "feed_forward_length"),
        vocab_size=embedding.shape[0] if embedding else 0,
        context_length=_number(header, "context_length"),
        rope_theta=_number(header, "rope.freq_base", 10000.0),
        rms_eps=_number(header, "attention.layer_norm_rms_epsilon"),
        tied_embeddings="output.weight" not in header.tensors,
        bos_id=tokenizer.bos_id,
        eos_ids=tokenizer.eos_ids,
    )


def _number(header: GGUFHeader, key: str, default: Any = None) -> Any:
    value = header.fields.get(f"llama.{key}", default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ModelError(
            f"cannot use model: GGUF field llama.{key} is missing or no number. Use a complete file."
        )
    return value


def _tokenizer(header: GGUFHeader) -> TokenizerData:
    prefix = "tokenizer.ggml."
    fields = {k.removeprefix(prefix): v for k, v in header.fields.items() if k.startswith(prefix)}
    if fields.get("model") != "gpt2":
        raise ModelError(
            f"cannot use tokenizer {fields.get('model')!r}: only byte-level BPE ('gpt2') is supported. Use "
            "another model."
        )
    tokens, kinds = fields.get("tokens") or [], fields.get("token_type") or []
    eos = [fields[key] for key in ("eos_token_id", "eot_token_id") if key in fields]
    if isinstance(tokens, list) and isinstance(kinds, list):
        eos += [
            i
            for i, (t, k) in enumerate(zip(tokens, kinds, strict=False))
            if k == CONTROL and t in _END_OF_TURN
        ]
    return make_tokenizer_data(
        kind="bpe",
        pre=fields.get("pre", "default"),
        tokens=tokens,
        token_types=kinds,
        merges=fields.get("merges") or [],
        bos_id=fields.get("bos_token_id"),
        add_bos=fields.get("add_bos_token", False),
        eos_ids=list(dict.fromkeys(eos)),
        chat_template=header.fields.get("tokenizer.chat_template"),
    )
