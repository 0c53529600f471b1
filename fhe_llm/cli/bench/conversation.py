"""One conversation in a process of its own, as another user's would be: told on standard input when to speak.

``python -m fhe_llm.cli.bench.conversation MODEL URL PRESET`` says ``ready`` once it has warmed up. For each number of
tokens it reads it says ``first`` when the first is there, waits for a line, so that all conversations decode
together, and then writes a JSON list: the moment it went on and that of every further token, on the system's
monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import json
import sys
import time

from fhe_llm.cli.bench.subject import plain_settings
from fhe_llm.llm import EncryptedLLM
from fhe_llm.progress import silent

SHORT_PROMPT = "On"
"""One token or two: decoding is what is measured."""


def main() -> None:
    """Serve until standard input ends."""
    model, url, preset = sys.argv[1:4]
    with EncryptedLLM(model, url, preset=preset, progress=silent, **plain_settings()) as llm:
        llm.generate(SHORT_PROMPT, max_tokens=2)
        _say("ready")
        for line in sys.stdin:
            chunks = llm.stream(SHORT_PROMPT, max_tokens=int(line), temperature=0.0)
            next(chunks)
            _say("first")
            sys.stdin.readline()
            moments = [time.monotonic()]
            moments += [time.monotonic() for chunk in chunks for _ in chunk.token_ids]
            _say(json.dumps(moments))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
