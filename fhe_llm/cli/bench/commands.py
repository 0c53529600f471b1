"""The commands of ``fhe-llm bench``. Each imports what it measures when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fhe_llm.cli.asking import DEFAULT_MODEL
from fhe_llm.cli.bench.show import show_record
from fhe_llm.cli.reporting import echo_json, reported

app = typer.Typer(
    help="Measure this machine: a whole generation, or one part of it by name.", invoke_without_command=True
)
Model = Annotated[str, typer.Option(help="A known name or a path.")]
BaseUrl = Annotated[str | None, typer.Option(help="The proxy; without it one is started for this run.")]
Tokens = Annotated[int, typer.Option(help="Tokens per answer.", min=2)]
Repeats = Annotated[int, typer.Option(help="Runs to measure.", min=1)]
Threads = Annotated[int | None, typer.Option(help="Threads of the evaluator; all cores by default.", min=1)]
Preset = Annotated[str, typer.Option(help="Encryption parameters.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Output = Annotated[
    Path | None,
    typer.Option(help="Also write the JSON here: docs/results/NAME.json feeds the documentation."),
]


@app.callback()
@reported
def bench(
    context: typer.Context,
    model: Model = DEFAULT_MODEL,
    base_url: BaseUrl = None,
    tokens: Tokens = 16,
    repeats: Repeats = 3,
    preset: Preset = "default",
    output: Output = None,
    as_json: AsJson = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="The same as the command of that name.")
    ] = False,
    with_product: Annotated[
        bool,
        typer.Option("--product/--no-product", help="Also one 576 to 1536 product against TenSEAL's mm."),
    ] = True,
) -> None:
    """Measure seconds per token of encrypted generation, their split, the ratio to the plaintext model, and one product
    against TenSEAL."""
    if context.invoked_subcommand is not None:
        return
    if calibrate:
        from fhe_llm.cli.bench.calibrate import bench_calibrate

        _finish(bench_calibrate(model, repeats, preset, _threads(None)), output, as_json)
        return
    from fhe_llm.cli.bench.generation import bench_generation
    from fhe_llm.cli.bench.product import compare_product
    from fhe_llm.params import preset as find_preset

    result = bench_generation(model, tokens, repeats, preset, base_url)
    if with_product:
        result["product"] = compare_product(find_preset(preset), 1536, 576, 1, _threads(None))
    _finish(result, output, as_json)


@app.command("decode")
@reported
def decode(
    model: Model = DEFAULT_MODEL,
    base_url: BaseUrl = None,
    tokens: Tokens = 16,
    repeats: Repeats = 5,
    preset: Preset = "default",
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Measure decoding alone, turn by turn with the plaintext model."""
    from fhe_llm.cli.bench.decode import bench_decode

    _finish(bench_decode(model, tokens, repeats, preset, base_url), output, as_json)


@app.command("prefill")
@reported
def prefill(
    model: Model = DEFAULT_MODEL,
    base_url: BaseUrl = None,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of the chat prompt.", min=1)] = 45,
    repeats: Repeats = 3,
    preset: Preset = "default",
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Measure the first token of a chat prompt, with nothing and with the shared prefix remembered."""
    from fhe_llm.cli.bench.prefill import bench_prefill

    _finish(bench_prefill(model, prompt_tokens, repeats, preset, base_url), output, as_json)


@app.command("product")
@reported
def product(
    out_features: Annotated[
        int | None, typer.Option("--out", help="Rows of the weights; 768 and 1536 by default.", min=1)
    ] = None,
    in_features: Annotated[
        int | None, typer.Option("--in", help="Columns of the weights; 768 and 576 by default.", min=1)
    ] = None,
    repeats: Repeats = 15,
    threads: Threads = None,
    preset: Preset = "default",
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Measure one encrypted product, and TenSEAL's mm on the same matrix."""
    from fhe_llm.cli.bench.product import SHAPES, bench_product

    asked = out_features or in_features
    shapes = [(out_features or 768, in_features or 768)] if asked else SHAPES
    _finish(bench_product(shapes, preset, repeats, _threads(threads)), output, as_json)


@app.command("width")
@reported
def width(
    widths: Annotated[str, typer.Option(help="Widths, with commas.")] = "256,512,768,1024,1536,2048",
    repeats: Repeats = 9,
    threads: Threads = None,
    preset: Preset = "default",
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Measure square products of several widths, and the share of the memory's bandwidth their weights reach."""
    from fhe_llm.cli.bench.width import bench_width

    _finish(bench_width(_numbers(widths), preset, repeats, _threads(threads)), output, as_json)


@app.command("plaintext")
@reported
def plaintext(
    model: Model = DEFAULT_MODEL,
    tokens: Tokens = 16,
    repeats: Repeats = 5,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Measure the model in the clear with every engine that is installed."""
    from fhe_llm.cli.bench.plaintext import bench_plaintext

    _finish(bench_plaintext(model, tokens, repeats), output, as_json)


@app.command("concurrency")
@reported
def concurrency(
    model: Model = DEFAULT_MODEL,
    base_url: BaseUrl = None,
    levels: Annotated[str, typer.Option(help="Conversations at once, with commas.")] = "1,2,4,8",
    tokens: Tokens = 8,
    repeats: Repeats = 2,
    preset: Preset = "default",
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Measure several conversations at once against one proxy."""
    from fhe_llm.cli.bench.concurrency import bench_concurrency

    _finish(bench_concurrency(model, _numbers(levels), tokens, repeats, preset, base_url), output, as_json)


@app.command("memory")
@reported
def memory(
    model: Model = DEFAULT_MODEL,
    tokens: Tokens = 4,
    clients: Annotated[int, typer.Option(help="Clients, each with a key of its own.", min=1)] = 2,
    preset: Preset = "default",
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Measure a proxy's memory after serving, keys per client, and the counts of one token."""
    from fhe_llm.cli.bench.memory import bench_memory

    _finish(bench_memory(model, tokens, clients, preset), output, as_json)


@app.command("overhead")
@reported
def overhead(
    model: Model = DEFAULT_MODEL,
    base_url: BaseUrl = None,
    passes: Annotated[int, typer.Option(help="Times the rounds of one token.", min=1)] = 3,
    preset: Preset = "default",
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Measure proxy and wire without the arithmetic, per round."""
    from fhe_llm.cli.bench.overhead import bench_overhead

    _finish(bench_overhead(model, passes, preset, base_url), output, as_json)


@app.command("calibrate")
@reported
def calibrate(
    model: Model = DEFAULT_MODEL,
    repeats: Repeats = 7,
    threads: Threads = None,
    preset: Preset = "default",
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Fit the planner's cost model to this machine; no plan changes by it."""
    from fhe_llm.cli.bench.calibrate import bench_calibrate

    _finish(bench_calibrate(model, repeats, preset, _threads(threads)), output, as_json)


def _finish(result: dict[str, Any], output: Path | None, as_json: bool) -> None:
    if output is not None:
        from fhe_llm.cli.bench.record import keep

        keep(result, output)
    if as_json:
        echo_json(result)
    else:
        show_record(result)


def _threads(asked: int | None) -> int:
    from fhe_llm.cli.bench.record import usable_cores

    return asked or usable_cores()


def _numbers(text: str) -> list[int]:
    """Whole numbers from 1, with commas between them; raises :class:`RequestError`."""
    from fhe_llm.errors import RequestError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise RequestError(f"cannot read the numbers {text!r}: each must be 1 or more. Write them as 1,2,4.")
    return [int(part) for part in parts]
