"""``fhe-llm generate``: one question, one answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fhe_llm.cli import asking
from fhe_llm.cli.keys import load_keys, opened_prefix_cache
from fhe_llm.cli.reporting import echo_json, reported

if TYPE_CHECKING:
    from fhe_llm.answer import Chunk


@reported
def generate(
    prompt: Annotated[str, typer.Argument(help="The question; - reads it from standard input.")],
    base_url: Annotated[
        str | None, typer.Option(help="The proxy; without it one is started for this run.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="The model's name; a path works for a proxy of one's own.")
    ] = asking.DEFAULT_MODEL,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of the answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw from this many likeliest tokens; 0 is all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens of this probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes drawing reproducible.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Ends the answer; may be given again.")] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 discourages repetition.")] = 1.0,
    system: Annotated[str | None, typer.Option(help="A system message before the question.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text instead of answering it.")] = False,
    pad_to: Annotated[
        int | None, typer.Option(help="Hide the prompt's length up to a multiple of this.")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="A key file of fhe-llm keygen; without it a fresh key.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Encryption parameters.")] = "default",
    prefix_cache: Annotated[
        Path | None, typer.Option(help="A folder that keeps prompts' KV entries, sealed, for later runs.")
    ] = None,
    max_draft: Annotated[
        int, typer.Option(help="Most tokens to guess ahead in a pass, where that pays; 0 is off.")
    ] = 8,
    fixed_draft: Annotated[
        bool, typer.Option("--fixed-draft", help="Guess as many in every pass, so that none tells more.")
    ] = False,
    draft_model: Annotated[
        str | None, typer.Option(help="A small model of the same family that guesses, on this machine.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="FHE_LLM_API_KEY", help="The proxy's API key.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Ask the model; the proxy sees ciphertexts only."""
    from fhe_llm.client.sampling import SamplingParams
    from fhe_llm.client.speculation import SpeculationSettings
    from fhe_llm.llm import EncryptedLLM

    params = SamplingParams.of(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop,
        repetition_penalty=repetition_penalty,
    )
    speculation = SpeculationSettings(max_draft=max_draft, fixed=fixed_draft)
    text = asking.read_prompt(prompt)
    ring = load_keys(keys)
    with (
        asking.served(base_url, model, preset) as proxy,
        opened_prefix_cache(prefix_cache, own_proxy=base_url is None) as cache,
        EncryptedLLM(
            proxy.model,
            proxy.base_url,
            keys=ring,
            api_key=api_key,
            preset=preset,
            prefix_cache=cache or "auto",
            speculation=speculation if max_draft else False,
            draft_model=draft_model,
        ) as llm,
    ):
        chunks = llm.stream(text if raw else messages(text, system), pad_to=pad_to, **asdict(params))
        show_answer(chunks, as_json=as_json)


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
