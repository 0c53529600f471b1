"""A tensor as a file stores it: raw bytes in one of the GGML types, turned into float32 when it is needed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from fhe_llm.errors import ModelError
from fhe_llm.models.steps import Floats


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """``data`` holds the bytes of ``shape`` elements (row-major, last axis in blocks) of GGML type
    ``kind``."""

    kind: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]  # [n_bytes]

    def floats(self) -> Floats:
        """The values as a fresh float32 array of ``shape``; raises :class:`ModelError` for a type without a
        decoder."""
        if len(self.data) != stored_bytes(self.kind, self.shape):
            raise ModelError(
                f"cannot read {self.kind} tensor of shape {self.shape}: it has {len(self.data)} bytes. "
                "Fetch the model again."
            )
        if self.kind == "F32":
            return self.data.view("<f4").reshape(self.shape).astype(np.float32)
        if self.kind == "F16":
            return self.data.view("<f2").reshape(self.shape).astype(np.float32)
        if self.kind == "Q8_0":
            return _q8_0(self.data).reshape(self.shape)
        rows = self.data.reshape(*self.shape[:-1], -1)
        try:
            with np.errstate(all="ignore"):
                values = dequantize(rows, GGMLQuantizationType[self.kind])
        except NotImplementedError:
            raise ModelError(
                f"cannot decode {self.kind} tensor: the gguf package has no decoder for it. Use another "
                "quantisation."
            ) from None
        return np.ascontiguousarray(values, dtype=np.float32).reshape(self.shape)


def _q8_0(data: NDArray[np.uint8]) -> Floats:
    """Blocks of one float16 scale and 32 int8 values, as ``gguf.quants`` decodes them but ten times as fast
    (one pass instead of one per 16 rows; the embedding of most small models is stored this way)."""
    blocks = data.view(np.dtype([("scale", "<f2"), ("values", "i1", 32)]))
    floats: Floats = blocks["values"].astype(np.float32)
    floats *= blocks["scale"].astype(np.float32)[:, None]
    return floats


def stored_bytes(kind: str, shape: tuple[int, ...]) -> int:
    """Bytes that ``shape`` elements of GGML type ``kind`` take; raises :class:`ModelError` where they cannot
    be laid out."""
    try:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    except KeyError:
        raise ModelError(
            f"cannot read tensor: its type {kind!r} is unknown. Use another quantisation."
        ) from None
    if not shape or any(n < 1 for n in shape) or shape[-1] % block:
        raise ModelError(
            f"cannot read tensor of shape {shape}: {kind} needs rows of whole {block}-value blocks. "
            "Fetch the model again."
        )
    return math.prod(shape) // block * block_bytes
