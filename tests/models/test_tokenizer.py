"""Token ids against transformers, and streaming decoding against decoding at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import SPECIALS, vocabulary

from fhe_llm.errors import ModelError
from fhe_llm.models.gguf_file import open_gguf
from fhe_llm.models.resolve import open_model
from fhe_llm.models.tokenizer import IncrementalDecoder, TextTokenizer
from fhe_llm.models.tokenizer_data import TokenizerData

WORD_LEVEL = '{"model":{"type":"WordLevel","vocab":{"a":1},"unk_token":"u"},"decoder":{"type":"ByteLevel"}}'
VECTORS = Path(__file__).parent.parent / "vectors" / "smollm2_135m.json"


@pytest.fixture(scope="module")
def tokenizer(tiny_model_path: Path) -> TextTokenizer:
    return TextTokenizer(open_gguf(tiny_model_path).tokenizer)


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> TextTokenizer:
    return TextTokenizer(open_model(smollm2_path).tokenizer)


def streamed(tokenizer: TextTokenizer, ids: list[int]) -> str:
    decoder = IncrementalDecoder(tokenizer)
    return "".join([decoder.feed(i) for i in ids]) + decoder.finish()


@given(ids=st.lists(st.integers(0, len(vocabulary()) - 1), max_size=40))
def test_streamed_pieces_equal_the_whole(tokenizer: TextTokenizer, ids: list[int]) -> None:
    assert streamed(tokenizer, ids) == tokenizer.decode(ids)
    expected = tokenizer._parsing.decode(ids, skip_special_tokens=True)
    assert tokenizer.decode(ids) == expected


@given(text=st.text(max_size=60))
def test_any_text_survives(tokenizer: TextTokenizer, text: str) -> None:
    ids = tokenizer.encode(text, parse_special=False)
    assert tokenizer.decode(ids) == text
    assert streamed(tokenizer, ids) == text


def test_a_character_appears_when_it_is_complete(tokenizer: TextTokenizer) -> None:
    decoder = IncrementalDecoder(tokenizer)
    assert [decoder.feed(i) for i in tokenizer.encode("é🙂")] == ["", "é", "", "", "", "🙂"]
    decoder.feed(tokenizer.encode("🙂")[0])
    assert decoder.finish() == "\ufffd"


def test_special_tokens_only_where_asked(tokenizer: TextTokenizer) -> None:
    text = "a<|im_end|>b"
    assert 2 in tokenizer.encode(text)
    assert not set(tokenizer.encode(text, parse_special=False)) & set(range(len(SPECIALS)))
    assert tokenizer.decode(tokenizer.encode(text)) == "ab"
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text
    assert (tokenizer.eos_ids, tokenizer.special_tokens["<|im_end|>"]) == ({2, 0}, 2)


def test_bos_only_where_the_model_wants_it(tiny_model_path: Path) -> None:
    data = open_gguf(tiny_model_path).tokenizer
    assert TextTokenizer(data).encode("a", add_special=True) == TextTokenizer(data).encode("a")
    wants = TextTokenizer(data.model_copy(update={"add_bos": True}))
    assert wants.encode("a", add_special=True) == [1, *wants.encode("a")]


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe", "qwen2"])
def test_known_pre_tokenizers_survive_a_round_trip(tiny_model_path: Path, pre: str) -> None:
    data = open_gguf(tiny_model_path).tokenizer.model_copy(update={"pre": pre})
    text = "The year 2024:\n\n  it's naïve, x=12345!"
    assert TextTokenizer(data).decode(TextTokenizer(data).encode(text)) == text


def test_errors_are_typed(tokenizer: TextTokenizer, tiny_model_path: Path) -> None:
    data = open_gguf(tiny_model_path).tokenizer
    with pytest.raises(ModelError, match="'martian'"):
        TextTokenizer(data.model_copy(update={"pre": "martian"}))
    with pytest.raises(ModelError, match="not a pair"):
        TextTokenizer(data.model_copy(update={"merges": ("ab",)}))
    with pytest.raises(ModelError, match="cannot build tokenizer"):
        TextTokenizer(data.model_copy(update={"merges": ("q zzz",)}))
    with pytest.raises(ModelError, match="99999"):
        tokenizer.decode([99999])
    with pytest.raises(ModelError, match="surrogates"):
        tokenizer.encode("\ud800")
    for text in (
        "{}",
        "[]",
        '{"decoder":{"type":"Metaspace"}}',
        '{"decoder":{"type":"ByteLevel"}}',
        "nonsense",
    ):
        with pytest.raises(ModelError, match="cannot build tokenizer"):
            TextTokenizer(TokenizerData(kind="json", json_text=text))


@pytest.mark.slow
def test_ids_equal_those_of_transformers(smollm2: TextTokenizer) -> None:
    for case in json.loads(VECTORS.read_text())["texts"]:
        assert smollm2.encode(case["text"]) == case["ids"], case["text"]
        assert smollm2.decode(case["ids"], skip_special=False) == case["text"]


@pytest.mark.slow
def test_numerals_are_split_singly_before_anything_else(smollm2: TextTokenizer) -> None:
    """Where the model's own pre-tokenizer differs from the one transformers builds from GGUF."""
    pieces = [smollm2.decode([i]) for i in smollm2.encode("a  12 ½")]
    assert pieces[:5] == ["a", "  ", "1", "2", " "]


@pytest.mark.slow
@given(text=st.text(st.characters(min_codepoint=0x20, max_codepoint=0x3FFFF, codec="utf-8"), max_size=80))
def test_any_text_survives_the_real_vocabulary(smollm2: TextTokenizer, text: str) -> None:
    """But for some control characters and planes 4 to 15, whose bytes SmolLM2's vocabulary lacks."""
    ids = smollm2.encode(text, parse_special=False)
    assert streamed(smollm2, ids) == smollm2.decode(ids) == text
