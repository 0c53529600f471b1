"""``fhe-llm serve``: become the proxy."""

from __future__ import annotations

import os
import sys
from typing import Final

import typer

from fhe_llm.cli.reporting import reported

PASS_THROUGH: Final = {"allow_extra_args": True, "ignore_unknown_options": True}


@reported
def serve(context: typer.Context) -> None:
    """Run the proxy: the same as python -m fhe_llm_server, with all its options."""
    from fhe_llm.cli.proxy_process import require_server

    require_server()
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "fhe_llm_server", *context.args])  # noqa: S606
