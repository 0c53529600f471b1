"""``fhe-llm inspect``: look into a key file, a plan, a model or a frame, without running anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fhe_llm.cli.bench.show import show_figures
from fhe_llm.cli.keys import load_keys
from fhe_llm.cli.reporting import echo_json, reported
from fhe_llm.errors import FheLlmError, FrameError, ParameterError

if TYPE_CHECKING:
    from fhe_llm.evaluator.packed_plan import PackedPlan, Plan
    from fhe_llm.params import Preset

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
    out_features: Annotated[int | None, typer.Argument(help="Rows of the weights.")] = None,
    in_features: Annotated[int | None, typer.Argument(help="Columns of the weights.")] = None,
    shape: Annotated[
        str | None, typer.Option(help="Rows and columns as OUTxIN, in place of two arguments.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Every kind of layer of this model.")] = None,
    preset: Annotated[str, typer.Option(help="Encryption parameters.")] = "default",
    as_json: AsJson = False,
) -> None:
    """Show how a product y = W x, or every layer of a model, is laid out, what it counts and what it costs."""
    from fhe_llm.params import preset as find_preset

    parameters = find_preset(preset)
    if model is not None:
        show(_model_plans(parameters, model), as_json=as_json)
    else:
        show(plan_facts(parameters, *_plan_shape(out_features, in_features, shape)), as_json=as_json)


def plan_facts(parameters: Preset, out_features: int, in_features: int) -> dict[str, Any]:
    """A plan's layout, its counts, its cost under the planner's model, and the plans for groups of tokens beside it;
    raises :class:`ParameterError`."""
    from fhe_llm.evaluator.counts import counts
    from fhe_llm.evaluator.packed_plan import packed_plans
    from fhe_llm.evaluator.plan import CostModel, plan_linear

    plan = plan_linear(parameters, out_features, in_features)
    return {
        "preset": parameters.name,
        "out_features": out_features,
        "in_features": in_features,
        "fold": plan.fold,
        "segments": plan.segments,
        "diagonals": plan.diagonals,
        "first_rotation": plan.first_rotation,
        "baby_steps": plan.baby_steps,
        "giant_steps": len(plan.giant_rotations),
        "key_rotations": len(plan.rotations),
        **asdict(counts(plan)),
        **_wire_bytes(parameters, plan),
        "cost_microseconds": plan.cost(CostModel()),
        "plan_id": plan.plan_id.hex(),
        "packed": [
            _packed_facts(parameters, group) for group in packed_plans(parameters, out_features, in_features)
        ],
    }


def _packed_facts(parameters: Preset, plan: PackedPlan) -> dict[str, Any]:
    """What one group of tokens counts, whether all its places are taken or not."""
    return {
        "tokens": plan.tokens,
        "rotations": plan.rotation_count,
        "products": plan.product_count,
        "input_ciphertexts": plan.input_ciphertexts,
        "output_ciphertexts": plan.output_ciphertexts,
        **_wire_bytes(parameters, plan),
        "plan_id": plan.plan_id.hex(),
    }


def _wire_bytes(parameters: Preset, plan: Plan) -> dict[str, int]:
    """Bytes of one evaluation's ciphertexts, without the header of the frame they travel in. A proxy may leave low bits
    of a reply out."""
    from fhe_llm.client.trimming import input_drop
    from fhe_llm.wire.reply import reply_bytes
    from fhe_llm.wire.request import ciphertext_bytes
    from fhe_llm.wire.seed import SEED_BYTES

    up = SEED_BYTES + ciphertext_bytes(parameters, 1, input_drop(parameters))
    return {
        "bytes_up": plan.input_ciphertexts * up,
        "most_bytes_down": plan.output_ciphertexts * reply_bytes(parameters, parameters.reply_limbs),
    }


def _model_plans(parameters: Preset, name: str) -> dict[str, Any]:
    from fhe_llm import progress
    from fhe_llm.cli.bench.counts import token_counts
    from fhe_llm.models.config import layer_kind, linear_shapes
    from fhe_llm.models.resolve import open_model

    shapes = linear_shapes(open_model(name, progress=progress.bar()).config)
    layers = {layer_kind(layer): plan_facts(parameters, *shape) for layer, shape in shapes.items()}
    total = sum(plan_facts(parameters, *shape)["cost_microseconds"] for shape in shapes.values())
    return {
        "model": name,
        "layers": layers,
        "per_token": {**token_counts(parameters, shapes), "cost_microseconds": total},
    }


def _plan_shape(out_features: int | None, in_features: int | None, shape: str | None) -> tuple[int, int]:
    """The one shape asked for; raises :class:`ParameterError`."""
    if shape is not None and out_features is None:
        rows, _, columns = shape.partition("x")
        if rows.isdecimal() and columns.isdecimal():
            return int(rows), int(columns)
    elif shape is None and out_features is not None and in_features is not None:
        return out_features, in_features
    raise ParameterError(
        "cannot inspect a plan: the shape is missing or unclear. Give --shape 1536x576, or --model."
    )


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
    show_figures(facts)
