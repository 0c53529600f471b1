"""The package's short list of names is complete, importable, and costs nothing until used."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import fhe_llm
import fhe_llm.privacy
import fhe_llm.providers


@pytest.mark.parametrize("package", [fhe_llm, fhe_llm.privacy, fhe_llm.providers])
def test_every_public_name_resolves(package: Any) -> None:
    assert list(package.__all__) == list(package._HOMES)
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert set(package.__all__) <= set(dir(package))


def test_other_names_do_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'encrypt'"):
        fhe_llm.encrypt  # noqa: B018


def test_importing_the_package_loads_no_cryptography_and_no_arrays() -> None:
    code = "import sys, fhe_llm; sys.exit(bool({'numpy', 'tenseal', 'numba', 'httpx'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
