"""``fhe-llm bench``: figures that may appear in the documentation, with everything needed to judge them."""

from fhe_llm.cli.bench.commands import app

__all__ = ["app"]
