"""What a client half asks for: one linear layer at a time.

A client half is a generator without I/O: it yields :class:`Linear` and is sent the product. Whoever drives it
decides how the product is made: over HTTP on ciphertexts, in process, or on plain floats.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Linear:
    """``y = x W^T`` for the weights called ``layer``; the reply is y [T, out_features]."""

    layer: str
    x: Floats  # [T, in_features]


Forward: TypeAlias = Generator[Linear, Floats, Floats]
"""One forward pass: yields :class:`Linear`, is sent y [T, out_features], returns logits [1 or T, vocab]."""
