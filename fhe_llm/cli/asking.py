"""What the commands that ask a model share: which proxy, which key, and text that is safe to show."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

if TYPE_CHECKING:
    from fhe_llm.cli.proxy_process import ProxyProcess

DEFAULT_MODEL: Final = "smollm2-135m"
_CONTROLS: Final = dict.fromkeys([*range(0x09), 0x0B, 0x0C, *range(0x0D, 0x20), *range(0x7F, 0xA0)])


@dataclass(frozen=True, slots=True)
class Served:
    """A proxy that is ready, and the name it serves the model under."""

    base_url: str
    model: str
    process: ProxyProcess | None = None


@contextmanager
def served(
    base_url: str | None, model: str, preset: str = "default", data_dir: Path | None = None
) -> Iterator[Served]:
    """The proxy at ``base_url``; without one, a proxy of our own that ends with the block."""
    if base_url is not None:
        yield Served(base_url, model)
        return
    from fhe_llm import progress
    from fhe_llm.cli.proxy_process import ProxyProcess

    with ProxyProcess(model, preset=preset, data_dir=data_dir, progress=progress.bar()) as process:
        yield Served(process.base_url, _only_model(process.base_url), process)


def read_prompt(prompt: str) -> str:
    """``prompt``, or standard input for ``-``: a prompt on a command line is visible to every user of the machine."""
    from fhe_llm.errors import RequestError

    text = sys.stdin.read().removesuffix("\n") if prompt == "-" else prompt
    if not text:
        raise RequestError("cannot ask: the prompt is empty. Write one, or pipe one into '-'.")
    return text


def show(text: str) -> None:
    """Print a piece of an answer at once; on a terminal without control characters, which could rewrite it."""
    safe = text.translate(_CONTROLS) if sys.stdout.isatty() else text
    typer.echo(safe, nl=False)
    sys.stdout.flush()


def _only_model(base_url: str) -> str:
    """A proxy of ours serves one model, under the name its files give."""
    import httpx

    listing = httpx.get(f"{base_url}/v1/models", timeout=30.0, trust_env=False).json()
    return str(listing["models"][0]["name"])
