"""``fhe-llm demo``: a proxy, a question, an answer, and what the proxy saw of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from fhe_llm.cli import asking
from fhe_llm.cli.generate import messages
from fhe_llm.cli.reporting import echo_json, reported

if TYPE_CHECKING:
    from fhe_llm.cli.tap import Seen

QUESTION: Final = "What is the capital of France, and why is it famous?"


@reported
def demo(
    question: Annotated[str, typer.Argument(help="What to ask.")] = QUESTION,
    model: Annotated[str, typer.Option(help="A known name or a path.")] = asking.DEFAULT_MODEL,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of the answer.")] = 48,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Start a proxy, ask it something in secret, and show what it saw."""
    from fhe_llm.cli.tap import Seen, Tap
    from fhe_llm.client.transport import Endpoint, HttpTransport
    from fhe_llm.llm import EncryptedLLM

    seen = Seen(needles=(question.encode(),))

    def say(line: str) -> None:
        if not as_json:
            typer.echo(line)

    say(f"Starting a proxy with {model} on this machine. It gets weights and ciphertexts, never a key.")
    with asking.served(None, model) as proxy:
        say(f"The proxy is ready at {proxy.base_url}.\n\nYou:   {question}")
        transport = Tap(HttpTransport(Endpoint(proxy.base_url)), seen.note)
        with EncryptedLLM(proxy.model, proxy.base_url, transport=transport) as llm:
            for number, chunk in enumerate(llm.stream(messages(question), max_tokens=max_tokens)):
                if not as_json:
                    asking.show(chunk.text if number else f"Model: {chunk.text}")
                answer = chunk.answer
        transport.close()
    if answer is None:
        return
    if as_json:
        echo_json({**answer.to_dict(), "proxy_saw": what_it_saw(seen)})
        return
    rate = answer.timings.seconds_per_token
    say(
        f"\n\n{answer.completion_tokens} tokens"
        + (f", {rate:.2f} s each after the first" if rate else "")
        + "\n"
    )
    side_by_side(answer.receipt.rows(), what_it_saw(seen))


def what_it_saw(seen: Seen) -> dict[str, str]:
    """Facts about the bytes that went to the proxy, and a slice of the ciphertext in them."""
    from fhe_llm.cli.inspect import frame_facts
    from fhe_llm.cli.tap import entropy
    from fhe_llm.receipt import human_bytes

    facts, body = frame_facts(seen.frame), seen.frame[256:]
    return {
        "requests": f"{seen.requests}, {human_bytes(seen.bytes_sent)} (keys for rotations included)",
        "one of them": f"{facts['kind']}, layer {facts['layer']}, {facts['jobs']} vectors, {len(seen.frame)} bytes",
        "a slice of it": body[1000:1064].hex(" ", 4),
        "its entropy": f"{entropy(body):.3f} bits a byte (8 is pure noise)",
        "text in all of it": f"your question occurs {seen.finds} times",
    }


def side_by_side(receipt: tuple[tuple[str, str], ...], saw: dict[str, str]) -> None:
    """The receipt beside what the proxy saw; one below the other on a narrow terminal."""
    from rich.columns import Columns
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    def panel(title: str, rows: list[tuple[str, str]], width: int) -> Panel:
        table = Table.grid(padding=(0, 2))
        for label, value in rows:
            table.add_row(Text(label, style="bold"), Text(value))
        return Panel(table, title=title, width=width)

    console = Console(highlight=False)
    width = console.width // 2 - 1 if console.width >= 140 else console.width
    console.print(
        Columns(
            [
                panel("Your privacy receipt", list(receipt), width),
                panel("What the proxy saw", list(saw.items()), width),
            ]
        )
    )
