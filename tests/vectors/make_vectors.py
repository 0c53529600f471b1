"""Make ``smollm2_135m.json``: what transformers says about the same GGUF file, in float32, greedily.

Not part of the test run. In an environment of its own::

    pip install torch==2.13.0 transformers accelerate gguf sentencepiece
    python tests/vectors/make_vectors.py path/to/SmolLM2-135M-Instruct.Q4_1.gguf

Exactly 32 tokens are generated for each prompt, past the end-of-turn token where the model emits one
(``eos_at`` is the index of the first one), so that every prompt has 32 positions to teacher-force.
``margins`` is the distance between the two largest logits at each of them, ``top_logits`` the larger of the
two.

The tokenizer that transformers builds from a GGUF file lacks the model's own splitting of numerals, which
shows only where one stands behind two spaces or is a character such as U+00BD; the texts here avoid both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

N_TOKENS = 32


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


PROMPTS: list[list[dict[str, str]]] = [
    user("What is the capital of France?"),
    user("Name three primary colours."),
    user("Write a haiku about the sea."),
    user("Explain in one sentence why the sky is blue."),
    user("What is 12 + 30?"),
    user("Count from 1 to 10."),
    user("Translate 'good morning' into Spanish."),
    user("Write a Python function that returns the factorial of n."),
    user("def fibonacci(n):\n    # finish this function\n"),
    user("Summarise: The cat sat on the mat. It was raining outside, so the cat stayed in all day."),
    user("Give me a recipe for pancakes with 2 eggs and 250 g of flour."),
    user("Who wrote 'Pride and Prejudice'?"),
    user("List the planets of the solar system in order."),
    user("My blood pressure is 150/95. What does that mean?"),
    user("Draft a short e-mail asking my landlord to repair the heating."),
    user("Qu'est-ce que la photosynthèse ?"),
    user("Was ist der größte See in Österreich?"),
    user("日本の首都はどこですか。"),
    user("Tell me a joke about mathematicians 🙂"),
    user("Is 97 a prime number? Answer yes or no."),
    user("hi"),
    user('Convert this JSON to YAML: {"name": "Ada", "born": 1815, "tags": ["math", "code"]}'),
    user("What happens if I mix bleach and vinegar?"),
    user("Write the opening line of a mystery novel set in 1920s Cairo."),
    [
        {"role": "system", "content": "You are a pirate. Answer in pirate speech."},
        {"role": "user", "content": "How do I find treasure?"},
    ],
    [
        {"role": "system", "content": "You answer with a single word."},
        {"role": "user", "content": "What colour is grass?"},
    ],
    [
        {"role": "user", "content": "My name is Ines and I live in Porto."},
        {"role": "assistant", "content": "Nice to meet you, Ines! How is Porto today?"},
        {"role": "user", "content": "Sunny. What is my name, and where do I live?"},
    ],
    [
        {"role": "user", "content": "Give me a number between 1 and 100."},
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": "Now double it."},
    ],
]

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  leading and trailing  ",
    "tabs\tand\nnewlines\r\n\r\n  mixed \n ",
    "12345 67,890.12 x2y3",
    "it's we're I'll you'd they've I'm don't IT'S",
    "naïve café Ünïcödé ÅÄÖ",
    "你好,世界",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈",
    "e\u0301 combining",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "<|im_start|><|im_end|> <repo_name>x",
    "not <|special|> <|im_end| >",
    "def f(x):\n    return {k: v**2 for k, v in x.items()}  # comment\n",
    "https://example.org/a?b=c&d=%20e#f",
    "\u00a0nbsp\u2003em\u200bzero",
    "\u0000\u0001\x7f control",
    "٣٤٥ 五六",
    "ALLCAPSWORD camelCaseWord snake_case_word",
    "a" * 300,
    "aaaa bbbb\n\n\n\ncccc",
    "¿Qué? ¡Sí! «guillemets» — dashes … ellipsis",
    "مرحبا بالعالم",
    "Привет, мир",
]


def continuation(model: Any, prompt_ids: list[int], eos: int) -> dict[str, Any]:
    """Greedy ids, margins and largest logits for the 32 positions after the prompt."""
    ids, margins, tops = list[int](), list[float](), list[float]()
    inputs, cache = torch.tensor([prompt_ids]), None
    for _ in range(N_TOKENS):
        out = model(input_ids=inputs, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        best = torch.topk(out.logits[0, -1].float(), 2)
        ids.append(int(best.indices[0]))
        margins.append(round(float(best.values[0] - best.values[1]), 4))
        tops.append(round(float(best.values[0]), 4))
        inputs = torch.tensor([[ids[-1]]])
    return {
        "greedy_ids": ids,
        "margins": margins,
        "top_logits": tops,
        "eos_at": ids.index(eos) if eos in ids else None,
    }


def compact(made: dict[str, Any]) -> str:
    """JSON with one line per field, prompt and text."""
    lines = []
    for key, value in made.items():
        rows = [json.dumps(item) for item in value] if isinstance(value, list) else []
        lines.append(
            f" {json.dumps(key)}: " + ("[\n  " + ",\n  ".join(rows) + "]" if rows else json.dumps(value))
        )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf", type=Path)
    path: Path = parser.parse_args().gguf
    torch.set_num_threads(2)
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    eos = int(tokenizer.eos_token_id)
    prompts = []
    with torch.inference_mode():
        for messages in PROMPTS:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            prompt_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            prompts.append(
                {"messages": messages, "prompt_text": text, "prompt_ids": prompt_ids}
                | continuation(model, prompt_ids, eos)
            )
    encoded = [{"text": t, "ids": tokenizer(t, add_special_tokens=False)["input_ids"]} for t in TEXTS]
    made = {
        "model": "smollm2-135m",
        "gguf_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dtype": "float32",
        "n_tokens": N_TOKENS,
        "eos_id": eos,
        "continues_past_eos": True,
        "chat_template": tokenizer.chat_template,
        "prompts": prompts,
        "texts": encoded,
    }
    target = Path(__file__).with_name("smollm2_135m.json")
    target.write_text(compact(made), encoding="ascii")
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
