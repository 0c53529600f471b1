"""Work in a forked child, beside the parent's."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def forked(work: Callable[[], bytes]) -> Iterator[Callable[[], bytes]]:
    """``work`` in a child, beside the block; call what is yielded for its result, once."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        status = 1
        try:
            os.close(read)
            with os.fdopen(write, "wb") as pipe:
                pipe.write(work())
            status = 0
        except BaseException:  # noqa: BLE001  whatever it is, it must be shown and must not go on
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(write)

    def result() -> bytes:
        with os.fdopen(read, "rb", closefd=False) as pipe:
            return pipe.read()

    yield result
    os.close(read)
    assert os.waitpid(child, 0)[1] == 0
