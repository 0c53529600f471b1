"""A file that only this process sees, for SEAL's file-based save and load."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from fhe_llm.errors import KeyRingError

Buffer = bytes | bytearray | memoryview

_MEMORY_FILES = Path("/proc/self/fd")


class ScratchFile:
    """An anonymous memory file where the system has them, else an unnamed-to-others temporary file of mode 0600.

    Contents are overwritten with zeros before they are let go. A memory file is shared with forked children, so
    the owner must open a new one after a fork.
    """

    def __init__(self) -> None:
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        if hasattr(os, "memfd_create") and _MEMORY_FILES.is_dir():
            self._fd = os.memfd_create("scratch", os.MFD_CLOEXEC)
            self.path = str(_MEMORY_FILES / str(self._fd))
        else:
            self._directory = tempfile.TemporaryDirectory(prefix="fhe-llm-")
            self.path = str(Path(self._directory.name) / "scratch")
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, parts: Iterable[Buffer]) -> None:
        """Replace the contents. Raises :class:`KeyRingError` where there is no room."""
        views = [memoryview(part).cast("B") for part in parts]
        total = sum(view.nbytes for view in views)
        if os.pwritev(self._fd, views, 0) != total:
            raise KeyRingError(
                "cannot hand data to SEAL: no memory left for a scratch file. Free some memory."
            )
        os.ftruncate(self._fd, total)

    def read(self) -> bytearray:
        """The whole contents, in a buffer that the caller can overwrite."""
        data = bytearray(os.fstat(self._fd).st_size)
        view, done = memoryview(data), 0
        while done < len(data):
            count = os.preadv(self._fd, [view[done:]], done)
            if count <= 0:
                raise KeyRingError("cannot read data from SEAL: the scratch file shrank. Try again.")
            done += count
        return data

    def pages(self) -> mmap.mmap:
        """The contents as memory to write to; the file must keep its length as long as that is used."""
        return mmap.mmap(self._fd, os.fstat(self._fd).st_size)

    def clear(self) -> None:
        """Overwrite with zeros, then truncate."""
        size = os.fstat(self._fd).st_size
        os.pwrite(self._fd, bytes(size), 0)
        os.ftruncate(self._fd, 0)

    def close(self) -> None:
        """Overwrite and let go; a second call does nothing."""
        if self._fd < 0:
            return
        self.clear()
        os.close(self._fd)
        self._fd = -1
        if self._directory is not None:
            self._directory.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            os.close(self._fd)
            self._fd = -1
