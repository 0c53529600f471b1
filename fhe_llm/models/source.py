"""A model read from files, whatever their format: config, tokenizer, fused linear weights, client tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from fhe_llm.errors import ModelError
from fhe_llm.models.config import ModelConfig, linear_shapes
from fhe_llm.models.steps import Floats
from fhe_llm.models.stored_tensor import StoredTensor
from fhe_llm.models.tokenizer_data import TokenizerData

_FUSED: Final = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}


class ModelSource:
    """Checked tensors under our own names, decoded only when asked for.

    Names: ``embedding``, ``output_norm``, ``head`` (unless tied) and, per layer, ``layers.{i}.`` +
    ``attention_norm``, ``mlp_norm``, ``q``, ``k``, ``v``, ``o``, ``gate``, ``up``, ``down``.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: TokenizerData,
        tensors: Mapping[str, StoredTensor],
        *,
        model_digest: str,
        interleaved_rotary: bool,
    ) -> None:
        """``interleaved_rotary`` says that q and k are in llama.cpp's row order. Raises :class:`ModelError`
        where a tensor is missing or its shape is not what the configuration needs."""
        self.config = config
        self.tokenizer = tokenizer
        self.model_digest = model_digest
        self._tensors = tensors
        self._interleaved = {"q": config.n_heads, "k": config.n_kv_heads} if interleaved_rotary else {}
        if len(tokenizer.tokens) > config.vocab_size:
            raise ModelError("cannot use model: it has more tokens than embeddings. Use a complete model.")
        for name, shape in tensor_shapes(config).items():
            found = tensors[name].shape if name in tensors else None
            if found != shape:
                raise ModelError(
                    f"cannot use tensor {name}: its shape is {found}, the configuration needs {shape}. "
                    "Use a complete model."
                )

    def linear_weight(self, layer: str) -> Floats:
        """One fused layer in the rotate-half layout, float32 [out, in]. Raises :class:`ModelError` for a
        layer the model lacks."""
        shape = linear_shapes(self.config).get(layer)
        if shape is None:
            raise ModelError(
                f"cannot find layer {layer!r}: the model does not have it. Use one of its layer names."
            )
        block, _, fused = layer.rpartition(".")
        weight, row = np.empty(shape, np.float32), 0
        for part in _FUSED[fused]:
            rows = self._tensors[f"{block}.{part}"].floats()
            if part in self._interleaved:
                rows = unpermute(rows, self._interleaved[part])
            weight[row : row + len(rows)] = rows
            row += len(rows)
        return weight

    def linear_weights(self) -> Iterator[tuple[str, Floats]]:
        """Every layer in the order of a forward pass: (name, float32 [out, in])."""
        for layer in linear_shapes(self.config):
            yield layer, self.linear_weight(layer)

    def client_tensors(self) -> dict[str, StoredTensor]:
        """What stays at the client: embedding, head unless tied, and the norms."""
        return {name: self._tensors[name] for name in client_shapes(self.config)}


def client_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that stay at the client."""
    shapes: dict[str, tuple[int, ...]] = {
        "embedding": (config.vocab_size, config.d_model),
        "output_norm": (config.d_model,),
    }
    if not config.tied_embeddings:
        shapes["head"] = (config.vocab_size, config.d_model)
    for i in range(config.n_layers):
        shapes[f"layers.{i}.attention_norm"] = (config.d_model,)
        shapes[f"layers.{i}.mlp_norm"] = (config.d_model,)
    return shapes


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of every tensor of the model, before fusing."""
    shapes = client_shapes(config)
    for i in range(config.n_layers):
        shapes[f"layers.{i}.q"] = (config.q_width, config.d_model)
        shapes[f"layers.{i}.k"] = shapes[f"layers.{i}.v"] = (config.kv_width, config.d_model)
        shapes[f"layers.{i}.o"] = (config.d_model, config.q_width)
        shapes[f"layers.{i}.gate"] = shapes[f"layers.{i}.up"] = (config.d_mlp, config.d_model)
        shapes[f"layers.{i}.down"] = (config.d_model, config.d_mlp)
    return shapes


def unpermute(rows: Floats, n_heads: int) -> Floats:
    """llama.cpp's interleaved rotary order back to rotate-half: [n_heads*head_dim, in] -> same.

    Row 2j+s of a head goes to row j + s*head_dim/2; the inverse of ``permute`` in llama.cpp's
    convert_hf_to_gguf.py.
    """
    out_features, in_features = rows.shape
    pairs = rows.reshape(n_heads, out_features // n_heads // 2, 2, in_features)
    return pairs.swapaxes(1, 2).reshape(out_features, in_features)
