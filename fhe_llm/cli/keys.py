"""``fhe-llm keygen``: make a key and keep it in a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from fhe_llm.cli.reporting import echo_json, reported
from fhe_llm.errors import KeyRingError

PASSPHRASE_VARIABLE = "FHE_LLM_PASSPHRASE"  # noqa: S105  a name, not a secret


@reported
def keygen(
    path: Annotated[Path, typer.Argument(help="Where the key goes.")],
    preset: Annotated[str, typer.Option(help="Encryption parameters.")] = "default",
    passphrase: Annotated[
        bool, typer.Option(help="Encrypt the file; asks, or reads $FHE_LLM_PASSPHRASE.")
    ] = True,
    base_url: Annotated[
        str | None, typer.Option(help="Also make the evaluation keys this proxy needs.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Replace an existing key, which is then lost.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make a secret key. Without one, each run makes its own and forgets it."""
    from fhe_llm.client.keys import KeyRing

    if path.exists() and not force:
        raise KeyRingError(
            f"cannot save a key to {path}: there is one already. Choose another path, or use --force."
        )
    with KeyRing.generate(preset) as ring:
        if base_url is not None:
            _make_evaluation_keys(ring, base_url)
        saved = ring.save(path, passphrase=ask_passphrase(confirm=True) if passphrase else None)
        facts: dict[str, Any] = {
            "path": str(path),
            "encrypted": saved.encrypted,
            "preset": preset,
            "security_bits": ring.preset.security_bits,
            "security_row": ring.preset.table_row,
            "key_id": ring.key_id.hex() if ring.key_id else None,
        }
    if as_json:
        echo_json(facts)
    else:
        typer.echo(f"{saved.note} ({facts['security_bits']} bits, preset {preset})")


def load_keys(path: Path | None) -> Any:
    """The key ring at ``path``, asking for a passphrase only where one is needed; None without a path."""
    from fhe_llm.client.keys import KeyRing
    from fhe_llm.errors import WrongPassphraseError

    if path is None:
        return None
    given = os.environ.get(PASSPHRASE_VARIABLE)
    try:
        return KeyRing.load(path, passphrase=given)
    except WrongPassphraseError:
        if given is not None:
            raise
        return KeyRing.load(path, passphrase=ask_passphrase())


@contextmanager
def opened_prefix_cache(folder: Path | None, *, own_proxy: bool) -> Iterator[Any]:
    """The prefix cache in ``folder``, new ones under $FHE_LLM_PASSPHRASE where it is set; None without a folder.

    A proxy of our own has another port, hence another address, each time.
    """
    from fhe_llm.client.prefix_cache import PrefixCache
    from fhe_llm.errors import WrongPassphraseError

    if folder is None:
        yield None
        return
    given, proxy = os.environ.get(PASSPHRASE_VARIABLE) or None, "our own" if own_proxy else None
    try:
        cache = PrefixCache(folder, passphrase=given, proxy=proxy)
    except WrongPassphraseError:
        if given is not None:
            raise
        cache = PrefixCache(folder, passphrase=ask_passphrase(), proxy=proxy)
    with cache:
        yield cache


def ask_passphrase(*, confirm: bool = False) -> str:
    """From the environment, else typed without echo; raises :class:`KeyRingError` for an empty one."""
    given = os.environ.get(PASSPHRASE_VARIABLE)
    typed = (
        given
        if given is not None
        else typer.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, err=True)
    )
    if not typed:
        raise KeyRingError("cannot use an empty passphrase. Give one, or use --no-passphrase.")
    return str(typed)


def _make_evaluation_keys(ring: Any, base_url: str) -> None:
    from fhe_llm import progress
    from fhe_llm.client.transport import Endpoint, HttpTransport, list_models
    from fhe_llm.evaluator.packed_plan import layer_plans, plan_elements

    transport = HttpTransport(Endpoint(base_url))
    try:
        listing = transport.run(list_models())
    finally:
        transport.close()
    layers = [layer for model in listing.models for layer in model.layers]
    shapes = {(layer.out_features, layer.in_features) for layer in layers}
    plans = [plan for shape in shapes for plan in layer_plans(ring.preset, *shape)]
    ring.evaluation_keys(plan_elements(ring.preset, plans), progress=progress.bar())
