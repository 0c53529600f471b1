"""What a proxy holds in memory after serving, what one client's keys take, and what one token costs by count."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fhe_llm.cli.asking import served
from fhe_llm.cli.bench.counts import layer_counts, token_counts
from fhe_llm.cli.bench.decode import decoded
from fhe_llm.cli.bench.proxy_metrics import scrape
from fhe_llm.cli.bench.record import record, usable_cores
from fhe_llm.cli.bench.subject import PROMPT, open_subject, plain_settings
from fhe_llm.errors import FheLlmError
from fhe_llm.llm import EncryptedLLM
from fhe_llm.models.config import linear_shapes
from fhe_llm.params import preset as find_preset

KIB = 1024


def bench_memory(model: str, tokens: int, clients: int, preset: str = "default") -> dict[str, Any]:
    """The record of a proxy of our own after ``clients`` clients had an answer of ``tokens`` tokens each.

    ``rss`` counts every page the process maps, the encoded weights' file among them; ``pss`` shares common pages out;
    ``anonymous`` is what no file backs, and cannot be dropped under pressure.
    """
    subject, parameters = open_subject(model), find_preset(preset)
    with (
        TemporaryDirectory(prefix="fhe-llm-bench-") as folder,
        served(None, model, preset, Path(folder)) as proxy,
    ):
        assert proxy.process is not None  # noqa: S101  a proxy of our own has a process
        started = resident(proxy.process.pid)
        for _ in range(clients):
            with EncryptedLLM(proxy.model, proxy.base_url, preset=preset, **plain_settings()) as llm:
                first, whole = (llm.generate(PROMPT, max_tokens=count) for count in (1, tokens))
        after, metrics = resident(proxy.process.pid), scrape(proxy.base_url)
    up, down, rounds = decoded(first, whole)
    shapes = linear_shapes(subject.source.config)
    figures = {
        "model": subject.source.config.name,
        "model_digest": subject.source.model_digest,
        "threads": {"proxy": usable_cores()},
        "clients": clients,
        "proxy_bytes_at_start": started,
        "proxy_bytes_after_serving": after,
        "key_bytes_per_client": metrics["fhe_llm_key_file_bytes"] / clients,
        "prepared_key_bytes_per_client": metrics["fhe_llm_prepared_key_bytes"] / clients,
        "bytes_per_token": {"up": up, "down": down},
        "rounds_per_token": rounds,
        "counts_per_token": token_counts(parameters, shapes),
        "counts_per_layer": layer_counts(parameters, shapes),
    }
    return record("memory", parameters, figures)


def resident(pid: int) -> dict[str, int]:
    """Bytes of a process by the kernel's own accounts (Linux); raises :class:`FheLlmError` elsewhere."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()[1:]
    except OSError as error:
        raise FheLlmError(
            f"cannot read the memory of process {pid}: {error.strerror}. Run this on Linux, as the same user."
        ) from None
    found = {name: int(rest.split()[0]) * KIB for name, _, rest in (line.partition(":") for line in lines)}
    return {
        name: found[field] for name, field in (("rss", "Rss"), ("pss", "Pss"), ("anonymous", "Anonymous"))
    }
