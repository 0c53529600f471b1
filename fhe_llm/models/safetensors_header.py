"""The safetensors container: a checked reader, and a writer whose bytes do not depend on any library's
version.

8-byte little-endian header length, JSON header, raw little-endian tensors. The bundle's digest is pinned in
this library, so its bytes are written here, with sorted keys; the ``safetensors`` package reads them like any
other file. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fhe_llm.errors import ModelError
from fhe_llm.models.stored_tensor import StoredTensor

MAX_HEADER_BYTES: Final = 100_000_000
_ITEM_BYTES: Final = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1}
_ALL_ITEM_BYTES: Final = _ITEM_BYTES | {"F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "BOOL": 1}


def read_safetensors(data: NDArray[np.uint8]) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Tensors as views into ``data`` (dtypes F32, F16, BF16 and U8 as kind I8; others are left out), and
    metadata.

    Every length is checked before anything is sliced. Raises :class:`ModelError`.
    """
    try:
        return _read(data)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"cannot read safetensors data: {error}. Fetch it again.") from None


def _read(data: NDArray[np.uint8]) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    size = int.from_bytes(data[:8].tobytes(), "little")
    if len(data) < 8 or size > min(MAX_HEADER_BYTES, len(data) - 8):
        raise ValueError("the header is longer than the data")
    header: dict[str, Any] = json.loads(data[8 : 8 + size].tobytes())
    if not isinstance(header, dict):
        raise TypeError("the header is not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise TypeError("the metadata is not an object of strings")
    body, tensors = data[8 + size :], {}
    for name, entry in header.items():
        dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if not all(type(n) is int and n >= 0 for n in (*shape, start, stop)):
            raise ValueError(f"tensor {name!r} has a shape or offset that is no natural number")
        if dtype not in _ALL_ITEM_BYTES:
            raise ValueError(f"tensor {name!r} has unsupported dtype {dtype!r}")
        if not start <= stop <= len(body) or stop - start != math.prod(shape) * _ALL_ITEM_BYTES[dtype]:
            raise ValueError(f"tensor {name!r} does not have the bytes its shape needs")
        if dtype in _ITEM_BYTES:
            tensors[name] = StoredTensor("I8" if dtype == "U8" else dtype, shape, body[start:stop])
    return tensors, metadata


def write_safetensors(tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str]) -> list[bytes]:
    """The file as byte chunks, determined by the arguments alone: sorted names, kinds other than F32 and F16
    as U8 [n_bytes]."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    chunks, at = [b""], 0
    for name in sorted(tensors):
        stored = tensors[name]
        plain = stored.kind in ("F32", "F16")
        header[name] = {
            "dtype": stored.kind if plain else "U8",
            "shape": list(stored.shape) if plain else [len(stored.data)],
            "data_offsets": [at, at + len(stored.data)],
        }
        chunks.append(stored.data.tobytes())
        at += len(stored.data)
    text = json.dumps(header, ensure_ascii=True, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    chunks[0] = len(text).to_bytes(8, "little") + text
    return chunks
