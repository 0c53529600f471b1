"""The sections of the performance page: records in, Markdown out. A section without its record is an empty string."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

Records = Mapping[str, dict[str, Any]]
Rows = Sequence[Sequence[str]]

PHASES: Final = {
    "encrypt": "client: pack, encode, encrypt",
    "wire": "both: frames, transport, event loop",
    "queue": "proxy: waiting for the evaluator",
    "rotations": "proxy: hoisted rotations",
    "products": "proxy: products with the weights",
    "finish": "proxy: giant steps, rescaling",
    "decrypt": "client: decrypt, decode, unpack",
    "model": "client: attention, norms, sampling",
}


def table(head: Sequence[str], rows: Rows) -> str:
    """A Markdown table, first column left, the others right."""
    line = "| " + " | ".join(head) + " |\n|---|" + "---:|" * (len(head) - 1) + "\n"
    return line + "".join("| " + " | ".join(row) + " |\n" for row in rows)


def seconds(value: float) -> str:
    """Three digits in the unit that suits."""
    if value >= 1:
        return f"{value:.3g} s"
    return f"{1e3 * value:.3g} ms" if value >= 1e-3 else f"{1e6 * value:.3g} µs"


def ranged(spread: Mapping[str, Any]) -> str:
    """Median and range."""
    return f"{seconds(spread['median'])} ({seconds(spread['minimum'])} to {seconds(spread['maximum'])})"


def size(value: float) -> str:
    """Bytes in the unit that suits."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value:.0f} B"


def where(record: Mapping[str, Any], command: str) -> str:
    """The line under a section's heading: the command, and what it ran on."""
    device, preset = record["device"], record["preset"]
    primes = ",".join(map(str, preset["prime_bits"]))
    return (
        f"`fhe-llm bench {command}`, {device['cores']} cores of {device['cpu']}, "
        f"threads {_threads(record['threads'])}, "
        f"preset {preset['name']} (N = {preset['ring_degree']}, primes {primes}), commit {record['commit']}, "
        f"{record['date'][:10]}, load average {device.get('load_average', 'unknown')}.\n\n"
    )


def targets(records: Records) -> str:
    """What was promised beside what was measured."""
    rows = [
        (what, must, aim, measure(records)) for what, must, aim, needs, measure in TARGETS if needs in records
    ]
    return (
        "## Targets\n\n" + table(("SmolLM2-135M-Instruct", "must", "aim", "measured"), rows) if rows else ""
    )


def decoding(records: Records) -> str:
    """Where a token's time goes."""
    if (record := records.get("decode")) is None:
        return ""
    split = record["split_seconds_per_token"]
    total = sum(split.values()) or 1.0
    rows = [(PHASES[name], seconds(value), f"{value / total:.0%}") for name, value in split.items()]
    return (
        "## Where a token's time goes\n\n"
        + where(record, "decode")
        + f"One conversation, {record['prompt_tokens']} prompt tokens, {record['tokens']} decoded, no speculation, "
        f"nothing cached: {ranged(record['seconds_per_token_spread'])} a token. The same model in the clear, turn by "
        f"turn in the same run, with {record['plaintext_backend']}: "
        f"{ranged(record['plaintext_seconds_per_token_spread'])}. That is "
        f"**{record['ratio_to_plaintext']:.1f} times** the plaintext's time, {size(record['bytes_per_token'])} and "
        f"{record['rounds_per_token']:.0f} rounds a token.\n\n"
        "![Stacked bars of a decoded and of a prompt token's time](results/time.svg)\n\n"
        + table(("part of a decoded token", "time", "share"), rows)
    )


def prefilling(records: Records) -> str:
    """The first token."""
    if (record := records.get("prefill")) is None:
        return ""
    rows = [
        (
            name,
            ranged(found["seconds_to_first_token_spread"]),
            ranged(found["plaintext_seconds_to_first_token_spread"]),
            size(found["bytes_per_prompt_token"]),
            f"{found['rounds']}",
        )
        for name, found in (
            ("nothing cached", record["nothing_cached"]),
            ("template and system prompt cached", record["prefix_cached"]),
        )
        if found is not None
    ]
    head = ("", "first token", "in the clear", "bytes per prompt token", "rounds")
    return (
        f"## First token of a {record['prompt_tokens']}-token chat prompt\n\n"
        + where(record, "prefill")
        + table(head, rows)
    )


def one_product(records: Records) -> str:
    """Against TenSEAL, and by width."""
    if (record := records.get("product")) is None:
        return _by_width(records)
    rows = [
        (
            f"{found['shape']['in_features']} → {found['shape']['out_features']}",
            ranged(found["fhe_llm"]["product"]),
            ranged(found["tenseal_mm"]["product"]),
            f"{found['ratio_to_tenseal']:.0f}×",
            f"{found['fhe_llm']['log2_error']:.1f} / {found['tenseal_mm']['log2_error']:.1f}",
        )
        for found in (record, *record["others"])
    ]
    head = ("in → out", "ours", "TenSEAL `.mm`, N = 8192", "ratio", "log2 error, ours / theirs")
    return "## One product\n\n" + where(record, "product") + table(head, rows) + _by_width(records)


def _by_width(records: Records) -> str:
    if (record := records.get("width")) is None:
        return ""
    rows = [
        (
            f"{found['width']}",
            ranged(found["product"]),
            f"{found['rotations']}",
            f"{found['products']}",
            f"{found['weight_bytes_per_second'] / 1e9:.1f} GB/s",
            f"{found['share']:.0%}",
        )
        for found in record["widths"]
    ]
    head = (
        "width",
        "W·x, W square",
        "rotations",
        "products",
        "weights read at",
        "of the memory's bandwidth",
    )
    return (
        "\n### Cost against the model's width\n\n"
        + where(record, "width")
        + "![Time of a product against width](results/width.svg)\n\n"
        + table(head, rows)
        + f"\nReading an array larger than the caches with as many threads, in the same run, reaches "
        f"{record['read_bytes_per_second'] / 1e9:.1f} GB/s. The share is that of the products' phase alone: "
        "how near it is to being bound by memory.\n\n![Share of the memory's bandwidth](results/bandwidth.svg)\n"
    )


def conversations(records: Records) -> str:
    """Several at once."""
    if (record := records.get("concurrency")) is None:
        return ""
    ratios = record["ratio_to_one_conversation"]
    rows = [
        (
            f"{found['conversations']}",
            f"{found['tokens_per_second']:.2f}",
            f"{ratios[str(found['conversations'])]:.2f}×",
            ranged(found["seconds_per_token"]),
            "-" if found["rounds_per_pass"] is None else f"{found['rounds_per_pass']:.2f}",
            " + ".join(
                "-" if (cpu := found.get(f"{side}_cpu_seconds_per_token")) is None else seconds(cpu)
                for side in ("proxy", "client")
            ),
        )
        for found in record["sweep"]
    ]
    head = (
        "conversations",
        "tokens per second",
        "over one",
        "seconds per token of each",
        "rounds per pass",
        "processor time of a token, proxy + client",
    )
    return (
        "## Conversations at once\n\n"
        + where(record, "concurrency")
        + "Every conversation is a client process with a key of its own; clients and proxy share the cores.\n\n"
        "![Latency and throughput against conversations](results/concurrency.svg)\n\n" + table(head, rows)
    )


def holdings(records: Records) -> str:
    """Memory, keys, counts."""
    if (record := records.get("memory")) is None:
        return ""
    after, counts = record["proxy_bytes_after_serving"], record["counts_per_token"]
    rows = [
        ("proxy, resident (RSS)", size(after["rss"])),
        ("proxy, proportional (PSS)", size(after["pss"])),
        ("proxy, backed by no file", size(after["anonymous"])),
        ("evaluation keys of a client, on the wire", size(record["key_bytes_per_client"])),
        ("evaluation keys of a client, prepared", size(record["prepared_key_bytes_per_client"])),
    ]
    per_token = [(name.replace("_", " "), f"{value:,}") for name, value in counts.items()]
    layers = [
        (
            name.removeprefix("layers."),
            f"{found['in_features']} → {found['out_features']}",
            *(f"{found[column]}" for column in ("rotations", "products", "ntts")),
        )
        for name, found in record["counts_per_layer"].items()
    ]
    return (
        "## Memory, keys and counts\n\n"
        + where(record, "memory")
        + table((f"after serving {record['clients']} clients", "bytes"), rows)
        + "\nCounts do not depend on the machine; tests hold them.\n\n"
        + table(("of one decoded token", "count"), per_token)
        + "\n"
        + table(("layer", "in → out", "rotations", "products", "transforms"), layers)
    )


def wire(records: Records) -> str:
    """Proxy and wire without the arithmetic."""
    if (record := records.get("overhead")) is None:
        return ""
    named = [("all layers", record["overhead_seconds"])]
    named += [(k.removeprefix("layers."), v) for k, v in record["overhead_seconds_by_layer"].items()]
    rows = [(name, seconds(found["p50"]), seconds(found["p95"])) for name, found in named]
    return (
        "## Proxy and wire without the arithmetic\n\n"
        + where(record, "overhead")
        + f"{record['rounds']} recorded rounds sent again over one WebSocket: the round trip less the evaluator's "
        "time.\n\n" + table(("per round", "p50", "p95"), rows)
    )


def in_the_clear(records: Records) -> str:
    """The plaintext's own figures."""
    if (record := records.get("plaintext")) is None:
        return ""
    rows = [
        (found["engine"], ranged(found["seconds_per_token"]), ranged(found["seconds_to_first_token"]))
        for found in record["engines"]
    ]
    return (
        "## The same model in the clear\n\n"
        + where(record, "plaintext")
        + table(("engine", "a token", f"first token of {record['prompt_tokens']}"), rows)
    )


def planner(records: Records) -> str:
    """The cost model against this machine."""
    if (record := records.get("calibrate")) is None:
        return ""
    rows = [
        (name, f"{record['in_use'][name]:.3g}", f"{record['fitted'][name]:.3g}") for name in record["fitted"]
    ]
    layers = [
        (
            name.removeprefix("layers."),
            "the same" if found["same"] else "another",
            seconds(1e-6 * found["in_use"]["cost_microseconds"]),
            seconds(1e-6 * found["fitted"]["cost_microseconds"]),
        )
        for name, found in record["layers"].items()
    ]
    return (
        "## The planner's costs\n\n"
        + where(record, "calibrate")
        + "Both sides plan with the costs in the source, so that plans agree; the fit shows what this machine "
        "would say. "
        f"Median error of the fit: {record['median_error']:.0%}.\n\n"
        + table(("microseconds of one", "in use", "fitted"), rows)
        + "\n"
        + table(("layer", "plan under the fit", "plan in use", "plan of the fit"), layers)
    )


def _threads(threads: Any) -> str:
    if isinstance(threads, dict):
        return ", ".join(f"{name} {count}" for name, count in threads.items() if count is not None)
    return str(threads)


def _cached(records: Records) -> str:
    found = records["prefill"]["prefix_cached"]
    return "-" if found is None else seconds(found["seconds_to_first_token"])


TARGETS: Final[tuple[tuple[str, str, str, str, Callable[[Records], str]], ...]] = (
    (
        "decode, time per token over plaintext",
        "≤ 20×",
        "≤ 8×",
        "decode",
        lambda r: (
            f"{r['decode']['ratio_to_plaintext']:.1f}× ({r['decode']['plaintext_backend'].split(' (')[0]})"
        ),
    ),
    (
        "first token of a 45-token chat prompt",
        "≤ 12 s",
        "≤ 5 s",
        "prefill",
        lambda r: seconds(r["prefill"]["nothing_cached"]["seconds_to_first_token"]),
    ),
    ("the same, template and system prompt cached", "≤ 4 s", "≤ 2 s", "prefill", _cached),
    (
        "768×768 product over TenSEAL `.mm`",
        "≥ 300×",
        "≥ 1000×",
        "product",
        lambda r: f"{r['product']['ratio_to_tenseal']:.0f}×",
    ),
    (
        "bytes per decoded token",
        "≤ 10 MB",
        "≤ 5 MB",
        "decode",
        lambda r: size(r["decode"]["bytes_per_token"]),
    ),
    (
        "bytes per prompt token",
        "≤ 4 MB",
        "≤ 2 MB",
        "prefill",
        lambda r: size(r["prefill"]["nothing_cached"]["bytes_per_prompt_token"]),
    ),
    (
        "evaluation keys per client",
        "≤ 12 MB",
        "≤ 6 MB",
        "memory",
        lambda r: size(r["memory"]["key_bytes_per_client"]),
    ),
    (
        "proxy resident memory",
        "≤ 2.5 GB",
        "≤ 1.5 GB",
        "memory",
        lambda r: size(r["memory"]["proxy_bytes_after_serving"]["rss"]),
    ),
    (
        "eight conversations, tokens per second over one",
        "≥ 1.4×",
        "≥ 2.5×",
        "concurrency",
        lambda r: f"{r['concurrency']['ratio_to_one_conversation'].get('8', float('nan')):.2f}×",
    ),
    (
        "proxy and wire without arithmetic, per round, p95",
        "≤ 5 ms",
        "≤ 2 ms",
        "overhead",
        lambda r: seconds(r["overhead"]["overhead_seconds"]["p95"]),
    ),
)
"""What, must, aim, the record it is read from, and how."""

SECTIONS: Final[tuple[Callable[[Records], str], ...]] = (
    targets,
    decoding,
    prefilling,
    one_product,
    conversations,
    holdings,
    wire,
    in_the_clear,
    planner,
)
