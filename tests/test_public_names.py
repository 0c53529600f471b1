"""The package's short list of names is complete, importable, and costs nothing until used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import fhe_llm


def test_every_public_name_resolves() -> None:
    assert list(fhe_llm.__all__) == list(fhe_llm._HOMES)
    for name in fhe_llm.__all__:
        assert getattr(fhe_llm, name) is not None
    assert set(fhe_llm.__all__) <= set(dir(fhe_llm))


def test_other_names_do_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'encrypt'"):
        fhe_llm.encrypt  # noqa: B018


def test_importing_the_package_loads_no_cryptography_and_no_arrays() -> None:
    code = "import sys, fhe_llm; sys.exit(bool({'numpy', 'tenseal', 'numba', 'httpx'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
