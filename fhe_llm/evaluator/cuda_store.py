"""What stays on the device between evaluations: keys and weights under a budget, least recently used first out."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from fhe_llm.evaluator.device import Buffer, Device, DeviceMemoryError


@dataclass(frozen=True, slots=True)
class Item:
    """Something that can be brought to the device: ``load`` fills its buffer, and ``source`` lives as long as that."""

    key: Hashable
    nbytes: int
    load: Callable[[Buffer], None]
    source: object = None


@dataclass(slots=True)
class _Entry:
    buffer: Buffer
    source: object
    users: int = 0


class DeviceStore:
    """Thread-safe. Loading happens one at a time, and what needs none does not wait for it. What is leased is never
    evicted."""

    def __init__(self, device: Device, budget: int) -> None:
        self.budget = budget
        self._device = device
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._forgotten: deque[Hashable] = deque()
        self._lock = threading.Lock()  # what is written down here; nobody waits for a device under it
        self._loading = threading.Lock()

    @property
    def used(self) -> int:
        """Bytes held now."""
        with self._lock:
            return self._used()

    def __len__(self) -> int:
        return len(self._entries)

    @contextmanager
    def lease(self, items: Sequence[Item]) -> Iterator[list[int]]:
        """Addresses of ``items``, loaded where they are missing; raises :class:`DeviceMemoryError`."""
        held: list[_Entry] = []
        try:
            with self._lock:
                self._drop_forgotten()
                if all(item.key in self._entries for item in items):
                    held += [self._used_once_more(item.key) for item in items]
            if len(held) < len(items):
                with self._loading:
                    for item in items:
                        held.append(self._brought(item))
            yield [entry.buffer.address for entry in held]
        finally:
            with self._lock:
                for entry in held:
                    entry.users -= 1

    def forget(self, key: Hashable) -> None:
        """Let go of ``key`` at the next lease. May be called from a finaliser, whatever this thread is doing."""
        self._forgotten.append(key)

    def evict(self) -> None:
        """Let go of everything that is not leased."""
        self._shrink(0)

    def _used_once_more(self, key: Hashable) -> _Entry:
        self._entries.move_to_end(key)
        entry = self._entries[key]
        entry.users += 1
        return entry

    def _brought(self, item: Item) -> _Entry:
        with self._lock:
            if item.key in self._entries:
                return self._used_once_more(item.key)
        if item.nbytes > self.budget:
            raise DeviceMemoryError(
                f"cannot bring {item.nbytes >> 20} MiB to the device: its share is {self.budget >> 20} MiB. "
                "Allow more memory, or use a smaller model."
            )
        self._shrink(self.budget - item.nbytes)
        entry = self._loaded(item, again=True)
        if entry is None:  # not where the error is handled: until then it keeps what was allocated
            self._shrink(0)
            self._device.trim()
            entry = self._loaded(item, again=False)
        assert entry is not None  # noqa: S101  it raises where it may not try again
        with self._lock:
            self._entries[item.key] = entry
            return self._used_once_more(item.key)

    def _loaded(self, item: Item, again: bool) -> _Entry | None:
        """The entry, or None where the device is full and there will be another attempt."""
        try:
            buffer = self._device.allocate(item.nbytes)
            item.load(buffer)  # which may need room of its own meanwhile
        except DeviceMemoryError:
            if again:
                return None
            raise
        return _Entry(buffer, item.source)

    def _used(self) -> int:
        return sum(entry.buffer.nbytes for entry in self._entries.values())

    def _shrink(self, most: int) -> None:
        with self._lock:
            used = self._used()
            for key, entry in list(self._entries.items()):
                if used <= most:
                    return
                if not entry.users:
                    used -= entry.buffer.nbytes
                    del self._entries[key]

    def _drop_forgotten(self) -> None:
        for _ in range(len(self._forgotten)):
            key = self._forgotten.popleft()
            entry = self._entries.get(key)
            if entry is not None and entry.users:
                self._forgotten.append(key)
            elif entry is not None:
                del self._entries[key]
