"""The client bundle: everything the client half of a model needs, in one safetensors file and nothing
executable.

The embedding stays in the quantised bytes of the model file, so the bundle of SmolLM2-135M has 32 MB. The
same model gives the same bytes everywhere, so the SHA-256 of the file is its identity; for known models it is
pinned here, which is why the bundle may come from an untrusted proxy.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fhe_llm.errors import ModelError
from fhe_llm.models.config import ModelConfig, make_config
from fhe_llm.models.safetensors_header import read_safetensors, write_safetensors
from fhe_llm.models.source import ModelSource, client_shapes
from fhe_llm.models.steps import Floats
from fhe_llm.models.stored_tensor import StoredTensor
from fhe_llm.models.tokenizer_data import TokenizerData, make_tokenizer_data

FORMAT: Final = "fhe-llm bundle 1"

PINNED_DIGESTS: Final[dict[str, str]] = {
    "smollm2-135m": "35f06ce0e477ca9bee832ee3ad4f1f7c6d87238838771c54ef1b1f862b1ddde0",
}
"""Bundle digests of known models. A bundle of any other model is trusted on first use."""


@dataclass(frozen=True)
class ClientBundle:
    """A loaded bundle. ``head`` is ``embedding`` itself where they are tied."""

    config: ModelConfig
    tokenizer: TokenizerData
    model_digest: str  # SHA-256 of the model file(s), hex
    digest: str  # SHA-256 of the bundle, hex
    embedding: Floats  # [vocab, d]
    head: Floats  # [vocab, d]
    attention_norms: Floats  # [n_layers, d]
    mlp_norms: Floats  # [n_layers, d]
    output_norm: Floats  # [d]


def write_bundle(model: ModelSource, path: Path) -> str:
    """Write the bundle (temporary file, then rename) and return its digest. Raises :class:`ModelError` when
    the disk does not take it."""
    metadata = {
        "format": FORMAT,
        "model_digest": model.model_digest,
        "config": _canonical(model.config.model_dump()),
        "tokenizer": _canonical(model.tokenizer.model_dump()),
    }
    stored = model.client_tensors()
    metadata["tensors"] = _canonical({name: {"kind": t.kind, "shape": t.shape} for name, t in stored.items()})
    chunks = write_safetensors(stored, metadata)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
            temporary = Path(file.name)
            file.writelines(chunks)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise ModelError(
            f"cannot write bundle {path}: {error.strerror}. Free some space or choose a folder."
        ) from None
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def load_bundle(path: Path, expected_digest: str | None = None) -> ClientBundle:
    """Read a bundle file; see :func:`parse_bundle`. Raises :class:`ModelError`."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ModelError(f"cannot read bundle {path}: {error.strerror}. Download it again.") from None
    return parse_bundle(data, expected_digest)


def parse_bundle(data: NDArray[np.uint8], expected_digest: str | None = None) -> ClientBundle:
    """Check and decode bundle bytes, which may come from anybody.

    Sizes and shapes are checked before anything is decoded; memory stays within about 30 times the bytes
    given. Raises :class:`ModelError` for bytes that are not a bundle, or whose SHA-256 is not
    ``expected_digest``.
    """
    digest = hashlib.sha256(data.data).hexdigest()
    if expected_digest is not None and digest != expected_digest:
        raise ModelError(
            f"cannot use bundle: its SHA-256 is {digest}, expected {expected_digest}. Download it again; "
            "if that does not "
            "help, the proxy serves another model than it says."
        )
    raw, metadata = read_safetensors(data)
    if metadata.get("format") != FORMAT:
        raise ModelError(
            f"cannot use bundle: its format is {metadata.get('format')!r}, not {FORMAT!r}. Update fhe-llm."
        )
    if not re.fullmatch("[0-9a-f]{64}", metadata.get("model_digest", "")):
        raise ModelError("cannot use bundle: its model digest is malformed. Download it again.")
    config = make_config(**_object(metadata, "config"))
    tokenizer = make_tokenizer_data(**_object(metadata, "tokenizer"))
    stored = _described(raw, _object(metadata, "tensors"), config)
    floats = {name: _finite(name, tensor) for name, tensor in stored.items()}
    blocks = range(config.n_layers)
    return ClientBundle(
        config=config,
        tokenizer=tokenizer,
        model_digest=metadata["model_digest"],
        digest=digest,
        embedding=floats["embedding"],
        head=floats["embedding" if config.tied_embeddings else "head"],
        attention_norms=np.stack([floats[f"layers.{i}.attention_norm"] for i in blocks]),
        mlp_norms=np.stack([floats[f"layers.{i}.mlp_norm"] for i in blocks]),
        output_norm=floats["output_norm"],
    )


def _described(
    raw: dict[str, StoredTensor], descriptions: dict[str, Any], config: ModelConfig
) -> dict[str, StoredTensor]:
    """The bundle's tensors with the kind and shape its metadata gives, checked against the configuration."""
    wanted = client_shapes(config)
    if set(wanted) != set(raw) or set(wanted) != set(descriptions):
        raise ModelError(
            "cannot use bundle: its tensors are not those of its configuration. Download it again."
        )
    stored = {}
    for name, shape in wanted.items():
        about = descriptions[name]
        kind = about.get("kind") if isinstance(about, dict) else None
        if not isinstance(kind, str) or about.get("shape") != list(shape):
            raise ModelError(f"cannot use bundle: tensor {name} is not of shape {shape}. Download it again.")
        stored[name] = StoredTensor(kind, shape, raw[name].data)
    return stored


def _finite(name: str, tensor: StoredTensor) -> Floats:
    values = tensor.floats()
    if not np.isfinite(values).all():
        raise ModelError(
            f"cannot use bundle: tensor {name} holds values that are not finite. Download it again."
        )
    return values


def _object(metadata: dict[str, str], key: str) -> dict[str, Any]:
    try:
        found = json.loads(metadata.get(key, ""))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ModelError(f"cannot use bundle: its {key} is not a JSON object. Download it again.")
    return found


def _canonical(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
