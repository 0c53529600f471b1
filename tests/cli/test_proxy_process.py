"""A proxy of one's own ends with whoever started it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FORGETFUL = """
import sys
from pathlib import Path
from fhe_llm.cli.proxy_process import ProxyProcess

proxy = ProxyProcess(sys.argv[1], data_dir=Path(sys.argv[2]))
proxy.start()
print(proxy.pid, proxy.log_path.parent)
"""


def test_a_program_that_forgets_its_proxy_takes_it_along(tiny_model_path: Path, tmp_path: Path) -> None:
    """As a notebook's kernel does that is restarted or shut down before the last cell."""
    said = subprocess.run(
        [sys.executable, "-c", FORGETFUL, str(tiny_model_path), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    pid, folder = said.stdout.split()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
    assert not Path(folder).exists()
