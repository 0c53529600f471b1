"""The client half of a Llama decoder: everything except the linear layers, which it asks the proxy for.

RMSNorm (Zhang & Sennrich 2019), rotary embedding in the rotate-half layout (Su et al. 2021), grouped-query
attention (Ainslie et al. 2023), SwiGLU (Shazeer 2020); the block order is Llama's (Touvron et al. 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fhe_llm.errors import ContextOverflowError, ModelError
from fhe_llm.models.bundle import ClientBundle
from fhe_llm.models.kv_cache import KVCache
from fhe_llm.models.steps import Floats, Forward, Linear

_QUERY_BLOCK = 256  # attention scores of this many positions exist at a time, whatever the prompt's length


class LlamaClientHalf:
    """Embedding, norms, rotary attention over a KV cache, activations, residuals and the head, in float32."""

    def __init__(self, bundle: ClientBundle) -> None:
        self.config = bundle.config
        self._bundle = bundle
        half = self.config.head_dim // 2
        self._inverse_frequency = self.config.rope_theta ** (-np.arange(half) / half)  # [head_dim/2]

    def new_cache(self) -> KVCache:
        """An empty cache for one conversation."""
        c = self.config
        return KVCache(c.n_layers, c.n_kv_heads, c.head_dim, c.context_length)

    def forward(
        self, token_ids: Sequence[int], cache: KVCache, *, logits: Literal["last", "all"] = "last"
    ) -> Forward:
        """Extend ``cache`` by T tokens; asks for ``layers.{i}.qkv``, ``.o``, ``.gate_up``, ``.down`` in turn.

        Returns logits [1, vocab] ("last") or [T, vocab] ("all"). The cache's length changes only when the
        pass completes, so an abandoned pass leaves it as it was. Cost besides the linear layers: O(T·S·d)
        attention over S positions, and one [vocab, d] product per row of logits.
        Raises :class:`ContextOverflowError` (both lengths in the message) and :class:`ModelError` (no tokens,
        or an id outside the vocabulary) on the first step.
        """
        ids = self._checked(token_ids, cache)
        first = cache.length
        rope = self._rotary(np.arange(first, first + len(ids)))
        b, eps = self._bundle, np.float32(self.config.rms_eps)
        x = b.embedding[ids]  # [T, d]
        for i in range(self.config.n_layers):
            qkv = yield Linear(f"layers.{i}.qkv", rms_norm(x, b.attention_norms[i], eps))
            mixed = self._attention(i, qkv, rope, cache)  # [T, n_heads*head_dim]
            x = x + (yield Linear(f"layers.{i}.o", mixed))
            gate_up = yield Linear(f"layers.{i}.gate_up", rms_norm(x, b.mlp_norms[i], eps))
            gate, up = np.split(gate_up, 2, axis=-1)  # [T, d_mlp] each
            x = x + (yield Linear(f"layers.{i}.down", silu(gate) * up))
        cache.commit(len(ids))
        x = rms_norm(x if logits == "all" else x[-1:], b.output_norm, eps)
        return x @ b.head.T  # [1 or T, vocab]

    def _checked(self, token_ids: Sequence[int], cache: KVCache) -> NDArray[np.intp]:
        ids = np.asarray(token_ids, dtype=np.intp)
        total, limit = cache.length + len(ids), self.config.context_length
        if total > limit:
            raise ContextOverflowError(
                f"cannot process {total} tokens: the context window of {self.config.name} holds {limit}. "
                "Shorten the prompt or the conversation."
            )
        if ids.ndim != 1 or not len(ids) or ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise ModelError(
                f"cannot process tokens: expected at least one id below {self.config.vocab_size}. "
                "Encode the text with this model's tokenizer."
            )
        return ids

    def _rotary(self, positions: NDArray[np.intp]) -> tuple[Floats, Floats]:
        """cos and sin of position·frequency, both halves: [T, 1, head_dim] each."""
        angle = positions[:, None] * self._inverse_frequency  # [T, head_dim/2]
        angle = np.concatenate((angle, angle), axis=-1)[:, None]
        return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)

    def _attention(self, layer: int, qkv: Floats, rope: tuple[Floats, Floats], cache: KVCache) -> Floats:
        """softmax(q k^T / sqrt(head_dim)) v, causal: qkv [T, q+2kv] -> [T, n_heads*head_dim]."""
        c, n_tokens = self.config, len(qkv)
        heads = qkv.reshape(n_tokens, c.n_heads + 2 * c.n_kv_heads, c.head_dim)
        rotated = rotate(heads[:, : c.n_heads + c.n_kv_heads], *rope)
        q, k = rotated[:, : c.n_heads], rotated[:, c.n_heads :]  # [T, n_heads | n_kv, head_dim]
        cache.write(layer, k, heads[:, c.n_heads + c.n_kv_heads :])
        group = c.n_heads // c.n_kv_heads
        q = (q * np.float32(c.head_dim**-0.5)).reshape(n_tokens, c.n_kv_heads, group, c.head_dim)
        q = q.transpose(1, 2, 0, 3)  # [n_kv, group, T, head_dim]
        mixed = np.empty((n_tokens, c.n_kv_heads, group, c.head_dim), np.float32)
        for start in range(0, n_tokens, _QUERY_BLOCK):
            stop = min(start + _QUERY_BLOCK, n_tokens)
            keys, values = cache.read(layer, cache.length + stop)  # [n_kv, S, head_dim] each
            block = attend(q[:, :, start:stop], keys, values)
            mixed[start:stop] = block.transpose(2, 0, 1, 3)
        return mixed.reshape(n_tokens, c.q_width)


def attend(q: Floats, keys: Floats, values: Floats) -> Floats:
    """Causal attention of the last T of S positions: q [n_kv, group, T, head_dim], already scaled;
    keys, values [n_kv, S, head_dim] -> [n_kv, group, T, head_dim]."""
    n_kv, group, n_queries, head_dim = q.shape
    n_keys = keys.shape[1]
    flat = q.reshape(n_kv, group * n_queries, head_dim)
    scores = np.matmul(flat, keys.transpose(0, 2, 1)).reshape(n_kv, group, n_queries, n_keys)
    if n_queries > 1:
        future = np.triu(np.ones((n_queries, n_queries), np.bool_), 1)  # [T, T]
        scores[..., n_keys - n_queries :][..., future] = -np.inf
    scores -= scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores, out=scores)
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed: Floats = np.matmul(weights.reshape(n_kv, group * n_queries, n_keys), values)
    return mixed.reshape(n_kv, group, n_queries, head_dim)


def rotate(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """Rotary embedding: pairs (x_j, x_{j+head_dim/2}) turn by their angle. x [T, heads, head_dim] -> same."""
    half = x.shape[-1] // 2
    turned = np.concatenate((-x[..., half:], x[..., :half]), axis=-1)
    return x * cos + turned * sin


def rms_norm(x: Floats, weight: Floats, eps: np.float32) -> Floats:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis: [T, d] -> [T, d]."""
    mean_square = np.einsum("td,td->t", x, x)[:, None] / np.float32(x.shape[-1])
    normed: Floats = x * (weight / np.sqrt(mean_square + eps))
    return normed


def silu(x: Floats) -> Floats:
    """x * sigmoid(x), through tanh so that no exponential overflows."""
    half = np.float32(0.5)
    activated: Floats = x * (half + half * np.tanh(half * x))
    return activated
