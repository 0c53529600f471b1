"""Words read straight from a SEAL object's memory, without SEAL's compressing save (0.8 ms less per ciphertext).

TenSEAL offers no buffer to look at, so this relies on how pybind11 and SEAL 4 lay out their objects. It only ever
reads, and trusts nothing: every header field must equal what the object's own accessors say, the element counts must
be the expected ones, and reads go through ``/proc/self/mem``, where a bad address is an error and not a crash. Each
``SealWords`` compares memory with SEAL's own save before its first use; where anything differs (another build,
another system, a hardened kernel) it uses the save instead.

Layout, in 8-byte words. Ciphertext: parms_id 0-3, NTT flag 4, size 5, N 6, limbs 7, scale 8, correction factor 9.
Plaintext: parms_id 0-3, coefficient count 4, scale 5. Both end with an array: pool 2 words, capacity, size, address.
"""

from __future__ import annotations

import os
import struct
import sys
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Wide = NDArray[np.uint64]

_MEMORY: Final = "/proc/self/mem"
_VALUE_OFFSET: Final = object.__basicsize__  # pybind11 keeps the pointer right after the object header
_CIPHERTEXT: Final = struct.Struct("=4QQQQQdQ16xQQQ")
_PLAINTEXT: Final = struct.Struct("=4QQd16xQQQ")


class LayoutError(Exception):
    """The memory is not laid out as expected; use SEAL's save."""


def supported() -> bool:
    """Whether this system could allow it at all."""
    return sys.platform == "linux" and sys.byteorder == "little" and sys.maxsize > 2**32


def read_ciphertext(ciphertext: Any, shape: tuple[int, int, int]) -> Wide:
    """The words of a ciphertext of ``shape`` (size, limbs, N), uint64 [size, limbs, N]; raises :class:`LayoutError`."""
    with _Memory() as memory:
        *parms, ntt, size, degree, limbs, scale, _, capacity, count, address = memory.header(
            ciphertext, _CIPHERTEXT
        )
        said = (
            ciphertext.parms_id(),
            ciphertext.is_ntt_form(),
            ciphertext.size(),
            ciphertext.poly_modulus_degree(),
        )
        rest = (ciphertext.coeff_modulus_size(), ciphertext.scale)
        if (parms, bool(ntt & 0xFF), size, degree, limbs, scale) != (*said, *rest) or (
            size,
            limbs,
            degree,
        ) != shape:
            raise LayoutError("ciphertext header")
        return memory.words(address, count, capacity, shape)


def read_plaintext(plaintext: Any, shape: tuple[int, int], out: Wide | None = None) -> Wide:
    """The words of a plaintext of ``shape`` (limbs, N), uint64 [limbs, N], in ``out`` if given; raises
    :class:`LayoutError`."""
    with _Memory() as memory:
        *parms, coefficients, scale, capacity, count, address = memory.header(plaintext, _PLAINTEXT)
        said = (plaintext.parms_id(), plaintext.coeff_count(), plaintext.scale)
        if (parms, coefficients, scale) != said or coefficients != shape[0] * shape[1]:
            raise LayoutError("plaintext header")
        return memory.words(address, count, capacity, shape, out)


class _Memory:
    """This process's memory, opened anew each time so that a forked child never reads its parent."""

    def __enter__(self) -> _Memory:
        try:
            self._fd = os.open(_MEMORY, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise LayoutError(str(error)) from None
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def header(self, instance: Any, layout: struct.Struct) -> tuple[Any, ...]:
        (pointer,) = struct.unpack("=Q", self._read(id(instance) + _VALUE_OFFSET, bytearray(8)))
        return layout.unpack(self._read(pointer, bytearray(layout.size)))

    def words(
        self, address: int, count: int, capacity: int, shape: tuple[int, ...], out: Wide | None = None
    ) -> Wide:
        out = np.empty(shape, dtype=np.uint64) if out is None else out
        if count != out.size or capacity < count or address % 8:
            raise LayoutError("array header")
        self._read(address, out.view(np.uint8).reshape(-1).data)
        return out

    def _read(self, address: int, buffer: Any) -> Any:
        try:
            if address <= 0 or os.preadv(self._fd, [buffer], address) != len(buffer):
                raise LayoutError("address")
        except (OSError, OverflowError) as error:
            raise LayoutError(str(error)) from None
        return buffer
