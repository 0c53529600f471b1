"""The command line: what it prints for people and programs, and how it ends when something is wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_model import LONG, PROMPT
from typer.testing import CliRunner, Result

from fhe_llm import EncryptedLLM
from fhe_llm.cli.__main__ import app
from fhe_llm.cli.proxy_process import ProxyProcess, ProxyStartError
from fhe_llm.cli.tap import Seen, Tap, entropy
from fhe_llm.client.transport import Endpoint, HttpTransport
from fhe_llm.client.transport.operations import Round
from fhe_llm.evaluator.packed_plan import packed_plans
from fhe_llm.params import preset


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the user's caches; all tests of one run share theirs."""
    base = tmp_path_factory.getbasetemp() / "cli"
    monkeypatch.setenv("FHE_LLM_CACHE", str(base / "cache"))
    monkeypatch.setenv("FHE_LLM_DATA_DIR", str(base / "data"))
    monkeypatch.delenv("FHE_LLM_PASSPHRASE", raising=False)


def run(*arguments: str, **kwargs: Any) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False, **kwargs)


def ok(*arguments: str, **kwargs: Any) -> dict[str, Any]:
    result = run(*arguments, "--json", **kwargs)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def ask(proxy: ProxyProcess, *more: str) -> list[str]:
    return ["generate", "--base-url", proxy.base_url, "--model", "tiny", "--max-tokens", "3", *more]


def test_generate_json_has_what_a_program_needs(proxy: ProxyProcess) -> None:
    answer = ok(*ask(proxy, "--temperature", "0", PROMPT))
    assert {
        "text": str,
        "token_ids": list,
        "finish_reason": str,
        "prompt_tokens": int,
        "cached_tokens": int,
        "completion_tokens": int,
        "seconds_per_token": float,
        "seconds_to_first_token": float,
        "bytes_up": int,
        "bytes_down": int,
        "rounds": int,
        "decoding": dict,
        "tool_calls": list,
        "timings": dict,
        "receipt": dict,
    } == {name: type(value) for name, value in answer.items()}
    assert len(answer["token_ids"]) == 3
    assert answer["receipt"]["guarantee"] == "ciphertext"


def test_generate_answers_and_raw_continues(proxy: ProxyProcess) -> None:
    with EncryptedLLM("tiny", proxy.base_url) as llm:
        chat, raw = llm.chat(PROMPT, max_tokens=3), llm.generate(PROMPT, max_tokens=3)
        system = llm.chat(
            [{"role": "system", "content": "x"}, {"role": "user", "content": PROMPT}], max_tokens=1
        )
    assert ok(*ask(proxy, PROMPT))["token_ids"] == list(chat.token_ids)
    assert ok(*ask(proxy, "--raw", PROMPT))["token_ids"] == list(raw.token_ids)
    assert ok(*ask(proxy, "--system", "x", PROMPT))["prompt_tokens"] == system.prompt_tokens


def test_generate_keeps_prefixes_in_a_folder(
    proxy: ProxyProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FHE_LLM_PASSPHRASE", "correct horse")
    asked = ask(proxy, "--prefix-cache", str(tmp_path / "prefixes"), PROMPT)
    first, second = ok(*asked), ok(*asked)
    assert first["token_ids"] == second["token_ids"]
    assert first["cached_tokens"] == 0 < second["cached_tokens"]
    assert second["receipt"]["prompt_tokens_seen"] == second["prompt_tokens"] - second["cached_tokens"]
    monkeypatch.setenv("FHE_LLM_PASSPHRASE", "wrong")
    refused = run(*asked)
    assert refused.exit_code != 0
    assert "cannot load the key" in refused.stderr


def test_generate_keeps_prefixes_of_proxies_of_its_own(tiny_model_path: Path, tmp_path: Path) -> None:
    asked = ["generate", "--model", str(tiny_model_path), "--max-tokens", "1", "--prefix-cache"]
    first, second = (ok(*asked, str(tmp_path / "prefixes"), PROMPT) for _ in range(2))
    assert first["cached_tokens"] == 0 < second["cached_tokens"]


def test_generate_guesses_ahead_where_told(proxy: ProxyProcess, tiny_model_path: Path) -> None:
    plain = ok(*ask(proxy, "--max-tokens", "9", "--max-draft", "0", PROMPT))
    model = ["--draft-model", str(tiny_model_path)]
    drafted = ok(*ask(proxy, "--max-tokens", "9", "--max-draft", "3", "--fixed-draft", *model, PROMPT))
    assert drafted["token_ids"] == plain["token_ids"]
    assert plain["decoding"] | {"drafted": 0} == plain["decoding"]
    assert plain["decoding"]["rounds_per_token"] == 8
    assert drafted["decoding"]["rounds_per_token"] < 8
    assert drafted["receipt"]["drafted_tokens_seen"] == 3 * drafted["decoding"]["passes"]


def test_generate_for_people_streams_text_and_keeps_the_receipt_apart(proxy: ProxyProcess) -> None:
    result = run(*ask(proxy, "--raw", PROMPT))
    assert result.stdout == ok(*ask(proxy, "--raw", PROMPT))["text"] + "\n"
    assert "Privacy receipt" in result.stderr
    assert PROMPT not in result.stderr


def test_generate_reads_a_prompt_from_standard_input(proxy: ProxyProcess) -> None:
    assert ok(*ask(proxy, "-"), input=PROMPT + "\n")["token_ids"] == ok(*ask(proxy, PROMPT))["token_ids"]


def test_generate_starts_its_own_proxy_and_stops_it(tiny_model_path: Path) -> None:
    before = proxies_of(tiny_model_path)
    answer = ok("generate", "--model", str(tiny_model_path), "--max-tokens", "2", "--pad-to", "32", PROMPT)
    assert answer["receipt"]["model"] == "tiny"
    assert answer["receipt"]["prompt_tokens_seen"] == 32
    assert proxies_of(tiny_model_path) == before


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["generate", "--temperature", "-1", "hi"], "request_refused"),
        (["generate", "--max-tokens", "0", "hi"], "request_refused"),
        (["generate", ""], "request_refused"),
        (["generate", "--base-url", "nonsense", "hi"], "proxy_unreachable"),
        (["generate", "--model", "no-such-model", "hi"], "proxy_failed"),
        (["generate", "--keys", "/no/such/key", "hi"], "key_unusable"),
        (["pull", "no-such-model"], "model_unusable"),
        (["inspect", "model", "no-such-model"], "model_unusable"),
        (["inspect", "plan", "0", "1"], "parameter_refused"),
        (["inspect", "plan", "--shape=12"], "parameter_refused"),
        (["inspect", "plan", "12"], "parameter_refused"),
        (["bench", "width", "--widths=0"], "request_refused"),
        (["inspect", "frame", "/no/such/file"], "fhe_llm_error"),
        (["inspect", "keys", "/no/such/key"], "key_unusable"),
    ],
)
def test_an_error_is_one_line_or_one_object(arguments: list[str], code: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert re.fullmatch(rf"error\[{code}\]: cannot [^\n]+\n", result.stderr), result.stderr
    as_object = run(*arguments[:-1], "--json", arguments[-1])
    assert as_object.exit_code == 2
    error = json.loads(as_object.stdout)["error"]
    assert error["code"] == code
    assert error["message"].startswith("cannot ")


def test_a_prompt_over_the_context_is_said_with_both_numbers(proxy: ProxyProcess) -> None:
    result = run(*ask(proxy, "--raw", "é" * 150))
    assert result.exit_code == 2
    assert re.search(r"error\[context_overflow\]: .*300 tokens.*256", result.stderr)


def test_the_proxys_refusal_keeps_its_code(
    tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FHE_LLM_API_KEYS", "sesame")
    with ProxyProcess(str(tiny_model_path), data_dir=tmp_path) as guarded:
        refused = run(*ask(guarded, "--json", PROMPT))
        assert json.loads(refused.stdout)["error"]["code"] == "unauthorized"
        monkeypatch.setenv("FHE_LLM_API_KEY", "sesame")
        assert ok(*ask(guarded, PROMPT))["rounds"] == 24


def test_keygen_and_inspect_keys(
    tmp_path: Path, proxy: ProxyProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "key")
    monkeypatch.setenv("FHE_LLM_PASSPHRASE", "correct horse")
    made = ok("keygen", path, "--base-url", proxy.base_url)
    assert (made["encrypted"], made["security_bits"], made["security_row"]) == (True, 128, "quantum")
    assert run("keygen", path).exit_code == 2
    seen = ok("inspect", "keys", path)
    assert seen["key_id"] == made["key_id"]
    assert seen["evaluation_bytes"] > 100_000
    answer = ok(*ask(proxy, "--keys", path, PROMPT))
    assert answer["receipt"]["key_id"] == made["key_id"]
    monkeypatch.setenv("FHE_LLM_PASSPHRASE", "wrong")
    assert "error[wrong_passphrase]" in run("inspect", "keys", path).stderr


def test_an_unencrypted_key_says_so(tmp_path: Path) -> None:
    result = run("keygen", str(tmp_path / "key"), "--no-passphrase")
    assert result.exit_code == 0
    assert "NOT encrypted" in result.stdout
    assert ok("inspect", "keys", str(tmp_path / "key"))["key_id"] is None


def test_keygen_asks_for_a_passphrase_twice(tmp_path: Path) -> None:
    result = run("keygen", str(tmp_path / "key"), input="correct horse\ncorrect horse\n")
    assert result.exit_code == 0
    assert "encrypted under the passphrase" in result.stdout
    assert "correct horse" not in result.output


def test_inspect_plan_and_model(tiny_model_path: Path) -> None:
    plan = ok("inspect", "plan", "1536", "576")
    assert plan["input_ciphertexts"] == 1
    assert plan["key_rotations"] > 0
    assert ok("inspect", "plan", "--shape", "1536x576") == plan
    assert min(plan[name] for name in ("rotations", "products", "ntts", "cost_microseconds")) > 0
    whole = ok("inspect", "plan", "--model", str(tiny_model_path))
    assert set(whole["layers"]) == {"layers.qkv", "layers.o", "layers.gate_up", "layers.down"}
    assert whole["per_token"]["rotations"] == 2 * sum(p["rotations"] for p in whole["layers"].values())
    assert "layers.qkv, fold" in run("inspect", "plan", "--model", str(tiny_model_path)).stdout
    model = ok("inspect", "model", str(tiny_model_path))
    assert (model["rounds_per_token"], model["bundle_pinned"], model["n_layers"]) == (8, False, 2)
    assert "rounds per token" in run("inspect", "model", str(tiny_model_path)).stdout


def test_inspect_plan_shows_the_groups_that_share_ciphertexts(
    proxy: ProxyProcess, tiny_model_path: Path, tmp_path: Path
) -> None:
    plan = ok("inspect", "plan", "1536", "576")
    assert [group["tokens"] for group in plan["packed"]] == [16, 32, 64]
    for group, planned in zip(plan["packed"], packed_plans(preset("default"), 1536, 576), strict=True):
        assert group["plan_id"] == planned.plan_id.hex()
        assert (group["rotations"], group["products"]) == (planned.rotation_count, planned.product_count)
        for side, up in (("input_ciphertexts", "bytes_up"), ("output_ciphertexts", "most_bytes_down")):
            assert group[side] == getattr(planned, side)
            assert group[up] * plan[side] == plan[up] * group[side]  # as much for each ciphertext
    whole = ok("inspect", "plan", "--model", str(tiny_model_path))
    assert "layers.qkv, packed 3, tokens" in run("inspect", "plan", "--model", str(tiny_model_path)).stdout
    frames = recorded(proxy, LONG)
    (tmp_path / "frame").write_bytes(frames[0])
    sent = ok("inspect", "frame", str(tmp_path / "frame"))
    (group,) = (g for g in whole["layers"]["layers.qkv"]["packed"] if g["plan_id"] == sent["plan_id"])
    assert 0 < len(frames[0]) - sent["jobs"] * group["bytes_up"] < 256  # the header


def test_pull_names_the_file(tiny_model_path: Path) -> None:
    assert ok("pull", str(tiny_model_path))["path"] == str(tiny_model_path)
    assert run("pull", str(tiny_model_path)).stdout.startswith("tiny: ")


def recorded(proxy: ProxyProcess, prompt: str) -> list[bytes]:
    """The request frames of one token."""
    frames: list[bytes] = []
    transport = Tap(
        HttpTransport(Endpoint(proxy.base_url)),
        lambda op: frames.append(op.frame) if isinstance(op, Round) else None,
    )
    with EncryptedLLM("tiny", transport=transport) as llm:
        llm.generate(prompt, max_tokens=1)
    transport.close()
    return frames


def test_inspect_frame(proxy: ProxyProcess, tmp_path: Path) -> None:
    frames = recorded(proxy, PROMPT)
    (tmp_path / "frame").write_bytes(frames[1])
    facts = ok("inspect", "frame", str(tmp_path / "frame"))
    assert (facts["kind"], facts["layer"], facts["seeded"]) == ("evaluate request", "layers.0.o", True)
    (tmp_path / "frame").write_bytes(frames[1][:-1])
    assert "error[bad_frame]" in run("inspect", "frame", str(tmp_path / "frame")).stderr


def test_the_demo_shows_receipt_and_ciphertext_but_no_text_at_the_proxy(tiny_model_path: Path) -> None:
    result = run("demo", "Where is Wally hiding?", "--model", str(tiny_model_path), "--max-tokens", "4")
    assert result.exit_code == 0
    assert result.stdout.count("Where is Wally hiding?") == 1
    for part in (
        "Your privacy receipt",
        "What the proxy saw",
        "your question occurs 0 times",
        "layers.0.qkv",
    ):
        assert part in result.stdout
    assert re.search(r"7\.9\d\d|8\.000", result.stdout)


def test_the_demo_would_notice_text() -> None:
    seen = Seen((b"hello",))
    seen.note(Round(b"..hello.."))
    seen.note(Round(b"......"))
    assert (seen.finds, seen.requests, seen.bytes_sent) == (1, 2, 15)


def test_entropy_of_bytes() -> None:
    assert entropy(bytes(range(256))) == pytest.approx(8)
    assert entropy(b"aaaa") == 0
    assert entropy(b"abab") == pytest.approx(1)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fhe_llm.cli", *arguments]


def proxies_of(model: Path) -> int:
    """Proxy processes that serve this model file."""
    count = 0
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        count += b"fhe_llm_server" in words and str(model).encode() in words
    return count


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing_behind(
    tiny_model_path: Path, number: signal.Signals, status: int
) -> None:
    before = proxies_of(tiny_model_path)
    arguments = command("generate", "--model", str(tiny_model_path), "--raw", "--max-tokens", "240", "you")
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.read(1)  # the answer has begun
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == status
    assert "Traceback" not in said
    assert proxies_of(tiny_model_path) == before


def test_serve_is_the_server(tmp_path: Path) -> None:
    helped = subprocess.run(
        command("serve", "--help"), capture_output=True, text=True, timeout=60, check=True
    )
    assert "--api-key-file" in helped.stdout
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        arguments = command("serve", "--port", port, "--data-dir", str(tmp_path))
        refused = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in refused.stderr


def test_a_proxy_that_cannot_start_gives_its_last_words(tmp_path: Path) -> None:
    begun = time.monotonic()
    with (
        pytest.raises(ProxyStartError, match="no-such-model"),
        ProxyProcess("no-such-model", data_dir=tmp_path),
    ):
        pass
    assert time.monotonic() - begun < 30


def test_help_is_quick_and_loads_no_cryptography() -> None:
    code = (
        "import sys, fhe_llm.cli.__main__ as m; "
        "sys.exit(bool({'numpy', 'tenseal', 'numba', 'tokenizers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0
