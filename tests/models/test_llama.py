"""The Llama client half: against a transcription of the equations, against itself, and against
transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_model import TinyShape, hf_weights, write_tiny_gguf

from fhe_llm.errors import ContextOverflowError, ModelError
from fhe_llm.models.bundle import ClientBundle, load_bundle, write_bundle
from fhe_llm.models.config import linear_shapes
from fhe_llm.models.gguf_file import open_gguf
from fhe_llm.models.plaintext import run_plaintext
from fhe_llm.models.registry import ClientHalf, client_half
from fhe_llm.models.resolve import open_model

VECTORS = Path(__file__).parent.parent / "vectors" / "smollm2_135m.json"
Weights = dict[str, NDArray[np.float32]]


def loaded(path: Path, folder: Path) -> tuple[ClientHalf, Weights]:
    model = open_model(path)
    bundle: ClientBundle = load_bundle(folder / "b", write_bundle(model, folder / "b"))
    return client_half(bundle), dict(model.linear_weights())


@pytest.fixture(scope="module")
def tiny(tiny_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ClientHalf, Weights]:
    return loaded(tiny_model_path, tmp_path_factory.mktemp("tiny"))


def forward(tiny: tuple[ClientHalf, Weights], ids: list[int], cache: object = None) -> NDArray[np.float32]:
    half, weights = tiny
    return run_plaintext(half.forward(ids, cache or half.new_cache(), logits="all"), weights)


def by_the_book(shape: TinyShape, ids: list[int]) -> NDArray[np.float64]:
    """Logits [T, vocab] in float64, one position and one head at a time, straight from the unfused
    weights."""
    w = {name: values.astype(np.float64) for name, values in hf_weights(shape).items()}
    hd, group = shape.head_dim, shape.n_heads // shape.n_kv_heads

    def norm(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + shape.rms_eps) * w[name]

    def turn(v: NDArray[np.float64], position: int) -> NDArray[np.float64]:
        out = v.copy()
        for j in range(hd // 2):
            angle = position * shape.rope_theta ** (-2 * j / hd)
            a, b = v[j], v[j + hd // 2]
            out[j], out[j + hd // 2] = (
                a * np.cos(angle) - b * np.sin(angle),
                b * np.cos(angle) + a * np.sin(angle),
            )
        return out

    x = w["model.embed_tokens.weight"][ids]
    for i in range(shape.n_layers):
        p = f"model.layers.{i}."
        h = norm(x, p + "input_layernorm.weight")
        q, k, v = (h @ w[f"{p}self_attn.{c}_proj.weight"].T for c in "qkv")
        mixed = np.zeros_like(q)
        for t in range(len(ids)):
            for head in range(shape.n_heads):
                own, shared = (
                    slice(head * hd, (head + 1) * hd),
                    slice(head // group * hd, (head // group + 1) * hd),
                )
                query = turn(q[t, own], t)
                scores = np.array([query @ turn(k[s, shared], s) for s in range(t + 1)]) / np.sqrt(hd)
                weights = np.exp(scores - scores.max())
                mixed[t, own] = weights @ v[: t + 1, shared] / weights.sum()
        x = x + mixed @ w[p + "self_attn.o_proj.weight"].T
        h = norm(x, p + "post_attention_layernorm.weight")
        gate, up = h @ w[p + "mlp.gate_proj.weight"].T, h @ w[p + "mlp.up_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[p + "mlp.down_proj.weight"].T
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return norm(x, "model.norm.weight") @ head.T


@pytest.mark.parametrize(
    "shape", [TinyShape(), TinyShape(n_kv_heads=4), TinyShape(n_kv_heads=1), TinyShape(tied=False)]
)
def test_equations(tmp_path: Path, shape: TinyShape) -> None:
    ids = [5, 270, 31, 31, 8, 100, 1, 77, 200]
    logits = forward(loaded(write_tiny_gguf(tmp_path / "t.gguf", shape), tmp_path), ids)
    np.testing.assert_allclose(logits, by_the_book(shape, ids), atol=1e-4, rtol=1e-4)


@settings(deadline=None, max_examples=30)
@given(ids=st.lists(st.integers(0, 273), min_size=2, max_size=20), data=st.data())
def test_pieces_equal_the_whole(
    tiny: tuple[ClientHalf, Weights], ids: list[int], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(1, len(ids) - 1))
    cache, whole = tiny[0].new_cache(), forward(tiny, ids)
    pieces = [forward(tiny, ids[:cut], cache), *(forward(tiny, [i], cache) for i in ids[cut:])]
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=2e-4)
    cache.truncate(cut)
    np.testing.assert_allclose(forward(tiny, ids[cut:], cache), whole[cut:], atol=2e-4)


def test_long_prompts_are_attended_in_blocks(
    tiny: tuple[ClientHalf, Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [int(i) for i in np.random.default_rng(0).integers(0, 274, 50)]
    whole = forward(tiny, ids)
    monkeypatch.setattr("fhe_llm.models.llama._QUERY_BLOCK", 7)
    np.testing.assert_allclose(forward(tiny, ids), whole, atol=2e-4)


def test_last_logits_and_order_of_rounds(tiny: tuple[ClientHalf, Weights]) -> None:
    half, weights = tiny
    steps, rounds = half.forward([1, 2, 3], half.new_cache()), []
    try:
        step = next(steps)
        while True:
            rounds.append(step.layer)
            assert step.x.dtype == np.float32
            assert step.x.shape == (3, linear_shapes(half.config)[step.layer][1])
            step = steps.send(step.x @ weights[step.layer].T)
    except StopIteration as stop:
        logits = stop.value
    assert rounds == list(linear_shapes(half.config))
    assert logits.shape == (1, half.config.vocab_size)
    np.testing.assert_allclose(logits[0], forward(tiny, [1, 2, 3])[-1], atol=1e-5)


def test_an_abandoned_pass_leaves_the_cache_as_it_was(tiny: tuple[ClientHalf, Weights]) -> None:
    half, weights = tiny
    cache = half.new_cache()
    forward(tiny, [1, 2, 3], cache)
    expected = forward(tiny, [4], cache.copy())
    abandoned = half.forward([9, 9, 9], cache)
    step = next(abandoned)
    abandoned.send(step.x @ weights[step.layer].T)
    abandoned.close()
    assert cache.length == 3
    np.testing.assert_array_equal(forward(tiny, [4], cache), expected)


def test_context_overflow_names_both_lengths(tiny: tuple[ClientHalf, Weights]) -> None:
    cache = tiny[0].new_cache()
    forward(tiny, [1] * 200, cache)
    with pytest.raises(ContextOverflowError, match=r"257 tokens.* holds 256"):
        forward(tiny, [1] * 57, cache)
    assert forward(tiny, [1] * 56, cache).shape[0] == 56


@pytest.mark.parametrize("ids", [[], [-1], [274]])
def test_wrong_ids_are_typed_errors(tiny: tuple[ClientHalf, Weights], ids: list[int]) -> None:
    with pytest.raises(ModelError, match="below 274"):
        forward(tiny, ids)


def test_extreme_activations_do_not_warn(tiny: tuple[ClientHalf, Weights]) -> None:
    half, weights = tiny
    loud = {name: w * 1e6 if "gate_up" in name else w for name, w in weights.items()}
    assert np.isfinite(run_plaintext(half.forward([1, 2], half.new_cache()), loud)).all()


@pytest.mark.slow
def test_greedy_tokens_are_those_of_transformers(smollm2_path: Path, tmp_path: Path) -> None:
    """Teacher-forced over all prompts x 32 positions: the arg-max agrees wherever the margin exceeds 0.1."""
    half, weights = loaded(smollm2_path, tmp_path)
    vectors = json.loads(VECTORS.read_text())
    assert len(vectors["prompts"]) >= 20
    for prompt in vectors["prompts"]:
        greedy, margins = np.array(prompt["greedy_ids"]), np.array(prompt["margins"])
        ids = prompt["prompt_ids"] + prompt["greedy_ids"][:-1]
        logits = run_plaintext(half.forward(ids, half.new_cache(), logits="all"), weights)[-len(greedy) :]
        assert len(greedy) == 32
        clear = margins > 0.1
        np.testing.assert_array_equal(logits.argmax(axis=1)[clear], greedy[clear])
        np.testing.assert_allclose(logits.max(axis=1), prompt["top_logits"], atol=2e-3)


@pytest.mark.slow
def test_the_bundle_and_weights_name_the_same_model(smollm2_path: Path) -> None:
    assert open_model(smollm2_path).model_digest == json.loads(VECTORS.read_text())["gguf_sha256"]
    assert open_gguf(smollm2_path).model_digest == open_model(smollm2_path).model_digest
