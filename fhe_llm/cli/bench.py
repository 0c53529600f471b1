"""``fhe-llm bench``: figures that may appear in the documentation, with everything needed to judge them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from fhe_llm.cli.asking import DEFAULT_MODEL
from fhe_llm.cli.reporting import echo_json, reported

app = typer.Typer(
    help="Measure: seconds per token, or one product against TenSEAL.", invoke_without_command=True
)
Preset = Annotated[str, typer.Option(help="Encryption parameters.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.callback()
@reported
def bench(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="A known name or a path.")] = DEFAULT_MODEL,
    base_url: Annotated[
        str | None, typer.Option(help="The proxy; without it one is started for this run.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens per answer.", min=2)] = 16,
    repeats: Annotated[int, typer.Option(help="Answers to measure.", min=1)] = 3,
    preset: Preset = "default",
    as_json: AsJson = False,
) -> None:
    """Measure seconds per token of encrypted generation, their split, and the ratio to the plaintext model."""
    if context.invoked_subcommand is not None:
        return
    from fhe_llm.cli.bench_generation import bench_generation

    result = bench_generation(model, tokens, repeats, preset, base_url)
    if as_json:
        echo_json(result)
        return
    _heading(result)
    _line("seconds per token", _range(result["seconds_per_token"]))
    for phase, seconds in result["split_seconds_per_token"].items():
        _line(f"  {phase}", f"{seconds:.4f}")
    _line("seconds to first token", _range(result["seconds_to_first_token"]))
    _line("ratio to plaintext", f"{result['ratio_to_plaintext']:.1f} ({result['plaintext']['engine']})")
    _line("tokens equal plaintext", str(result["tokens_equal_plaintext"]))


@app.command("product")
@reported
def product(
    out_features: Annotated[int, typer.Option("--out", help="Rows of the weights.", min=1)] = 1536,
    in_features: Annotated[int, typer.Option("--in", help="Columns of the weights.", min=1)] = 576,
    repeats: Annotated[int, typer.Option(help="Products to measure.", min=1)] = 15,
    threads: Annotated[
        int | None, typer.Option(help="Threads of the evaluator; all cores by default.", min=1)
    ] = None,
    preset: Preset = "default",
    as_json: AsJson = False,
) -> None:
    """Measure one encrypted product, and TenSEAL's mm on the same matrix."""
    from fhe_llm.cli.bench_product import bench_product, default_threads

    result = bench_product(out_features, in_features, preset, repeats, threads or default_threads())
    if as_json:
        echo_json(result)
        return
    _heading(result)
    for part in ("encrypt", "product", "decrypt"):
        _line(part, f"{_range(result['fhe_llm'][part])} s (TenSEAL: {_range(result['tenseal_mm'][part])} s)")
    _line("log2 error", f"{result['fhe_llm']['log2_error']:.1f}")
    _line("ratio to TenSEAL", f"{result['ratio_to_tenseal']:.0f}")


def _heading(result: dict[str, Any]) -> None:
    device = result["device"]
    typer.echo(
        f"{result['benchmark']}, preset {result['preset']['name']}, {device['cores']} cores of {device['cpu']}"
    )


def _line(label: str, value: str) -> None:
    typer.echo(f"{label:<24}  {value}")


def _range(seconds: dict[str, Any]) -> str:
    return f"{seconds['median']:.4f} ({seconds['minimum']:.4f} to {seconds['maximum']:.4f}, {seconds['runs']} runs)"
