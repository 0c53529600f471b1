"""The user's key: made, saved, loaded, exported (evaluation keys only), retired and wiped here.

What cannot be promised: Python and SEAL may keep copies of secret bytes in memory that nobody can overwrite (SEAL
clears its own on destruction), and the operating system may swap. ``wipe`` does what can be done.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from fhe_llm.client.engine import SecretEngine
from fhe_llm.client.keyfile import KeyPayload, read_key_file, replace_file, write_key_file
from fhe_llm.errors import FrameError, KeyRingError, ParameterError, RetiredKeyError
from fhe_llm.params import Preset, preset
from fhe_llm.progress import Progress, silent
from fhe_llm.wire import frame as wire
from fhe_llm.wire.limbs import Words

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EvaluationKeyExport:
    """Evaluation keys as the proxy stores them: they rotate ciphertexts and decrypt nothing."""

    key_id: bytes  # 32 bytes, SHA-256 of the frame
    frame: bytes
    elements: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SavedKey:
    """Where a key went and how it is protected; ``note`` says it in a sentence."""

    path: Path
    encrypted: bool
    note: str


class KeyRing:
    """One secret key under one preset, and the evaluation keys made from it.

    ``repr`` shows no secret; copying and pickling raise ``TypeError``. Usable after a fork. A ring as a context manager
    wipes itself at the end.
    """

    def __init__(self, parameters: Preset, engine: SecretEngine, facts: dict[str, Any] | None = None) -> None:
        """Use :meth:`generate` or :meth:`load`."""
        self.preset = parameters
        self._engine: SecretEngine | None = engine
        self._facts = facts or {"preset": parameters.name, "created": int(time.time())}
        self._evaluation: EvaluationKeyExport | None = None
        self._path: Path | None = None
        self._retired: str | None = self._facts.get("retired")

    @classmethod
    def generate(cls, parameters: Preset | str = "default") -> KeyRing:
        """A new key, drawn by SEAL (ternary). About 10 ms. Raises :class:`ParameterError`."""
        chosen = preset(parameters) if isinstance(parameters, str) else parameters
        return cls(chosen, SecretEngine(chosen))

    @classmethod
    def load(cls, path: str | Path, *, passphrase: str | None = None) -> KeyRing:
        """The key saved at ``path``, and its evaluation keys if they lie intact beside it.

        Raises :class:`WrongPassphraseError`, :class:`RetiredKeyError` and :class:`KeyRingError` (missing, damaged,
        readable by others).
        """
        path = Path(path)
        payload = read_key_file(path, passphrase)
        try:
            parameters = preset(str(payload.facts.get("preset")))
            ring = cls(parameters, SecretEngine(parameters, payload.secret), payload.facts)
        except ParameterError as error:
            raise KeyRingError(f"cannot load the key from {path}: {error}") from None
        finally:
            payload.secret[:] = bytes(len(payload.secret))
        ring._path = path
        ring._retired = ring._retired or _read_retirement(path)
        ring._check_usable()
        ring._evaluation = _read_evaluation(path, payload.facts)
        return ring

    def save(self, path: str | Path, *, passphrase: str | None = None) -> SavedKey:
        """Write the key file, encrypted under ``passphrase`` (scrypt, AES-256-GCM) or plain with mode 0600.

        The evaluation keys, which are public, go into ``<path>.evaluation``; the key file vouches for their hash, so a
        ring that exported more since should be saved again. Raises :class:`KeyRingError`, the older file unharmed.
        """
        path = Path(path)
        engine = self._alive()
        facts = self._facts | {"retired": self._retired, "evaluation": _identity(self._evaluation)}
        secret = engine.save_secret()
        try:
            write_key_file(path, KeyPayload(facts, secret), passphrase)
        finally:
            secret[:] = bytes(len(secret))
        if self._evaluation is not None:
            _write_evaluation(path, self._evaluation)
        if self._retired is None:
            with contextlib.suppress(OSError):
                _retirement_path(path).unlink(missing_ok=True)
        self._facts, self._path = facts, path
        if passphrase is not None:
            return SavedKey(path, True, f"{path}: encrypted under the passphrase")
        note = f"{path}: NOT encrypted, protected only by its file mode 0600"
        _LOG.warning("key saved to %s", note)
        return SavedKey(path, False, note)

    def evaluation_keys(self, elements: Iterable[int], *, progress: Progress = silent) -> EvaluationKeyExport:
        """Evaluation keys for at least these Galois elements.

        The export, and with it the key id, stays the same until an element is asked for that it lacks; then only the
        missing ones are made. About 5 ms and 180 KB an element. Raises :class:`RetiredKeyError`,
        :class:`KeyRingError`.
        """
        engine = self.engine()
        have = self._evaluation
        wanted = set(elements)
        if not wanted:
            raise KeyRingError(
                "cannot export evaluation keys: no Galois elements were named. Name the plan's."
            )
        missing = tuple(sorted(wanted - set(have.elements if have else ())))
        if have is None or missing:
            self._evaluation = _extended(self.preset, have, missing, engine.galois_words(missing, progress))
        assert self._evaluation is not None  # noqa: S101  just made
        return self._evaluation

    @property
    def key_id(self) -> bytes | None:
        """The id of the current evaluation keys; None before the first export."""
        return self._evaluation.key_id if self._evaluation else None

    @property
    def retired(self) -> str | None:
        """Why this key must not be used any more, or None."""
        return self._retired

    def engine(self) -> SecretEngine:
        """The secret operations; raises :class:`RetiredKeyError` and, after a wipe, :class:`KeyRingError`."""
        self._check_usable()
        return self._alive()

    def retire(self, reason: str) -> None:
        """Refuse every further use, also after a restart: a mark goes beside the key file, if there is one.

        Where the mark cannot be written this process still refuses, and a log line says so.
        """
        if self._retired is None:
            self._retired = reason
            if self._path is not None:
                try:
                    replace_file(_retirement_path(self._path), [json.dumps({"reason": reason}).encode()])
                except OSError as error:
                    _LOG.error(
                        "cannot mark %s as retired (%s): delete it and make a new key", self._path, error
                    )

    def wipe(self) -> None:
        """Let go of the secret key; SEAL clears its copies when the last reference goes. Files stay."""
        self._engine = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wipe()

    def __repr__(self) -> str:
        state = "retired" if self._retired else "wiped" if self._engine is None else "ready"
        known = self.key_id.hex()[:16] if self.key_id else None
        return f"KeyRing(preset={self.preset.name!r}, key_id={known!r}, {state})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("cannot copy or pickle a key ring. Use KeyRing.save and KeyRing.load.")

    def _alive(self) -> SecretEngine:
        if self._engine is None:
            raise KeyRingError("cannot use the key: it was wiped from memory. Load it again.")
        return self._engine

    def _check_usable(self) -> None:
        if self._retired is not None:
            raise RetiredKeyError(f"cannot use the key: it was retired ({self._retired}). Make a new one.")


def _extended(
    parameters: Preset, have: EvaluationKeyExport | None, missing: tuple[int, ...], words: Words
) -> EvaluationKeyExport:
    """The union of an export and fresh keys, ascending."""
    parts = {element: words[i] for i, element in enumerate(missing)}
    if have is not None:
        old = wire.decode(have.frame, expect=(wire.Kind.EVALUATION_KEYS,))
        assert isinstance(old, wire.KeyFrame)  # noqa: S101  what decode was told to expect
        parts |= {element: old.words[i] for i, element in enumerate(old.elements)}
    elements = tuple(sorted(parts))
    frame = wire.encode(
        wire.KeyFrame(parameters, elements, np.stack([parts[element] for element in elements]))
    )
    return EvaluationKeyExport(wire.key_id(frame), frame, elements)


def _identity(export: EvaluationKeyExport | None) -> dict[str, Any] | None:
    return None if export is None else {"key_id": export.key_id.hex(), "elements": list(export.elements)}


def _write_evaluation(path: Path, export: EvaluationKeyExport) -> None:
    try:
        replace_file(_evaluation_path(path), [export.frame])
    except OSError as error:
        _LOG.warning(
            "evaluation keys not saved beside %s (%s): they will be made again", path, error.strerror
        )


def _read_evaluation(path: Path, facts: dict[str, Any]) -> EvaluationKeyExport | None:
    """The saved export if its hash is the one the key file names; otherwise None: new ones can be made any time."""
    known = facts.get("evaluation")
    if not isinstance(known, dict):
        return None
    try:
        frame = _evaluation_path(path).read_bytes()
        decoded = wire.decode(frame, expect=(wire.Kind.EVALUATION_KEYS,))
    except (OSError, FrameError):
        return None
    key_id = wire.key_id(frame)
    if key_id.hex() != known.get("key_id") or not isinstance(decoded, wire.KeyFrame):
        return None
    return EvaluationKeyExport(key_id, frame, decoded.elements)


def _evaluation_path(path: Path) -> Path:
    return path.with_name(path.name + ".evaluation")


def _retirement_path(path: Path) -> Path:
    return path.with_name(path.name + ".retired")


def _read_retirement(path: Path) -> str | None:
    mark = _retirement_path(path)
    try:
        return str(json.loads(mark.read_bytes())["reason"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return "marked as retired"
