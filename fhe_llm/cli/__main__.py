"""``fhe-llm``: the command line. Each command imports what it needs when it runs, so that ``--help`` is quick."""

from __future__ import annotations

import typer

from fhe_llm.cli import bench, budget, demo, generate, inspect, keys, pull, serve
from fhe_llm.cli.reporting import stop_in_order

app = typer.Typer(
    name="fhe-llm",
    help="Encrypted LLM inference: you hold the key, an untrusted proxy holds the weights.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("pull")(pull.pull)
app.command("keygen")(keys.keygen)
app.command("serve", context_settings=serve.PASS_THROUGH, add_help_option=False)(serve.serve)
app.command("generate")(generate.generate)
app.command("demo")(demo.demo)
app.add_typer(bench.app, name="bench")
app.add_typer(budget.app, name="budget")
app.add_typer(inspect.app, name="inspect")


def main() -> None:
    """The ``fhe-llm`` command."""
    stop_in_order()
    app()


if __name__ == "__main__":
    main()
