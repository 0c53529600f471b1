"""``python -m fhe_llm_server``: check the settings, bind, serve.

Exit codes: 0 after SIGTERM or SIGINT, 1 when the model cannot be loaded, 2 for settings or an address that
cannot be used.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from pydantic import ValidationError

from fhe_llm.errors import FheLlmError
from fhe_llm.evaluator.device import DeviceUnavailableError
from fhe_llm.progress import bar
from fhe_llm_server.settings import Settings

FLAGS = {
    "model": "name of a known model, a .gguf file or a safetensors folder",
    "host": "address to bind; anything but loopback needs API keys",
    "port": "port to bind; 0 picks a free one",
    "device": "what evaluates: cpu, cuda, or auto (cuda where it works)",
    "gpu-memory": "most memory used on a GPU, such as 8GiB (default: nine tenths of what is free)",
    "preset": "encryption parameters: default or wide",
    "threads": "threads of the evaluator (default: all cores)",
    "data-dir": "where keys and encoded weights are kept",
    "key-cache-bytes": "disk budget of evaluation keys",
    "max-body-bytes": "largest request body and WebSocket message",
    "ledger": "where work is counted: a file, or redis://... (default: a file in the data directory)",
    "api-key-file": "file with one API key a line",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the proxy; returns the exit code."""
    parser = argparse.ArgumentParser(prog="fhe_llm_server", description="The fhe-llm proxy.")
    for name, help_text in FLAGS.items():
        parser.add_argument(f"--{name}", default=None, help=help_text)
    chosen = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    uvicorn_log = logging.getLogger("uvicorn.error")
    uvicorn_log.setLevel(logging.WARNING)  # its information lines repeat ours, with query strings
    uvicorn_log.addFilter(lambda record: "without completing handshake" not in record.getMessage())
    try:
        settings = Settings(**chosen)
        guarded_by_keys = bool(settings.accepted_api_keys())
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = "--" + str(first["loc"][0] if first["loc"] else "setting").replace("_", "-")
        return _complain(f"cannot use {where}: {first['msg']}. See --help.")
    except OSError as error:
        return _complain(f"cannot read the API key file: {error.strerror}. Check its path and permissions.")
    except (FheLlmError, ValueError) as error:
        return _complain(str(error))
    if not guarded_by_keys and not settings.loopback:
        return _complain(
            f"cannot bind {settings.host}: without API keys the proxy serves this machine only. "
            "Set FHE_LLM_API_KEYS or --api-key-file, or use --host 127.0.0.1."
        )
    return _run(settings, guarded_by_keys)


def _run(settings: Settings, guarded_by_keys: bool) -> int:
    from fhe_llm_server.app import create_app
    from fhe_llm_server.devices import make_evaluator
    from fhe_llm_server.serving import bind, serve

    try:
        # a device that cannot be used is said before anything else; the CPU's kernels can compile while we listen
        evaluator = None if settings.device == "cpu" else make_evaluator(settings)
    except DeviceUnavailableError as error:
        return _complain(str(error))
    try:
        bound = bind(settings.host, settings.port)
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        cause = error.strerror or "the address is unknown"
        return _complain(
            f"cannot listen on {where}: {cause}. Choose another --port or --host, or use --port 0."
        )
    if not guarded_by_keys:
        _say("no API keys are configured: serving this machine only (loopback)")
    app = create_app(settings, make_evaluator if evaluator is None else lambda _: evaluator, progress=bar())
    with bound:
        serve(app, settings, bound, announce=lambda url: _say(f"listening on {url}"))
    failure = app.state.proxy.failure
    if failure is not None:
        _say(str(failure))
        return 1
    return 0


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _complain(line: str) -> int:
    _say(line)
    return 2


if __name__ == "__main__":
    sys.exit(main())
