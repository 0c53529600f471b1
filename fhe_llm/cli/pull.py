"""``fhe-llm pull``: fetch a model's files before they are needed."""

from __future__ import annotations

from typing import Annotated

import typer

from fhe_llm.cli.reporting import echo_json, reported


@reported
def pull(
    model: Annotated[
        str, typer.Argument(help="A known name, a .gguf file or a folder of safetensors.")
    ] = "smollm2-135m",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fetch and check a model's files (for whoever runs the proxy; clients need no weights)."""
    from fhe_llm import progress
    from fhe_llm.models.resolve import open_model, resolve

    path = resolve(model, progress=progress.bar())
    source = open_model(path)
    size = sum(
        file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()) if file.is_file()
    )
    facts = {
        "model": source.config.name,
        "path": str(path),
        "bytes": size,
        "model_digest": source.model_digest,
    }
    if as_json:
        echo_json(facts)
    else:
        typer.echo(f"{facts['model']}: {path} ({size / 1e6:.1f} MB, digest {source.model_digest[:16]})")
