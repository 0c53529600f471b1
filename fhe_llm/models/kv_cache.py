"""Keys and values of the positions a conversation has passed, kept at the client and nowhere else."""

from __future__ import annotations

import numpy as np

from fhe_llm.errors import ContextOverflowError
from fhe_llm.models.steps import Floats


class KVCache:
    """Rotated keys and values, [n_layers, n_kv, capacity, head_dim] float32 each, grown by doubling.

    A pass writes behind ``length`` layer by layer and commits once at its end.
    """

    _CHUNK = 64

    def __init__(self, n_layers: int, n_kv_heads: int, head_dim: int, context_length: int) -> None:
        self._layout = (n_layers, n_kv_heads, head_dim, context_length)
        self._length = 0
        self._keys: Floats = np.empty((n_layers, n_kv_heads, 0, head_dim), np.float32)
        self._values: Floats = self._keys.copy()

    @property
    def length(self) -> int:
        """Committed positions."""
        return self._length

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return self._keys.nbytes + self._values.nbytes

    def write(self, layer: int, keys: Floats, values: Floats) -> None:
        """Put [T, n_kv, head_dim] behind the committed positions of one layer."""
        stop = self._length + len(keys)
        self._reserve(stop)
        self._keys[layer, :, self._length : stop] = keys.transpose(1, 0, 2)
        self._values[layer, :, self._length : stop] = values.transpose(1, 0, 2)

    def read(self, layer: int, stop: int) -> tuple[Floats, Floats]:
        """Views of the first ``stop`` positions of one layer, written ones included: [n_kv, stop, head_dim]
        each."""
        return self._keys[layer, :, :stop], self._values[layer, :, :stop]

    def commit(self, n_tokens: int) -> None:
        """Count the ``n_tokens`` positions that every layer has just written."""
        self._length += n_tokens

    def truncate(self, length: int) -> None:
        """Forget all but the first ``length`` positions (keeps the memory). Raises ValueError outside
        0..length."""
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot truncate cache to {length}: it holds {self._length} positions.")
        self._length = length

    def prefix(self, length: int) -> KVCache:
        """An independent cache of the first ``length`` positions. Raises ValueError outside 0..length."""
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot copy {length} positions of the cache: it holds {self._length}.")
        other = KVCache(*self._layout)
        other._keys = self._keys[:, :, :length].copy()
        other._values = self._values[:, :, :length].copy()
        other._length = length
        return other

    def copy(self) -> KVCache:
        """An independent cache of the same positions."""
        return self.prefix(self._length)

    def span(self, start: int, stop: int) -> Floats:
        """Keys and values of committed positions as one array [2, n_layers, n_kv, stop - start, head_dim]. Raises
        ValueError outside 0..length."""
        if not 0 <= start <= stop <= self._length:
            raise ValueError(f"cannot copy positions {start} to {stop}: the cache holds {self._length}.")
        return np.stack((self._keys[:, :, start:stop], self._values[:, :, start:stop]))

    def extend(self, span: Floats) -> None:
        """Put what :meth:`span` gave behind the committed positions, and commit it."""
        stop = self._length + span.shape[3]
        self._reserve(stop)
        self._keys[:, :, self._length : stop], self._values[:, :, self._length : stop] = span
        self._length = stop

    def _reserve(self, positions: int) -> None:
        n_layers, n_kv_heads, head_dim, context_length = self._layout
        capacity = self._keys.shape[2]
        if positions <= capacity:
            return
        if positions > context_length:
            raise ContextOverflowError(
                f"cannot cache {positions} positions: the context window holds {context_length}. Shorten "
                "the prompt."
            )
        grown = min(context_length, max(2 * capacity, -(-positions // self._CHUNK) * self._CHUNK))
        for name in ("_keys", "_values"):
            fresh = np.empty((n_layers, n_kv_heads, grown, head_dim), np.float32)
            fresh[:, :, : self._length] = getattr(self, name)[:, :, : self._length]
            setattr(self, name, fresh)
