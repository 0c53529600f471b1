"""Encoded weights on disk, memory-mapped: the second start does not encode again.

File: magic (8 bytes), padding to a page, each layer's words at a page boundary, a JSON index, and a trailer
of ``<u64 index offset, u64 index length, sha-256 of the index, magic>``. The index names the preset, model
digest and evaluator, and for each layer its plan id, scale, dtype, shape, offset and SHA-256. Nothing in it
is executable. Layers with equal words share them. Opening checks every hash (about a second per GB, and it
warms the page cache), so a truncated, damaged or foreign file is noticed and rebuilt.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from fhe_llm.errors import ModelError
from fhe_llm.evaluator.contract import EncodedLayer
from fhe_llm.evaluator.packed_plan import Plan

MAGIC: Final = b"FHELENC1"
PAGE: Final = 4096
_TRAILER: Final = struct.Struct("<QQ32s8s")
_MAX_INDEX_BYTES: Final = 16 << 20
_HASH_BLOCK: Final = 4 << 20


class DamagedCacheError(ModelError):
    """An encoded-weights file that is truncated, altered, or made for something else."""


class CacheWriter:
    """Appends layers to a temporary file; :meth:`commit` makes it the cache in one rename."""

    def __init__(self, path: Path, identity: Mapping[str, str]) -> None:
        self._path = path
        self._identity = dict(identity)
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._layers: list[dict[str, Any]] = []
        self._written: dict[str, int] = {}
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file: BinaryIO = self._temporary.open("xb")
        self._file.write(MAGIC)

    def add(self, layer: EncodedLayer) -> None:
        """Write one layer's words; raises ``OSError`` when the disk is full."""
        words = np.ascontiguousarray(layer.words)
        raw = words.reshape(-1).view(np.uint8).data
        digest = hashlib.sha256(raw).hexdigest()
        fresh = digest not in self._written
        if fresh:
            self._pad()
            self._written[digest] = self._file.tell()
        self._layers.append(
            {
                "name": layer.name,
                "plan_id": layer.plan.plan_id.hex(),
                "log_weight_scale": layer.log_weight_scale,
                "dtype": words.dtype.str,
                "shape": list(words.shape),
                "offset": self._written[digest],
                "sha256": digest,
            }
        )
        if fresh:
            self._file.write(raw)

    def commit(self) -> None:
        """Finish the file and put it in place."""
        index = json.dumps({**self._identity, "layers": self._layers}, separators=(",", ":")).encode()
        offset = self._file.tell()
        self._file.write(index)
        self._file.write(_TRAILER.pack(offset, len(index), hashlib.sha256(index).digest(), MAGIC))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self._path)

    def discard(self) -> None:
        """Remove the temporary file; does nothing after :meth:`commit`."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _pad(self) -> None:
        self._file.write(bytes(-self._file.tell() % PAGE))


@contextmanager
def cache_writer(path: Path, identity: Mapping[str, str]) -> Iterator[CacheWriter]:
    """A writer that leaves nothing behind unless it was committed."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)
    writer = CacheWriter(path, identity)
    try:
        yield writer
    finally:
        writer.discard()


def open_cache(
    path: Path,
    identity: Mapping[str, str],
    plans: Mapping[str, Plan],
    progress: Callable[[int, int], None],
) -> dict[str, EncodedLayer]:
    """Map every layer of ``plans`` read-only. ``progress(done, total)`` counts checked layers.

    Raises :class:`DamagedCacheError`, or ``FileNotFoundError`` where there is no cache yet.
    """
    index, end = _read_index(path)
    if {key: index.get(key) for key in identity} != dict(identity):
        raise DamagedCacheError(_message("it was made for another model, preset or evaluator"))
    try:
        entries = {entry["name"]: entry for entry in index["layers"]}
        stale = [n for n, plan in plans.items() if entries[n]["plan_id"] != plan.plan_id.hex()]
        if stale or len(entries) != len(plans):
            raise DamagedCacheError(_message("its plans are not the current ones"))
        whole = np.memmap(path, dtype=np.uint8, mode="r")
        layers = {name: _map_layer(whole, entries[name], plan, end) for name, plan in plans.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DamagedCacheError(_message("its index is malformed")) from None
    _verify(layers, {name: entries[name]["sha256"] for name in plans}, progress)
    return layers


def _read_index(path: Path) -> tuple[dict[str, Any], int]:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < len(MAGIC) + _TRAILER.size:
            raise DamagedCacheError(_message("it is truncated"))
        file.seek(size - _TRAILER.size)
        offset, length, digest, magic = _TRAILER.unpack(file.read(_TRAILER.size))
        if magic != MAGIC or length > _MAX_INDEX_BYTES or offset + length + _TRAILER.size != size:
            raise DamagedCacheError(_message("it is truncated or not an encoded-weights file"))
        file.seek(offset)
        raw = file.read(length)
    if hashlib.sha256(raw).digest() != digest:
        raise DamagedCacheError(_message("its index is damaged"))
    index = json.loads(raw)
    if not isinstance(index, dict):
        raise DamagedCacheError(_message("its index is malformed"))
    return index, offset


def _map_layer(whole: np.ndarray[Any, Any], entry: dict[str, Any], plan: Plan, end: int) -> EncodedLayer:
    dtype, shape, offset = (
        np.dtype(entry["dtype"]),
        tuple(int(n) for n in entry["shape"]),
        int(entry["offset"]),
    )
    nbytes = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    if (
        dtype.kind not in "uif"
        or min(shape, default=0) < 0
        or offset % PAGE
        or not 0 < offset <= end - nbytes
    ):
        raise DamagedCacheError(_message("its index is malformed"))
    words = whole[offset : offset + nbytes].view(dtype).reshape(shape)
    return EncodedLayer(entry["name"], plan, int(entry["log_weight_scale"]), words)


def _verify(
    layers: dict[str, EncodedLayer], hashes: dict[str, str], progress: Callable[[int, int], None]
) -> None:
    checked: dict[tuple[int, int], str] = {}

    def matches(name: str) -> bool:
        raw = layers[name].words.reshape(-1).view(np.uint8)
        where = (raw.ctypes.data, raw.nbytes)
        if where not in checked:
            checked[where] = hash_of(raw.data)
        return checked[where] == hashes[name]

    def hash_of(raw: memoryview) -> str:
        digest = hashlib.sha256()
        for start in range(0, len(raw), _HASH_BLOCK):
            digest.update(raw[start : start + _HASH_BLOCK])
        return digest.hexdigest()

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1), "verify") as pool:
        for done, good in enumerate(pool.map(matches, layers), start=1):
            if not good:
                raise DamagedCacheError(_message("a layer's checksum does not match"))
            progress(done, len(layers))


def _message(cause: str) -> str:
    return f"cannot use the encoded weights on disk: {cause}. They are encoded again."
