"""A Hugging Face folder (config.json, *.safetensors, tokenizer.json) as a model source."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import numpy as np

from fhe_llm.errors import ModelError
from fhe_llm.models.config import ModelConfig, make_config
from fhe_llm.models.digests import files_sha256
from fhe_llm.models.safetensors_header import read_safetensors
from fhe_llm.models.source import ModelSource
from fhe_llm.models.stored_tensor import StoredTensor
from fhe_llm.models.tokenizer_data import TokenizerData, make_tokenizer_data

_OUTER: Final = {
    "model.embed_tokens.weight": "embedding",
    "model.norm.weight": "output_norm",
    "lm_head.weight": "head",
}
_INNER: Final = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "mlp_norm",
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}


def open_folder(folder: Path, *, name: str | None = None) -> ModelSource:
    """Read and check config, tokenizer and tensor headers; weight files (single or sharded) are only mapped.

    Raises :class:`ModelError` for incomplete or damaged folders and for models this client does not compute.
    """
    settings = _read_json(folder / "config.json")
    name = name or folder.resolve().name
    _refuse_variants(settings, name)
    weight_files = _weight_files(folder)
    tensors: dict[str, StoredTensor] = {}
    for path in weight_files:
        found, _ = read_safetensors(_mapped(path))
        tensors |= {_our_name(theirs): tensor for theirs, tensor in found.items()}
    tokenizer = _tokenizer(folder, settings)
    return ModelSource(
        _config(settings, name, tokenizer, has_head="head" in tensors),
        tokenizer,
        tensors,
        model_digest=files_sha256([*weight_files, folder / "config.json", folder / "tokenizer.json"]),
        interleaved_rotary=False,
    )


def _our_name(theirs: str) -> str:
    inner = re.fullmatch(r"model\.layers\.(\d{1,5})\.([\w.]+)\.weight", theirs)
    if inner and inner[2] in _INNER:
        return f"layers.{inner[1]}.{_INNER[inner[2]]}"
    return _OUTER.get(theirs, f"unknown.{theirs}")


def _read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    if optional and not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {path}: {error}. Use a complete model folder.") from None
    if not isinstance(found, dict):
        raise ModelError(f"cannot read {path}: it is not a JSON object. Use a complete model folder.")
    return found


def _weight_files(folder: Path) -> list[Path]:
    """The files the index names, or every *.safetensors; never anything outside the folder."""
    index = _read_json(folder / "model.safetensors.index.json", optional=True).get("weight_map")
    if index is None:
        names = sorted(path.name for path in folder.glob("*.safetensors"))
    else:
        names = sorted({str(n) for n in index.values()}) if isinstance(index, dict) else []
    if not names or any(Path(name).name != name for name in names):
        raise ModelError(
            f"cannot use folder {folder}: it has no *.safetensors, or its index is damaged. Use a complete "
            "model folder."
        )
    return [folder / name for name in names]


def _mapped(path: Path) -> np.memmap[Any, np.dtype[np.uint8]]:
    try:
        return np.memmap(path, np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot open {path}: {error}. Use a complete model folder.") from None


def _refuse_variants(settings: dict[str, Any], name: str) -> None:
    if settings.get("model_type") != "llama":
        raise ModelError(
            f"cannot use model {name}: model_type {settings.get('model_type')!r} is not supported. Use a "
            "Llama model."
        )
    rope = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
    if kind != "default":
        raise ModelError(
            f"cannot use model {name}: rope scaling {kind!r} is not supported. Use a model without it."
        )
    if settings.get("attention_bias") or settings.get("mlp_bias"):
        raise ModelError(f"cannot use model {name}: it has biases. Use a model without biases.")
    if settings.get("hidden_act", "silu") != "silu":
        raise ModelError(f"cannot use model {name}: its activation is not SiLU. Use a Llama model.")


def _config(settings: dict[str, Any], name: str, tokenizer: TokenizerData, *, has_head: bool) -> ModelConfig:
    d_model, n_heads = settings.get("hidden_size"), settings.get("num_attention_heads")
    inferred = (
        d_model // n_heads if isinstance(d_model, int) and isinstance(n_heads, int) and n_heads else None
    )
    rope = settings.get("rope_parameters") or {}
    theta = settings.get("rope_theta") or rope.get("rope_theta") or 10000.0
    return make_config(
        name=name,
        architecture="llama",
        n_layers=settings.get("num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=settings.get("num_key_value_heads") or n_heads,
        head_dim=settings.get("head_dim") or inferred,
        d_mlp=settings.get("intermediate_size"),
        vocab_size=settings.get("vocab_size"),
        context_length=settings.get("max_position_embeddings"),
        rope_theta=theta,
        rms_eps=settings.get("rms_norm_eps", 1e-6),
        tied_embeddings=bool(settings.get("tie_word_embeddings", not has_head)),
        bos_id=tokenizer.bos_id,
        eos_ids=tokenizer.eos_ids,
    )


def _tokenizer(folder: Path, settings: dict[str, Any]) -> TokenizerData:
    tokenizer_json = _read_json(folder / "tokenizer.json")
    generation = _read_json(folder / "generation_config.json", optional=True)
    template = _read_json(folder / "tokenizer_config.json", optional=True).get("chat_template")
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    beside = folder / "chat_template.jinja"
    if template is None and beside.is_file():
        template = beside.read_text(encoding="utf-8", errors="replace")
    eos = generation.get("eos_token_id", settings.get("eos_token_id"))
    return make_tokenizer_data(
        kind="json",
        json_text=json.dumps(tokenizer_json, ensure_ascii=True, separators=(",", ":")),
        bos_id=settings.get("bos_token_id"),
        eos_ids=eos if isinstance(eos, list) else [] if eos is None else [eos],
        chat_template=template,
    )
