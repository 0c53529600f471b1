"""Fixtures every test may use: a tiny random model, and the real one."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest
from tiny_model import write_tiny_gguf

from fhe_llm.errors import DownloadError
from fhe_llm.models.resolve import resolve

# how long an example takes says something about the machine, not about the code
hypothesis.settings.register_profile("fhe-llm", deadline=None)
hypothesis.settings.load_profile("fhe-llm")


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of a random Llama model: 2 layers, d=64, 4 heads sharing 2, MLP 96, context 256."""
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The real SmolLM2-135M GGUF, from the cache or downloaded once (only in tests marked ``slow``)."""
    try:
        return resolve("smollm2-135m")
    except DownloadError as error:
        pytest.skip(str(error))
