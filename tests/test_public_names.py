"""The package's short list of names is complete, importable, and costs nothing until used."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

import fhe_llm
import fhe_llm.privacy
import fhe_llm.providers


@pytest.mark.parametrize("package", [fhe_llm, fhe_llm.privacy, fhe_llm.providers])
def test_every_public_name_resolves(package: Any) -> None:
    assert list(package.__all__) == list(package._HOMES)
    for name in package.__all__:
        assert not isinstance(getattr(package, name), ModuleType), f"a module takes the name {name}"
    assert set(package.__all__) <= set(dir(package))


def test_other_names_do_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'encrypt'"):
        fhe_llm.encrypt  # noqa: B018


def test_importing_the_package_loads_no_cryptography_and_no_arrays() -> None:
    code = "import sys, fhe_llm; sys.exit(bool({'numpy', 'tenseal', 'numba', 'httpx'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


OPTIONAL = (
    *("cupy", "dp_accounting", "faker", "matplotlib", "opendp", "phonenumbers", "presidio_analyzer", "redis", "spacy"),
    *("stamina", "tldextract", "torch", "transformers"),
)


@pytest.mark.parametrize(
    "package", ["fhe_llm.privacy", "fhe_llm.providers", "fhe_llm_langchain", "fhe_llm_llamaindex", "fhe_llm_server.app"]
)
def test_names_load_without_the_packages_of_other_extras(package: str) -> None:
    code = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({OPTIONAL!r}))
package = importlib.import_module({package!r})
for name in getattr(package, "__all__", ()):
    getattr(package, name)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
