"""A small model at the client that drafts tokens for a large one at the proxy. It runs in the clear, here."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fhe_llm.client.sampling import Sampler
from fhe_llm.client.speculation import Acceptance
from fhe_llm.errors import ModelError
from fhe_llm.models.bundle import load_bundle, write_bundle
from fhe_llm.models.plaintext import run_plaintext
from fhe_llm.models.registry import ClientHalf, client_half
from fhe_llm.models.resolve import open_model
from fhe_llm.models.steps import Floats
from fhe_llm.models.tokenizer import TextTokenizer
from fhe_llm.progress import Progress, silent

_PRIOR = 0.7
_FEW = 8


@dataclass(frozen=True, slots=True)
class DraftModel:
    """Both halves of a model. Generations share one; each drafts through a :class:`ModelDrafter` of its own."""

    half: ClientHalf
    weights: Mapping[str, Floats]

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        tokenizer: TextTokenizer,
        *,
        cache: Path | None = None,
        progress: Progress = silent,
    ) -> DraftModel:
        """A model by name or path, float32 in memory. Raises :class:`ModelError` (no such model, or its tokens are
        not those of ``tokenizer``) and :class:`DownloadError`."""
        source = open_model(name_or_path, cache=cache, progress=progress)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "bundle"
            bundle = load_bundle(path, write_bundle(source, path))
        if not same_tokens(TextTokenizer(bundle.tokenizer), tokenizer):
            raise ModelError(
                f"cannot draft with {name_or_path}: its tokens are not those of the model at the proxy. "
                "Name a model of the same family."
            )
        return cls(client_half(bundle), dict(source.linear_weights()))

    def drafter(self) -> ModelDrafter:
        """A drafter for one generation."""
        return ModelDrafter(self)


class ModelDrafter:
    """Drafts what the small model would say, with its own KV cache. See :class:`fhe_llm.client.speculation.Drafter`.

    When sampling it draws with the numbers the verification will draw with, so that two models that agree on the
    distribution mostly agree on the token; what is drafted has no influence on what is chosen.
    """

    def __init__(self, model: DraftModel) -> None:
        self._model = model
        self._cache = model.half.new_cache()
        self._passed: list[int] = []
        self._acceptance = Acceptance(_PRIOR)
        self.seconds_per_token = 1e-9  # not free; measured at the first draft

    def acceptance(self, ids: Sequence[int]) -> Acceptance | None:
        """None where the small model's context is full."""
        return self._acceptance if len(ids) < self._model.half.config.context_length else None

    def draft(self, ids: Sequence[int], count: int, sampler: Sampler) -> Sequence[int]:
        """One pass of the small model a token, after one over what it has not seen."""
        count = min(count, self._model.half.config.context_length - len(ids) + 1)
        self._rewind(ids)
        choose, fresh, drafts = sampler.fork(), list(ids[len(self._passed) :]), list[int]()
        for _ in range(count):
            begun = time.perf_counter()
            logits = run_plaintext(self._model.half.forward(fresh, self._cache), self._model.weights)
            self._passed += fresh
            drafts.append(choose(logits[-1]))
            if len(fresh) < _FEW:  # not the pass that reads the prompt
                self.seconds_per_token = (time.perf_counter() - begun) / len(fresh)
            fresh = drafts[-1:]
        return drafts

    def _rewind(self, ids: Sequence[int]) -> None:
        """Forget what was drafted and not chosen, and at least the last token: its logits are needed."""
        most = min(len(self._passed), len(ids) - 1)
        same = next((n for n in range(most) if self._passed[n] != ids[n]), most)
        self._cache.truncate(same)
        del self._passed[same:]


def same_tokens(one: TextTokenizer, other: TextTokenizer) -> bool:
    """Whether every id stands for the same bytes."""
    return one.special_tokens == other.special_tokens and _table(one) == _table(other)


def _table(tokenizer: TextTokenizer) -> list[bytes]:
    return [tokenizer.token_bytes(n, skip_special=False) for n in range(tokenizer.size)]
