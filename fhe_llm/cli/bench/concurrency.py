"""Tokens per second of several conversations at once against one proxy, over those of one.

Only the window in which every conversation decodes is counted: from the last one's first token to the first one's
last. Clients and proxy share the machine, so the clients' work is part of what is measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fhe_llm.cli.asking import Served, served
from fhe_llm.cli.bench.proxy_metrics import rounds_per_pass, scrape
from fhe_llm.cli.bench.record import plain, record, spread, usable_cores
from fhe_llm.cli.bench.subject import open_subject
from fhe_llm.errors import TransportError
from fhe_llm.params import preset as find_preset

Moments = list[float]
_STOP_SECONDS = 10.0


class Conversation:
    """A client process that speaks when told to."""

    def __init__(self, proxy: Served, preset: str) -> None:
        command = [
            sys.executable,
            "-m",
            "fhe_llm.cli.bench.conversation",
            proxy.model,
            proxy.base_url,
            preset,
        ]
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def wait_ready(self) -> None:
        """Return once it has connected and warmed up; raises :class:`TransportError`."""
        self._line()

    def start(self, tokens: int) -> None:
        """Let it generate its first token of ``tokens``."""
        self._tell(str(tokens))

    def wait_first(self) -> None:
        """Return once the first token is there."""
        self._line()

    def go_on(self) -> None:
        """Let it decode the rest."""
        self._tell("")

    def moments(self) -> Moments:
        """When it went on and when each further token came, once they all have."""
        found: Moments = json.loads(self._line())
        return found

    def stop(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None  # noqa: S101  it was opened as a pipe
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _line(self) -> str:
        assert self._process.stdout is not None  # noqa: S101  it was opened as a pipe
        line = self._process.stdout.readline()
        if not line:
            raise TransportError(
                "cannot measure: a client process ended early. Read what it wrote to standard error."
            )
        return line


def bench_concurrency(
    model: str,
    levels: Sequence[int],
    tokens: int,
    repeats: int,
    preset: str = "default",
    base_url: str | None = None,
) -> dict[str, Any]:
    """The record of every number of conversations in ``levels``, each answering with ``tokens`` tokens."""
    subject = open_subject(model)
    name = model if base_url is None else subject.source.config.name
    with served(base_url, name, preset) as proxy, _conversations(proxy, preset, max(levels)) as conversations:
        sweep = [_level(proxy, conversations[:level], tokens, repeats) for level in levels]
    figures = {
        "model": subject.source.config.name,
        "model_digest": subject.source.model_digest,
        "tokens": tokens,
        "threads": {"proxy": usable_cores() if base_url is None else None, "clients": 1},
        "proxy": "same machine" if base_url is None else base_url,
        "sweep": sweep,
        "ratio_to_one_conversation": {
            str(found["conversations"]): found["tokens_per_second"] / sweep[0]["tokens_per_second"]
            for found in sweep
        },
    }
    return record("concurrency", find_preset(preset), figures)


def rate(conversations: Sequence[Moments]) -> float:
    """Tokens per second over all conversations while all of them decode."""
    first, last = max(moments[0] for moments in conversations), min(moments[-1] for moments in conversations)
    tokens = sum(1 for moments in conversations for moment in moments if first < moment <= last)
    return tokens / (last - first) if last > first else 0.0


@contextmanager
def _conversations(proxy: Served, preset: str, count: int) -> Iterator[list[Conversation]]:
    with ExitStack() as stack:
        found: list[Conversation] = []
        for _ in range(count):
            found.append(Conversation(proxy, preset))
            stack.callback(found[-1].stop)
        for conversation in found:
            conversation.wait_ready()
        yield found


def _level(proxy: Served, conversations: Sequence[Conversation], tokens: int, repeats: int) -> dict[str, Any]:
    before, pids = scrape(proxy.base_url), [c.pid for c in conversations]
    clients, own = _cpu(pids), None if proxy.process is None else [proxy.process.pid]
    served_before = None if own is None else _cpu(own)
    runs: list[list[Moments]] = []
    for _ in range(repeats):
        for conversation in conversations:
            conversation.start(tokens)
        for conversation in conversations:
            conversation.wait_first()
        for conversation in conversations:
            conversation.go_on()
        runs.append([conversation.moments() for conversation in conversations])
    each = [(m[-1] - m[0]) / max(1, len(m) - 1) for run in runs for m in run]
    rates, produced = spread([rate(run) for run in runs]), sum(len(m) for run in runs for m in run)
    return {
        "conversations": len(conversations),
        "tokens_per_second": rates.median,
        "tokens_per_second_spread": plain(rates),
        "seconds_per_token": plain(spread(each)),
        "rounds_per_pass": rounds_per_pass(before, scrape(proxy.base_url)),
        "client_cpu_seconds_per_token": (_cpu(pids) - clients) / produced,
        "proxy_cpu_seconds_per_token": None
        if own is None or served_before is None
        else (_cpu(own) - served_before) / produced,
    }


def _cpu(pids: Sequence[int]) -> float:
    """Processor seconds the processes have used so far (Linux): they tell the cost of a token on a busy machine too."""
    ticks = os.sysconf("SC_CLK_TCK")
    stats = [Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split() for pid in pids]
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / ticks
