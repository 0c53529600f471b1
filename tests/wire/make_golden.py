"""Write golden/*.bin; run it only when the format changes on purpose, together with its version byte."""

from __future__ import annotations

from wire_samples import GOLDEN, golden_frames

from fhe_llm.wire.frame import encode

if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for stem, frame in golden_frames().items():
        (GOLDEN / f"{stem}.bin").write_bytes(encode(frame))
