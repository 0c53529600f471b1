"""Encryptions of zero are used once: by nobody twice, not across a fork, a spawn, a crash or threads."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from fhe_llm.client.cipher import Cipher
from fhe_llm.client.keys import KeyRing
from fhe_llm.wire.seed import SEED_BYTES


def seeds_of(cipher: Cipher, count: int) -> set[bytes]:
    """The seeds of ``count`` fresh encryptions; one appears per encryption."""
    seeds, _ = cipher.encrypt_seeded(np.ones((count, cipher.preset.slots), complex))
    found = {row.tobytes() for row in seeds}
    assert len(found) == count
    return found


def report(cipher: Cipher, pipe: Connection) -> None:
    """In a child: encrypt more than was prepared, and say under which seeds."""
    pipe.send_bytes(b"".join(sorted(seeds_of(cipher, 6))))


def from_pipe(data: bytes) -> set[bytes]:
    return {data[at : at + SEED_BYTES] for at in range(0, len(data), SEED_BYTES)}


def test_a_process_forked_in_the_middle_starts_empty(cipher: Cipher) -> None:
    """Half of what is ready is used, then the process forks, as a pre-forking server does, children and all."""
    cipher.prepare(8, seeded=True)
    used = seeds_of(cipher, 4)
    ends = [os.pipe() for _ in range(2)]
    for read, write in ends:
        child = os.fork()
        if child == 0:  # pragma: no cover
            status = 1
            try:
                os.close(read)
                grandchild = os.fork()
                with os.fdopen(write, "wb") as pipe:
                    pipe.write(b"".join(seeds_of(cipher, 6)))
                if grandchild:
                    os.waitpid(grandchild, 0)
                status = 0
            finally:
                os._exit(status)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            theirs = from_pipe(pipe.read())
        assert os.waitpid(child, 0)[1] == 0
        assert len(theirs) == 12  # child and grandchild, six each
        assert not theirs & used
        used |= theirs
    assert cipher.ready(seeded=True) == 4
    assert not seeds_of(cipher, 6) & used


def test_multiprocessing_by_fork_starts_empty(cipher: Cipher) -> None:
    cipher.prepare(6, seeded=True)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=report, args=(cipher, there))
    child.start()
    theirs = from_pipe(here.recv_bytes())
    child.join()
    assert child.exitcode == 0
    assert len(theirs) == 6
    assert not theirs & seeds_of(cipher, 6)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_multiprocessing_by_pickling_is_refused(cipher: Cipher, method: str) -> None:
    cipher.prepare(1, seeded=True)
    context = multiprocessing.get_context(method)
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=report, args=(cipher, there))
    with pytest.raises(TypeError, match="pickle"):
        child.start()
    here.close()
    there.close()


def test_after_a_crash_nothing_prepared_is_left(ring: KeyRing, tmp_path: Path) -> None:
    """A process that dies with a full pool leaves no zero behind: not beside its key, and not in the next process."""
    path = tmp_path / "key"
    ring.save(path)
    program = (
        "import sys, numpy as np\n"
        "from fhe_llm.client.cipher import Cipher\n"
        "from fhe_llm.client.keys import KeyRing\n"
        "cipher = Cipher(KeyRing.load(sys.argv[1]))\n"
        "cipher.prepare(6, seeded=True)\n"
        "ready = [zero.seed for zero in cipher._seeded._ready]\n"
        "seeds, _ = cipher.encrypt_seeded(np.ones((2, cipher.preset.slots), complex))\n"
        "sys.stdout.buffer.write(b''.join(ready) + seeds.tobytes())\n"
        "sys.stdout.buffer.flush()\n"
        "sys.stdin.read()\n"
    )
    seen: set[bytes] = set()
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(path)],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"TMPDIR": str(tmp_path)},
        )
        assert process.stdout is not None
        assert process.stdin is not None
        data = process.stdout.read(8 * SEED_BYTES)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        process.stdin.close()
        theirs = from_pipe(data)
        assert len(theirs) == 6  # what was encrypted came out of the pool
        assert not theirs & seen
        seen |= theirs
    left = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert not any(seed in left for seed in seen)
    assert not seeds_of(Cipher(KeyRing.load(path)), 6) & seen


def test_threads_never_share_a_zero(cipher: Cipher) -> None:
    cipher.prepare(10, seeded=True)
    found: list[bytes] = []

    def work() -> None:
        for _ in range(5):
            found.extend(seeds_of(cipher, 1))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == len(found) == 20
