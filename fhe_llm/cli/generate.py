"""``fhe-llm generate``: one question, one answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fhe_llm.cli import asking
from fhe_llm.cli.keys import load_keys
from fhe_llm.cli.reporting import echo_json, reported


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
    api_key: Annotated[
        str | None, typer.Option(envvar="FHE_LLM_API_KEY", help="The proxy's API key.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Ask the model; the proxy sees ciphertexts only."""
    from fhe_llm.llm import EncryptedLLM

    params: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "stop": tuple(stop or ()),
        "repetition_penalty": repetition_penalty,
    }
    check_params(params)
    text = asking.read_prompt(prompt)
    ring = load_keys(keys)
    with (
        asking.served(base_url, model, preset) as proxy,
        EncryptedLLM(proxy.model, proxy.base_url, keys=ring, api_key=api_key, preset=preset) as llm,
    ):
        for chunk in llm.stream(text if raw else messages(text, system), pad_to=pad_to, **params):
            if not as_json:
                asking.show(chunk.text)
            answer = chunk.answer
    if answer is None:
        return
    if as_json:
        echo_json(answer.to_dict())
    else:
        typer.echo()
        typer.echo(str(answer.receipt), err=True)


def messages(question: str, system: str | None = None) -> list[dict[str, str]]:
    """A chat of one question."""
    before = [{"role": "system", "content": system}] if system is not None else []
    return [*before, {"role": "user", "content": question}]


def check_params(params: dict[str, Any]) -> None:
    """Refuse a bad setting before a proxy is started for it."""
    from fhe_llm.client.sampling import SamplingParams

    SamplingParams.of(**params)
