"""``fhe-llm bench``: every command measures what its name says, on the tiny model, and counts add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fhe_llm.cli.__main__ import app
from fhe_llm.cli.bench.calibrate import Sample, fit
from fhe_llm.cli.bench.concurrency import rate
from fhe_llm.cli.bench.proxy_metrics import rounds_per_pass
from fhe_llm.cli.bench.record import percentile
from fhe_llm.cli.bench.subject import open_subject
from fhe_llm.cli.proxy_process import ProxyProcess
from fhe_llm.evaluator.plan import CostModel, plan_linear
from fhe_llm.params import preset

DEFAULT = preset("default")
JUDGED_BY = {"benchmark", "commit", "date", "device", "preset", "software", "threads"}


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the user's caches; all tests of one run share theirs."""
    base = tmp_path_factory.getbasetemp() / "bench"
    monkeypatch.setenv("FHE_LLM_CACHE", str(base / "cache"))
    monkeypatch.setenv("FHE_LLM_DATA_DIR", str(base / "data"))
    monkeypatch.delenv("FHE_LLM_API_KEY", raising=False)


@pytest.fixture
def against(proxy: ProxyProcess, tiny_model_path: Path) -> list[str]:
    """Options that name a running proxy."""
    return ["--model", str(tiny_model_path), "--base-url", proxy.base_url]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def ok(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.slow
def test_bench_generation_splits_the_time(tiny_model_path: Path) -> None:
    found = ok("bench", "--model", str(tiny_model_path), "--tokens", "4", "--repeats", "2", "--no-product")
    split = found["split_seconds_per_token"]
    assert set(split) == {"encrypt", "wire", "queue", "rotations", "products", "finish", "decrypt", "model"}
    assert sum(split.values()) == pytest.approx(found["seconds_per_token"]["median"], rel=0.25)
    assert found["tokens_equal_plaintext"] is True
    assert found["ratio_to_plaintext"] > 1
    assert {"commit", "date", "device", "preset", "software", "threads", "prompt_tokens"} <= set(found)


@pytest.mark.slow
def test_bench_alone_also_compares_a_product_with_tenseal(tiny_model_path: Path) -> None:
    found = ok("bench", "--model", str(tiny_model_path), "--tokens", "2", "--repeats", "1")
    assert found["product"]["shape"] == {"out_features": 1536, "in_features": 576}
    assert found["product"]["ratio_to_tenseal"] > 1


@pytest.mark.slow
def test_bench_product_is_compared_with_tenseal() -> None:
    found = ok("bench", "product", "--out", "48", "--in", "32", "--repeats", "2")
    assert found["ratio_to_tenseal"] > 1
    assert found["fhe_llm"]["log2_error"] < -12
    assert found["shape"] == {"out_features": 48, "in_features": 32}
    assert {"median", "minimum", "maximum", "runs"} == set(found["fhe_llm"]["product"])


def test_bench_product_measures_the_two_shapes_of_the_documentation() -> None:
    from fhe_llm.cli.bench.product import SHAPES

    assert SHAPES == ((768, 768), (1536, 576))


def test_bench_decode_has_what_a_judge_reads(against: list[str], tmp_path: Path) -> None:
    path = tmp_path / "results" / "decode.json"
    found = ok("bench", "decode", *against, "--tokens", "4", "--repeats", "2", "--output", str(path))
    assert json.loads(path.read_text()) == found
    assert set(found) >= JUDGED_BY
    for name in ("seconds_per_token", "plaintext_seconds_per_token", "ratio_to_plaintext"):
        assert found[name] > 0
        assert found[f"{name}_spread"]["runs"] == 2
    assert found["plaintext_backend"]
    assert found["rounds_per_token"] == 8
    assert found["bytes_per_token"] == found["bytes_up_per_token"] + found["bytes_down_per_token"]
    assert found["bytes_per_token"] > 8 * 20_000
    assert found["split_seconds_per_token"]["products"] > 0
    assert found["tokens_equal_plaintext"] is True


def test_bench_prefill_counts_the_prompt(against: list[str]) -> None:
    found = ok("bench", "prefill", *against, "--prompt-tokens", "45", "--repeats", "1")
    assert set(found) >= JUDGED_BY
    assert found["prompt_tokens"] == 45
    fresh = found["nothing_cached"]
    assert fresh["prompt_tokens_seen_by_proxy"] == 45
    assert fresh["bytes_per_prompt_token"] == (fresh["bytes_up"] + fresh["bytes_down"]) / 45
    assert fresh["plaintext_backend"]
    # the tiny model's template has less in common between chats than one block of the cache
    assert found["prefix_cached"]["prompt_tokens_seen_by_proxy"] == 45
    assert fresh["rounds"] >= 8


def test_chats_share_a_prefix_only_up_to_their_first_word(tiny_model_path: Path) -> None:
    subject = open_subject(str(tiny_model_path))
    ids = [subject.chat_ids(list(chat)) for chat in subject.chats(4, 45)]
    assert {len(each) for each in ids} == {45}
    assert len(set(ids)) == 4


def test_chats_may_be_as_long_as_a_page(tiny_model_path: Path) -> None:
    subject = open_subject(str(tiny_model_path))
    (chat,) = subject.chats(1, 512)
    assert len(subject.chat_ids(list(chat))) == 512


@pytest.mark.slow
def test_bench_concurrency_sweeps_and_reports_batches(against: list[str]) -> None:
    found = ok("bench", "concurrency", *against, "--levels", "1,2", "--tokens", "4", "--repeats", "1")
    assert [level["conversations"] for level in found["sweep"]] == [1, 2]
    assert found["sweep"][0]["rounds_per_pass"] == 1
    assert 1 <= found["sweep"][1]["rounds_per_pass"] <= 2
    assert found["ratio_to_one_conversation"]["1"] == 1
    assert found["sweep"][0]["client_cpu_seconds_per_token"] > 0
    assert found["sweep"][0]["proxy_cpu_seconds_per_token"] is None
    assert found["ratio_to_one_conversation"]["2"] > 0


def test_the_rate_counts_only_while_all_decode() -> None:
    assert rate([[0, 1, 2, 3, 4]]) == 1
    assert rate([[0, 1, 2, 3, 4], [2, 2.5, 3, 3.5, 4]]) == pytest.approx(6 / 2)
    assert rate([[0, 1], [2, 3]]) == 0


@pytest.mark.slow
def test_bench_memory_reads_the_process_and_its_keys(tiny_model_path: Path) -> None:
    found = ok("bench", "memory", "--model", str(tiny_model_path), "--tokens", "2", "--clients", "2")
    assert found["proxy_bytes_after_serving"]["rss"] >= found["proxy_bytes_after_serving"]["pss"] > 10 << 20
    keys = found["counts_per_token"]["rotation_keys"]
    # two digits, two components, three limbs of 4096 words of four bytes, packed to 30 and 31 bits
    assert found["key_bytes_per_client"] == pytest.approx(keys * 2 * 2 * 4096 * (30 + 30 + 31) / 8, rel=0.01)
    assert found["rounds_per_token"] == found["counts_per_token"]["rounds"] == 8


def test_bench_overhead_repeats_the_rounds_of_a_token(against: list[str]) -> None:
    found = ok("bench", "overhead", *against, "--passes", "2")
    assert (found["rounds"], found["rounds_per_token"]) == (16, 8)
    assert 0 < found["overhead_seconds"]["p50"] <= found["overhead_seconds"]["p95"]
    assert set(found["overhead_seconds_by_layer"]) == {
        "layers.qkv",
        "layers.o",
        "layers.gate_up",
        "layers.down",
    }


@pytest.mark.slow
def test_bench_plaintext_and_width(tiny_model_path: Path) -> None:
    engines = ok("bench", "plaintext", "--model", str(tiny_model_path), "--tokens", "3", "--repeats", "1")[
        "engines"
    ]
    assert engines[0]["engine"].startswith("float reference")
    assert all(engine["token_ids"] == engines[0]["token_ids"] for engine in engines)
    found = ok("bench", "width", "--widths", "32,64", "--repeats", "1")
    assert [row["width"] for row in found["widths"]] == [32, 64]
    assert found["widths"][1]["products"] == plan_linear(DEFAULT, 64, 64).product_count
    assert found["read_bytes_per_second"] > 0


def test_figures_for_people_are_one_line_each(tiny_model_path: Path) -> None:
    result = run("bench", "plaintext", "--model", str(tiny_model_path), "--tokens", "3", "--repeats", "2")
    assert result.exit_code == 0
    assert "engines 1, seconds per token" in result.stdout
    assert "2 runs)" in result.stdout


def test_a_fit_finds_the_costs_that_made_the_samples_and_none_below_zero() -> None:
    true = CostModel(rotation=7.0, product=2.0, reply=300.0, request=500.0)
    plans = [
        plan_linear(DEFAULT, *shape)
        for shape in ((64, 64), (576, 1536), (4096, 512), (512, 5000), (960, 576))
    ]
    found = fit([Sample(plan, plan.cost(true), 0.0, 0.0) for plan in plans])
    assert all(plan.cost(found) == pytest.approx(plan.cost(true)) for plan in plans)
    bent = fit(
        [Sample(plan, plan.product_count + 1000.0 / (1 + plan.rotation_count), 0.0, 0.0) for plan in plans]
    )
    assert min(bent.rotation, bent.product, bent.reply, bent.request) >= 0


@pytest.mark.slow
def test_calibration_compares_plans(tiny_model_path: Path) -> None:
    found = ok("bench", "calibrate", "--model", str(tiny_model_path), "--repeats", "2")
    assert set(found["fitted"]) == set(found["in_use"])
    layer = found["layers"]["layers.qkv"]
    assert layer["fitted"]["cost_microseconds"] <= layer["in_use"]["cost_microseconds"]


def test_percentiles_and_batches() -> None:
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.95) == 4.0
    assert percentile([1.0], 0.0) == 1.0
    after = {
        'fhe_llm_rounds_total{layer_kind="qkv"}': 9.0,
        'fhe_llm_rounds_total{layer_kind="o"}': 3.0,
        "fhe_llm_batch_jobs_count": 4.0,
    }
    assert rounds_per_pass({}, after) == 3.0
    assert rounds_per_pass(after, after) is None
