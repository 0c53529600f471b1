"""``fhe-llm generate``: one question, one answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fhe_llm.cli import asking
from fhe_llm.cli.keys import load_keys, opened_prefix_cache
from fhe_llm.cli.reporting import echo_json, reported

if TYPE_CHECKING:
    from fhe_llm.answer import Chunk
    from fhe_llm.llm import EncryptedLLM


Question = Annotated[str, typer.Argument(help="The question; - reads it from standard input.")]
BaseUrl = Annotated[str | None, typer.Option(help="The proxy; without it one is started for this run.")]
Model = Annotated[str, typer.Option(help="The model's name; a path works for a proxy of one's own.")]
MaxTokens = Annotated[int, typer.Option(help="Most tokens of the answer.")]
Temperature = Annotated[float, typer.Option(help="0 always takes the likeliest token.")]
TopK = Annotated[int, typer.Option(help="Draw from this many likeliest tokens; 0 is all.")]
TopP = Annotated[float, typer.Option(help="Draw from the likeliest tokens of this probability.")]
Seed = Annotated[int | None, typer.Option(help="Makes drawing reproducible.")]
Stop = Annotated[list[str] | None, typer.Option(help="Ends the answer; may be given again.")]
Penalty = Annotated[float, typer.Option(help="Above 1 discourages repetition.")]
System = Annotated[str | None, typer.Option(help="A system message before the question.")]
Raw = Annotated[bool, typer.Option("--raw", help="Continue the text instead of answering it.")]
PadTo = Annotated[int | None, typer.Option(help="Hide the prompt's length up to a multiple of this.")]
Keys = Annotated[Path | None, typer.Option(help="A key file of fhe-llm keygen; without it a fresh key.")]
Preset = Annotated[str, typer.Option(help="Encryption parameters.")]
Prefixes = Annotated[
    Path | None, typer.Option(help="A folder that keeps prompts' KV entries, sealed, for later runs.")
]
MaxDraft = Annotated[
    int, typer.Option(help="Most tokens to guess ahead in a pass, where that pays; 0 is off.")
]
FixedDraft = Annotated[
    bool, typer.Option("--fixed-draft", help="Guess as many in every pass, so that none tells more.")
]
DraftModel = Annotated[
    str | None, typer.Option(help="A small model of the same family that guesses, on this machine.")
]
ApiKey = Annotated[str | None, typer.Option(envvar="FHE_LLM_API_KEY", help="The proxy's API key.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@reported
def generate(
    prompt: Question,
    base_url: BaseUrl = None,
    model: Model = asking.DEFAULT_MODEL,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    repetition_penalty: Penalty = 1.0,
    system: System = None,
    raw: Raw = False,
    pad_to: PadTo = None,
    keys: Keys = None,
    preset: Preset = "default",
    prefix_cache: Prefixes = None,
    max_draft: MaxDraft = 8,
    fixed_draft: FixedDraft = False,
    draft_model: DraftModel = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Ask the model; the proxy sees ciphertexts only."""
    from fhe_llm.client.sampling import SamplingParams
    from fhe_llm.client.speculation import SpeculationSettings

    params = SamplingParams.of(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop,
        repetition_penalty=repetition_penalty,
    )
    guesses = SpeculationSettings(max_draft=max_draft, fixed=fixed_draft)
    text = asking.read_prompt(prompt)
    settings = {"keys": load_keys(keys), "api_key": api_key, "preset": preset, "draft_model": draft_model}
    settings["speculation"] = guesses if max_draft else False
    with _opened(base_url, model, prefix_cache, settings) as llm:
        asked = text if raw else messages(text, system)
        show_answer(llm.stream(asked, pad_to=pad_to, **asdict(params)), as_json=as_json)


@contextmanager
def _opened(
    base_url: str | None, model: str, folder: Path | None, settings: dict[str, Any]
) -> Iterator[EncryptedLLM]:
    """A client of the proxy at ``base_url``, or of one of our own; prefixes are kept in ``folder``."""
    from fhe_llm.llm import EncryptedLLM

    with (
        asking.served(base_url, model, settings["preset"]) as proxy,
        opened_prefix_cache(folder, own_proxy=base_url is None) as cache,
        EncryptedLLM(proxy.model, proxy.base_url, prefix_cache=cache or "auto", **settings) as llm,
    ):
        yield llm


def show_answer(chunks: Iterator[Chunk], *, as_json: bool) -> None:
    """Text as it arrives, then the receipt on standard error; or one object at the end."""
    for chunk in chunks:
        if not as_json:
            asking.show(chunk.text)
        if chunk.answer is None:
            continue
        if as_json:
            echo_json(chunk.answer.to_dict())
        else:
            typer.echo()
            typer.echo(str(chunk.answer.receipt), err=True)


def messages(question: str, system: str | None = None) -> list[dict[str, str]]:
    """A chat of one question."""
    before = [{"role": "system", "content": system}] if system is not None else []
    return [*before, {"role": "user", "content": question}]
