"""A model that drafts: in the clear, at the client, over real files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_model import TinyShape, write_tiny_folder, write_tiny_gguf

from fhe_llm.cli.bench.generation import run_in_the_clear
from fhe_llm.client.draft_model import DraftModel
from fhe_llm.client.generation import Outcome, Task
from fhe_llm.client.sampling import Sampler, SamplingParams
from fhe_llm.client.speculation import Drafter, SpeculationSettings, Speculator
from fhe_llm.errors import ModelError
from fhe_llm.models.bundle import load_bundle, write_bundle
from fhe_llm.models.resolve import open_model
from fhe_llm.models.tokenizer import IncrementalDecoder, TextTokenizer

PROMPT = "you and the other"


@pytest.fixture(scope="module")
def tokenizer(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    path = tmp_path_factory.mktemp("bundle") / "b"
    return TextTokenizer(load_bundle(path, write_bundle(open_model(tiny_model_path), path)).tokenizer)


@pytest.fixture(scope="module")
def large(tiny_model_path: Path, tokenizer: TextTokenizer) -> DraftModel:
    return DraftModel.load(tiny_model_path, tokenizer)


def answered(large: DraftModel, tokenizer: TextTokenizer, drafter: Drafter | None, **params: Any) -> Outcome:
    speculator = Speculator(SpeculationSettings(max_draft=4, extra_cost=0.0), [drafter]) if drafter else None
    return run_in_the_clear(
        Task(
            half=large.half,
            decoder=IncrementalDecoder(tokenizer),
            prompt_ids=tuple(tokenizer.encode(PROMPT)),
            params=SamplingParams.of(**params),
            end_ids=tokenizer.eos_ids,
            context_length=large.half.config.context_length,
            layers=len(large.weights),
            speculator=speculator,
        ),
        large.weights,
    )


HOW: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 5},
    {"temperature": 1.0, "top_p": 0.8, "seed": 1},
]


@pytest.mark.parametrize("params", HOW)
def test_a_model_that_drafts_for_itself_is_always_right(
    large: DraftModel, tokenizer: TextTokenizer, params: dict[str, Any]
) -> None:
    plain = answered(large, tokenizer, None, max_tokens=26, **params)
    drafted = answered(large, tokenizer, large.drafter(), max_tokens=26, **params)
    assert drafted.token_ids == plain.token_ids
    assert drafted.passes.count == 5
    assert drafted.passes.accepted == drafted.passes.drafted == 20


@pytest.mark.parametrize("params", HOW)
def test_another_model_changes_no_token(
    large: DraftModel, tokenizer: TextTokenizer, tmp_path: Path, params: dict[str, Any]
) -> None:
    small = DraftModel.load(write_tiny_gguf(tmp_path / "s.gguf", TinyShape(n_layers=1), seed=3), tokenizer)
    plain = answered(large, tokenizer, None, max_tokens=40, **params)
    drafted = answered(large, tokenizer, small.drafter(), max_tokens=40, **params)
    assert drafted.token_ids == plain.token_ids
    assert drafted.passes.drafted > 0


def test_a_small_context_ends_the_drafting_not_the_answer(
    large: DraftModel, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    short = TinyShape(context_length=24)
    small = DraftModel.load(write_tiny_gguf(tmp_path / "s.gguf", short), tokenizer)
    plain = answered(large, tokenizer, None, max_tokens=40)
    assert answered(large, tokenizer, small.drafter(), max_tokens=40).token_ids == plain.token_ids


def test_drafts_continue_the_text_however_it_changed(large: DraftModel, tokenizer: TextTokenizer) -> None:
    drafter, sampler = large.drafter(), Sampler(SamplingParams())
    ids = tokenizer.encode(PROMPT)
    for text in (ids, [*ids, 5, 6], [*ids[:3], 9], ids[:2], [*ids, 5, 6, 7]):
        assert drafter.draft(text, 3, sampler) == large.drafter().draft(text, 3, sampler)


def test_other_tokens_are_refused(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "folder")
    DraftModel.load(folder, tokenizer)  # the same tokens in another format
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<|im_end|>", "<|im_stop|>"))
    with pytest.raises(ModelError, match="cannot draft with"):
        DraftModel.load(folder, tokenizer)
    with pytest.raises(ModelError, match="cannot find model"):
        DraftModel.load("no-such-model", tokenizer)
