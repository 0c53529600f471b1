"""A request's ciphertexts in the form that evaluators take."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fhe_llm.evaluator import rns
from fhe_llm.wire import frame as wire
from fhe_llm.wire.seed import expand


def ciphertexts(request: wire.EvaluateRequest) -> NDArray[np.uint32]:
    """uint32 [jobs, n_in, 2, data limbs, N] in NTT form; a full request's own words, not a copy.

    A seeded one costs a transform of c0 and an expansion of the seed for each ciphertext.
    """
    if request.seeds is None:
        return request.words
    preset, (jobs, n_in, _, limbs, degree) = request.preset, request.words.shape
    whole = np.empty((jobs, n_in, 2, limbs, degree), dtype=np.uint32)
    for job in range(jobs):
        whole[job, :, 0] = rns.ntt_forward(request.words[job, :, 0], degree, preset.data_primes)
        for i in range(n_in):
            whole[job, i, 1] = expand(request.seeds[job, i].tobytes(), preset)
    return whole
