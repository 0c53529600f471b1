"""A live proxy with the real evaluator and the tiny model, shared by the tests that only ask it questions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from rounds_kit import LiveProxy, key_frame, listed_elements, live, make_settings, upload


@pytest.fixture(scope="session")
def proxy(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveProxy]:
    """A proxy on a free port."""
    with live(make_settings(tiny_model_path, tmp_path_factory.mktemp("proxy"))) as running:
        yield running


@pytest.fixture(scope="session")
def listing(proxy: LiveProxy) -> dict[str, Any]:
    """What ``/v1/models`` says."""
    answer: dict[str, Any] = httpx.get(f"{proxy.url}/v1/models").json()
    return answer


@pytest.fixture(scope="session")
def key(proxy: LiveProxy, listing: dict[str, Any]) -> bytes:
    """An uploaded evaluation-key frame."""
    frame = key_frame(listed_elements(listing))
    assert upload(proxy.url, frame).status_code == 201
    return frame
