"""From a key frame's bytes to keys an evaluator can use. Blocking; runs in a worker thread."""

from __future__ import annotations

from fhe_llm.errors import FrameError
from fhe_llm.evaluator.contract import EvaluationKeys, Evaluator
from fhe_llm.params import Preset
from fhe_llm.wire.frame import KeyFrame, Kind, Limits, decode
from fhe_llm_server.limits import MAX_KEY_BYTES
from fhe_llm_server.prepared_keys import PreparedKey
from fhe_llm_server.refusal import Refusal


class KeyFrames:
    """Checks key frames against the served preset and prepares them."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator

    def verify(self, frame: bytes) -> None:
        """Raises ``bad_frame`` or ``wrong_preset`` for a frame that cannot be used."""
        self._decode(frame)

    def prepare(self, key_id: str, frame: bytes) -> PreparedKey:
        """Decode and hand to the evaluator; raises as :meth:`verify`."""
        keys = self._decode(frame)
        prepared = self._evaluator.prepare_keys(keys)
        nbytes = int(getattr(prepared, "nbytes", 0)) or keys.words.nbytes
        return PreparedKey(key_id, frozenset(keys.elements), prepared, nbytes)

    def _decode(self, data: bytes) -> EvaluationKeys:
        try:
            frame = decode(data, expect=(Kind.EVALUATION_KEYS,), limits=Limits(max_frame_bytes=MAX_KEY_BYTES))
        except FrameError as error:
            raise Refusal("bad_frame", str(error), reason=error.reason) from None
        assert isinstance(frame, KeyFrame)  # noqa: S101 - the only kind expected
        check_preset(frame.preset, self._evaluator.preset)
        return EvaluationKeys(frame.preset, frame.elements, frame.words)


def check_preset(theirs: Preset, ours: Preset) -> None:
    """Raise ``wrong_preset`` unless both are the same."""
    if theirs.name != ours.name:
        message = f"cannot use this preset: the proxy serves {ours.name!r}. Make keys under that preset."
        raise Refusal("wrong_preset", message)
