"""What a proxy says about itself at ``/metrics``, as numbers."""

from __future__ import annotations

import os

import httpx

from fhe_llm.errors import TransportError


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


def jobs_per_batch(before: dict[str, float], after: dict[str, float]) -> float | None:
    """The mean number of jobs that shared a pass between two scrapes; None where there was no pass."""
    jobs, passes = (
        after.get(name, 0.0) - before.get(name, 0.0)
        for name in ("fhe_llm_batch_jobs_sum", "fhe_llm_batch_jobs_count")
    )
    return jobs / passes if passes else None
