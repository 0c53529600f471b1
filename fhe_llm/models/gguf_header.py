"""The header of a GGUF file, read with every length checked before it is used.

The ``gguf`` package's own reader trusts the counts in the file: an array of 2^63 bytes declared near the end
of a file keeps it busy for ever. Here a damaged or hostile header raises :class:`ModelError`; types, block
sizes and decoders still come from that package. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf.constants import GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType
from numpy.typing import NDArray

from fhe_llm.errors import ModelError
from fhe_llm.models.stored_tensor import StoredTensor, stored_bytes

_SCALARS: Final = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
    GGUFValueType.BOOL: "?",
}
_MIN_FIELD_BYTES: Final = 8 + 4 + 1  # key length, type, shortest value
_MIN_TENSOR_BYTES: Final = 8 + 4 + 8 + 4 + 8  # name length, dimension count, one dimension, type, offset


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """Metadata values as Python objects, and tensors as views of the mapped file."""

    fields: dict[str, Any]
    tensors: dict[str, StoredTensor]


def read_gguf(path: Path) -> GGUFHeader:
    """Map ``path`` and read its header; tensor bytes stay on disk until they are touched.

    Cost: one pass over the header (0.1 s for a vocabulary of 49152). Raises :class:`ModelError` for a file
    that cannot be opened, is not little-endian GGUF 2 or 3, or whose lengths, types or offsets do not hold.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot open {path}: {error}. Check the path.") from None
    try:
        return _Cursor(mapped).header()
    except _DamagedError as error:
        raise ModelError(f"cannot read {path}: {error}. Fetch the file again.") from None


class _DamagedError(ValueError):
    """The header contradicts itself or the file's size."""


class _Cursor:
    """A position in the mapped file; every read checks that the bytes are there."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self._bytes = mapped
        self._at = 0

    def header(self) -> GGUFHeader:
        if self._take(4) != b"GGUF":
            raise _DamagedError("it does not start with GGUF")
        version, n_tensors, n_fields = self._number("<I"), self._number("<Q"), self._number("<Q")
        if version not in (2, 3):
            raise _DamagedError(f"its version is {version}, not 2 or 3")
        self._expect(n_fields * _MIN_FIELD_BYTES + n_tensors * _MIN_TENSOR_BYTES)
        fields: dict[str, Any] = {}
        for _ in range(n_fields):
            key = self._string()
            if key in fields:
                raise _DamagedError(f"field {key!r} appears twice")
            fields[key] = self._value(self._type())
        infos = [self._tensor_info() for _ in range(n_tensors)]
        alignment = fields.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise _DamagedError("its alignment is not a power of two")
        base = -(-self._at // alignment) * alignment
        whole = np.frombuffer(self._bytes, np.uint8)
        tensors: dict[str, StoredTensor] = {}
        for name, kind, shape, offset in infos:
            if name in tensors:
                raise _DamagedError(f"tensor {name!r} appears twice")
            tensors[name] = StoredTensor(kind, shape, _slice(whole, base + offset, kind, shape))
        return GGUFHeader(fields, tensors)

    def _tensor_info(self) -> tuple[str, str, tuple[int, ...], int]:
        name, n_dims = self._string(), self._number("<I")
        if not 1 <= n_dims <= 4:
            raise _DamagedError(f"tensor {name!r} has {n_dims} dimensions")
        shape = tuple(
            reversed([self._number("<Q") for _ in range(n_dims)])
        )  # the file lists the fastest axis first
        raw_kind, offset = self._number("<I"), self._number("<Q")
        try:
            kind = GGMLQuantizationType(raw_kind).name
        except ValueError:
            raise _DamagedError(f"tensor {name!r} has unknown type {raw_kind}") from None
        return name, kind, shape, offset

    def _value(self, kind: GGUFValueType) -> Any:
        if kind is GGUFValueType.STRING:
            return self._string()
        if kind is not GGUFValueType.ARRAY:
            return self._scalars(kind, 1)[0]
        inner, count = self._type(), self._number("<Q")
        if inner is GGUFValueType.STRING:
            self._expect(8 * count)
            return [self._string() for _ in range(count)]
        if inner is GGUFValueType.ARRAY:
            raise _DamagedError("it nests arrays")
        return self._scalars(inner, count)

    def _scalars(self, kind: GGUFValueType, count: int) -> list[Any]:
        dtype = np.dtype(_SCALARS[kind])
        values: list[Any] = np.frombuffer(self._take(count * dtype.itemsize), dtype).tolist()
        return values

    def _type(self) -> GGUFValueType:
        raw = self._number("<I")
        try:
            return GGUFValueType(raw)
        except ValueError:
            raise _DamagedError(f"value type {raw} is unknown") from None

    def _string(self) -> str:
        raw = self._take(self._number("<Q"))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise _DamagedError("a string is not UTF-8") from None

    def _number(self, layout: str) -> int:
        value: int = struct.unpack(layout, self._take(struct.calcsize(layout)))[0]
        return value

    def _take(self, count: int) -> bytes:
        self._expect(count)
        self._at += count
        return self._bytes[self._at - count : self._at]

    def _expect(self, count: int) -> None:
        if count > len(self._bytes) - self._at:
            raise _DamagedError("it ends too early")


def _slice(whole: NDArray[np.uint8], start: int, kind: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    try:
        stop = start + stored_bytes(kind, shape)
    except ModelError as error:
        raise _DamagedError(str(error)) from None
    if stop > len(whole):
        raise _DamagedError("it ends too early")
    return whole[start:stop]
