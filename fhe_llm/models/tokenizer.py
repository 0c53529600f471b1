"""Text to token ids and back, through the ``tokenizers`` package. Byte-level BPE only (GPT-2, SmolLM, Llama
3, Qwen 2)."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from fhe_llm.errors import ModelError
from fhe_llm.models.tokenizer_data import CONTROL, USER_DEFINED, TokenizerData

_LLAMA_3: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2: Final = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")


class TextTokenizer:
    """Encode, decode, and the ids that end a turn.

    Special tokens written out in a text (``<|im_start|>``) become control tokens only under
    ``parse_special=True``; text from users inside a chat is protected by
    :meth:`fhe_llm.models.chat_template.ChatTemplate.encode`.
    """

    def __init__(self, data: TokenizerData) -> None:
        """Raises :class:`ModelError` for a pre-tokenizer or a tokenizer.json this class does not cover."""
        self._parsing = _build(data)
        self._adds_bos = data.bos_id if data.add_bos else None
        self._json = data.kind == "json"
        self.bos_id, self.eos_ids = data.bos_id, frozenset(data.eos_ids)
        added = self._parsing.get_added_tokens_decoder()
        self.special_tokens: dict[str, int] = {t.content: i for i, t in added.items() if t.special}
        self._special_ids = frozenset(self.special_tokens.values())
        self._added_text = {i: t.content for i, t in added.items()}

    def encode(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Token ids; ``add_special`` puts the model's own prefix (BOS) before them where it has one.

        Bytes the vocabulary lacks are left out, as transformers does it (SmolLM2 has no token for planes 4 to
        15). Raises :class:`ModelError` for lone surrogates.
        """
        tokenizer = self._parsing if parse_special else self._plain
        try:
            ids: list[int] = tokenizer.encode(text, add_special_tokens=add_special and self._json).ids
        except Exception as error:  # noqa: BLE001  the package raises bare Exception
            raise ModelError(
                f"cannot encode text: {error}. Pass valid Unicode without lone surrogates."
            ) from None
        return [self._adds_bos, *ids] if add_special and self._adds_bos is not None else ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of the ids; incomplete UTF-8 becomes U+FFFD. Raises :class:`ModelError` for an unknown
        id."""
        return b"".join(self.token_bytes(i, skip_special=skip_special) for i in ids).decode(
            "utf-8", "replace"
        )

    def token_bytes(self, token_id: int, *, skip_special: bool = True) -> bytes:
        """The UTF-8 bytes one token stands for; empty for a special token unless asked for."""
        if token_id in self._special_ids and skip_special:
            return b""
        text = self._added_text.get(token_id) or self._parsing.id_to_token(token_id)
        if text is None:
            raise ModelError(
                f"cannot decode token {token_id}: it is not in the vocabulary. Use the tokenizer of this "
                "model."
            )
        try:
            return bytes(self._byte_of[c] for c in text)
        except KeyError:  # an added token is stored as itself, not in the byte alphabet
            return text.encode("utf-8")

    @property
    def size(self) -> int:
        """Ids below this stand for tokens, added ones included."""
        count: int = self._parsing.get_vocab_size(with_added_tokens=True)
        return count

    @cached_property
    def _plain(self) -> Tokenizer:
        copy = Tokenizer.from_str(self._parsing.to_str())
        copy.encode_special_tokens = True
        return copy

    @cached_property
    def _byte_of(self) -> dict[str, int]:
        return {character: byte for byte, character in enumerate(byte_alphabet())}


class IncrementalDecoder:
    """Feed ids one by one; text comes out when its UTF-8 is complete.

    All pieces and :meth:`finish` together equal ``tokenizer.decode`` of all ids.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        """The text that this token completes, possibly empty."""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """What is left: empty, or U+FFFD for a character that never became complete."""
        return self._utf8.decode(b"", final=True)


def byte_alphabet() -> str:
    """The 256 characters that byte-level BPE writes bytes as (GPT-2's ``bytes_to_unicode``), indexed by
    byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    code = {byte: byte for byte in printable} | {byte: 256 + n for n, byte in enumerate(others)}
    return "".join(chr(code[byte]) for byte in range(256))


def _build(data: TokenizerData) -> Tokenizer:
    try:
        return _from_json(data.json_text) if data.kind == "json" else _from_vocabulary(data)
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001  the package raises bare Exception
        raise ModelError(f"cannot build tokenizer: {str(error)[:200]}. Use an intact model.") from None


def _from_vocabulary(data: TokenizerData) -> Tokenizer:
    merges = [_pair(merge) for merge in data.merges]
    vocabulary = {token: i for i, token in enumerate(data.tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=data.pre in ("llama-bpe", "llama3")))
    tokenizer.pre_tokenizer = _pre_tokenizer(data.pre)
    tokenizer.decoder = decoders.ByteLevel()
    if data.pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    typed = list(zip(data.tokens, data.token_types, strict=True))
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t, k in typed if k == CONTROL]
    )
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, k in typed if k == USER_DEFINED])
    if tokenizer.get_vocab_size() != len(vocabulary):
        raise ModelError(
            "cannot build tokenizer: its special tokens are not in the vocabulary. Use an intact model."
        )
    return tokenizer


def _pair(merge: str) -> tuple[str, str]:
    left, space, right = merge.partition(" ")
    if not space:
        raise ModelError(f"cannot build tokenizer: merge {merge[:40]!r} is not a pair. Use an intact model.")
    return left, right


def _pre_tokenizer(name: str) -> Any:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    if name in ("gpt-2", "gpt2", "default"):
        return byte_level
    patterns = {"llama-bpe": _LLAMA_3, "llama3": _LLAMA_3, "qwen2": _QWEN_2}
    if name not in patterns:
        known = "smollm, gpt-2, llama-bpe, qwen2"
        raise ModelError(
            f"cannot build tokenizer: pre-tokenizer {name!r} is unknown. Use a model with one of {known}."
        )
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(patterns[name]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _from_json(text: str) -> Tokenizer:
    parts = json.loads(text)
    kinds = ((parts.get("model") or {}).get("type"), (parts.get("decoder") or {}).get("type"))
    if kinds != ("BPE", "ByteLevel"):
        raise ModelError(
            f"cannot build tokenizer: its model and decoder are {kinds}. Use a model with byte-level BPE."
        )
    tokenizer = Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def special_pattern(specials: Sequence[str]) -> re.Pattern[str]:
    """Matches any of the special tokens, the longest where several start at the same place."""
    ordered = sorted(specials, key=len, reverse=True)
    return re.compile("|".join(re.escape(token) for token in ordered) or r"(?!)")
