"""``fhe-llm inspect``: look into a key file, a plan, a model or a frame, without running anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fhe_llm.cli.keys import load_keys
from fhe_llm.cli.reporting import echo_json, reported
from fhe_llm.errors import FheLlmError, FrameError

app = typer.Typer(help="Look into a key file, a plan, a model or a frame.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command("keys")
@reported
def inspect_keys(path: Annotated[Path, typer.Argument(help="A key file.")], as_json: AsJson = False) -> None:
    """Show what a key file is; never the key."""
    with load_keys(path) as ring:
        size = path.stat().st_size
        evaluation = path.with_name(path.name + ".evaluation")
        facts = {
            "path": str(path),
            "preset": ring.preset.name,
            "ring_degree": ring.preset.ring_degree,
            "log_qp": ring.preset.log_qp,
            "security_bits": ring.preset.security_bits,
            "security_row": ring.preset.table_row,
            "key_id": ring.key_id.hex() if ring.key_id else None,
            "bytes": size,
            "evaluation_bytes": evaluation.stat().st_size if evaluation.exists() else 0,
        }
    show(facts, as_json=as_json)


@app.command("plan")
@reported
def inspect_plan(
    out_features: Annotated[int, typer.Argument(help="Rows of the weights.")],
    in_features: Annotated[int, typer.Argument(help="Columns of the weights.")],
    preset: Annotated[str, typer.Option(help="Encryption parameters.")] = "default",
    as_json: AsJson = False,
) -> None:
    """Show how a product y = W x is laid out over slots, rotations and products."""
    from fhe_llm.evaluator.plan import plan_linear
    from fhe_llm.params import preset as find_preset

    plan = plan_linear(find_preset(preset), out_features, in_features)
    facts = {
        "preset": preset,
        "out_features": out_features,
        "in_features": in_features,
        "fold": plan.fold,
        "input_ciphertexts": plan.input_ciphertexts,
        "output_ciphertexts": plan.output_ciphertexts,
        "key_rotations": len(plan.rotations),
        "rotations": plan.rotation_count,
        "products": plan.product_count,
        "plan_id": plan.plan_id.hex(),
    }
    show(facts, as_json=as_json)


@app.command("model")
@reported
def inspect_model(
    model: Annotated[str, typer.Argument(help="A known name or a path.")] = "smollm2-135m",
    as_json: AsJson = False,
) -> None:
    """Show a model's shape, and what of it runs where."""
    from fhe_llm import progress
    from fhe_llm.models.bundle import PINNED_DIGESTS
    from fhe_llm.models.config import linear_shapes
    from fhe_llm.models.resolve import open_model

    source = open_model(model, progress=progress.bar())
    shapes = linear_shapes(source.config)
    facts = {
        **source.config.model_dump(mode="json"),
        "model_digest": source.model_digest,
        "bundle_pinned": source.config.name in PINNED_DIGESTS,
        "proxy_layers": len(shapes),
        "proxy_weights": sum(rows * columns for rows, columns in shapes.values()),
        "rounds_per_token": len(shapes),
    }
    show(facts, as_json=as_json)


@app.command("frame")
@reported
def inspect_frame(
    path: Annotated[Path, typer.Argument(help="A file with one frame.")], as_json: AsJson = False
) -> None:
    """Show the fields of a recorded frame."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FheLlmError(f"cannot read {path}: {error.strerror}. Check the path.") from None
    show({"path": str(path), "bytes": len(data), **frame_facts(data)}, as_json=as_json)


def frame_facts(data: bytes) -> dict[str, Any]:
    """The fields of a frame that are not ciphertext; raises :class:`FrameError`."""
    from fhe_llm.wire import frame as wire

    match wire.decode(data):
        case wire.EvaluateRequest() as request:
            return {
                "kind": "evaluate request",
                "preset": request.preset.name,
                "layer": request.layer,
                "jobs": request.jobs,
                "ciphertexts": request.jobs * request.words.shape[1],
                "seeded": request.seeds is not None,
                "dropped_bits": request.drop0,
                "key_id": request.key_id.hex(),
                "model_digest": request.model_digest.hex(),
                "plan_id": request.plan_id.hex(),
            }
        case wire.EvaluateReply() as reply:
            return {
                "kind": "evaluate reply",
                "preset": reply.preset.name,
                "jobs": reply.words.shape[0],
                "ciphertexts": reply.words.shape[0] * reply.words.shape[1],
                "limbs": reply.words.shape[3],
                "dropped_bits": [reply.drop0, reply.drop1],
            }
        case wire.KeyFrame() as keys:
            return {
                "kind": "evaluation keys",
                "preset": keys.preset.name,
                "elements": len(keys.elements),
                "key_id": wire.key_id(data).hex(),
            }
        case wire.ErrorFrame() as error:
            return {"kind": "error", "code": error.code, "message": error.message}
    raise FrameError("cannot show this frame: its kind is unknown. Use a newer fhe-llm.", reason="bad_kind")


def show(facts: Mapping[str, Any], *, as_json: bool) -> None:
    """One JSON object, or one aligned line per fact."""
    if as_json:
        echo_json(dict(facts))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        typer.echo(f"{name.replace('_', ' '):<{width}}  {value}")
