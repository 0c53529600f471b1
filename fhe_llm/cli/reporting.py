"""How commands end: one line for an error, 130 for Ctrl-C, no traceback for anything raised on purpose."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, ParamSpec

import typer

from fhe_llm.errors import FheLlmError, ProxyError

P = ParamSpec("P")
ERROR_STATUS: Final = 2
INTERRUPTED_STATUS: Final = 130


def reported(command: Callable[P, None]) -> Callable[P, None]:
    """Wrap a command; with ``--json`` (its ``as_json`` argument) an error is an object on standard output."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except FheLlmError as error:
            show_error(error, as_json=bool(kwargs.get("as_json")))
            raise typer.Exit(ERROR_STATUS) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED_STATUS) from None
        except BrokenPipeError:
            # The reader has gone; keep the interpreter's last flush from complaining.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(128 + signal.SIGPIPE) from None

    return run


def show_error(error: FheLlmError, *, as_json: bool) -> None:
    """``error[code]: message`` on standard error; with ``as_json`` an object on standard output instead."""
    code = error.proxy_code if isinstance(error, ProxyError) else error.code
    if as_json:
        echo_json({"error": {"code": code, "message": str(error)}})
    else:
        typer.echo(f"error[{code}]: {' '.join(str(error).split())}", err=True)


def echo_json(value: dict[str, Any]) -> None:
    """One object on one line."""
    typer.echo(json.dumps(value, ensure_ascii=False))


def stop_in_order() -> None:
    """Make SIGTERM leave through ``finally`` blocks, so that a proxy this process started does not outlive it."""

    def leave(_signal: int, _frame: FrameType | None) -> None:
        sys.exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, leave)
