"""The numbers that define a model, checked once and immutable afterwards."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fhe_llm.errors import ModelError


class ModelConfig(BaseModel):
    """Shape and constants of one decoder; construct through :func:`make_config`, which raises typed errors.

    The upper bounds are far above any open model; they keep a damaged file from asking for absurd memory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=200)
    architecture: Literal["llama"]
    n_layers: int = Field(ge=1, le=1024)
    d_model: int = Field(ge=2, le=1 << 17)
    n_heads: int = Field(ge=1, le=4096)
    n_kv_heads: int = Field(ge=1, le=4096)
    head_dim: int = Field(ge=2, le=4096, multiple_of=2)
    d_mlp: int = Field(ge=1, le=1 << 20)
    vocab_size: int = Field(ge=1, le=1 << 22)
    context_length: int = Field(ge=1, le=1 << 24)
    rope_theta: float = Field(gt=0, allow_inf_nan=False)
    rms_eps: float = Field(ge=0, lt=1, allow_inf_nan=False)
    tied_embeddings: bool
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = Field(default=(), max_length=64, strict=False)

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"{self.n_heads} heads do not share {self.n_kv_heads} key/value heads evenly")
        if any(not 0 <= i < self.vocab_size for i in (*self.eos_ids, self.bos_id or 0)):
            raise ValueError("a special token id lies outside the vocabulary")
        return self

    @property
    def q_width(self) -> int:
        """Features of all query heads together."""
        return self.n_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Features of all key (or value) heads together."""
        return self.n_kv_heads * self.head_dim


def make_config(**fields: Any) -> ModelConfig:
    """A checked config; raises :class:`ModelError` naming the first field that is wrong."""
    try:
        return ModelConfig(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "config"
        raise ModelError(
            f"cannot use model configuration: {where}: {first['msg']}. Use a complete Llama-style model."
        ) from None


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """``layer name -> (out_features, in_features)`` in the order a forward pass asks for them.

    ``qkv`` stacks query, key and value rows; ``gate_up`` stacks gate rows, then up rows.
    """
    shapes: dict[str, tuple[int, int]] = {}
    for i in range(config.n_layers):
        shapes[f"layers.{i}.qkv"] = (config.q_width + 2 * config.kv_width, config.d_model)
        shapes[f"layers.{i}.o"] = (config.d_model, config.q_width)
        shapes[f"layers.{i}.gate_up"] = (2 * config.d_mlp, config.d_model)
        shapes[f"layers.{i}.down"] = (config.d_model, config.d_mlp)
    return shapes


def layer_kind(name: str) -> str:
    """A layer's name without the number of its block."""
    return ".".join(part for part in name.split(".") if not part.isdigit())
