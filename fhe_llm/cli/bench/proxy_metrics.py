"""What a proxy says about itself at ``/metrics``, as numbers."""

from __future__ import annotations

import os
from typing import Final

import httpx

from fhe_llm.errors import TransportError

ROUNDS: Final = "fhe_llm_rounds_total"
PASSES: Final = "fhe_llm_batch_jobs_count"


def scrape(base_url: str) -> dict[str, float]:
    """Samples by name with labels, as the exposition format writes them; raises :class:`TransportError`."""
    key = os.environ.get("FHE_LLM_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(f"{base_url}/metrics", headers=headers, timeout=30.0, trust_env=False)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise TransportError(
            f"cannot read the proxy's metrics: {error}. Check the URL and the API key."
        ) from None
    lines = [line.rpartition(" ") for line in answer.text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def rounds_per_pass(before: dict[str, float], after: dict[str, float]) -> float | None:
    """The mean number of rounds that shared a pass over the weights between two scrapes; None where there was none."""
    rounds, passes = (_total(after, name) - _total(before, name) for name in (ROUNDS, PASSES))
    return rounds / passes if passes else None


def _total(samples: dict[str, float], name: str) -> float:
    return sum(value for sample, value in samples.items() if sample.partition("{")[0] == name)
