"""Which evaluator ``--device`` names, and what happens where there is no such device."""

from __future__ import annotations

import logging

from fhe_llm.evaluator.contract import Evaluator
from fhe_llm.evaluator.device import DeviceLostError, DeviceMemoryError, DeviceUnavailableError
from fhe_llm.params import preset
from fhe_llm_server.settings import Settings

logger = logging.getLogger(__name__)


def make_evaluator(settings: Settings) -> Evaluator:
    """The evaluator of ``settings.device``; ``auto`` takes the CPU, and says why, where CUDA cannot be used.

    Raises :class:`DeviceUnavailableError`, for ``cuda`` only.
    """
    if settings.device != "cpu":
        try:
            return _cuda(settings)
        except DeviceUnavailableError as error:
            if settings.device == "cuda":
                raise
            logger.warning("evaluating on the CPU: %s", error)
    from fhe_llm.evaluator.cpu import CpuEvaluator  # compiles kernels when imported

    return CpuEvaluator(preset(settings.preset), settings.threads)


def _cuda(settings: Settings) -> Evaluator:
    from fhe_llm.evaluator.cupy_device import open_device

    device = open_device(preset(settings.preset), settings.gpu_memory)
    from fhe_llm.evaluator.cuda import CudaEvaluator  # compiles kernels when imported

    try:
        evaluator = CudaEvaluator(device, preset(settings.preset), threads=settings.threads)
    except (DeviceMemoryError, DeviceLostError) as error:
        raise DeviceUnavailableError(f"cannot use CUDA: {error}") from error
    logger.info("evaluating on %s with up to %d MiB", device.name, device.memory >> 20)
    return evaluator
