"""From a model's name to encoded layers: resolve, plan, encode or map the cache, warm up.

Loading blocks and runs in a thread. The event loop answers ``/healthz`` meanwhile, and
``/readyz`` says which phase this is in.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from fhe_llm.errors import FheLlmError, ModelError
from fhe_llm.evaluator.contract import EncodedLayer, EvaluationKeys, Evaluator, Job
from fhe_llm.evaluator.packed_plan import PackedPlan, Plan, layer_plans, plan_elements
from fhe_llm.models.bundle import write_bundle
from fhe_llm.models.config import linear_shapes
from fhe_llm.models.resolve import open_model
from fhe_llm.models.source import ModelSource
from fhe_llm.params import Preset
from fhe_llm.progress import Progress, silent
from fhe_llm_server.encoded_cache import DamagedCacheError, cache_writer, open_cache
from fhe_llm_server.refusal import Refusal
from fhe_llm_server.warm_wire import warm_wire

logger = logging.getLogger(__name__)

CACHE_VERSION: Final = "2"


@dataclass(frozen=True, slots=True)
class HostedPlan:
    """A layer encoded for one plan, and the Galois elements that plan needs."""

    encoded: EncodedLayer
    elements: frozenset[int]


@dataclass(frozen=True, slots=True)
class HostedLayer:
    """A layer in every plan it is offered in: ``single`` takes one token a job, ``packed`` groups of them."""

    single: HostedPlan
    packed: tuple[HostedPlan, ...]

    @property
    def encoded(self) -> EncodedLayer:
        """The layer as it evaluates single tokens."""
        return self.single.encoded

    def plan(self, plan_id: bytes) -> HostedPlan | None:
        """The plan of that id, if it is offered."""
        for hosted in (self.single, *self.packed):
            if hosted.encoded.plan.plan_id == plan_id:
                return hosted
        return None


@dataclass(frozen=True, slots=True)
class Bundle:
    """The client bundle as a file; ``digest`` is its SHA-256."""

    path: Path
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class HostedModel:
    """A model that is ready to serve."""

    name: str
    digest: bytes
    preset: Preset
    context_length: int
    layers: Mapping[str, HostedLayer]
    bundle: Bundle

    def listing(self) -> dict[str, Any]:
        """The entry in ``/v1/models``."""
        layers = [
            {
                "name": name,
                "in_features": layer.encoded.plan.in_features,
                "out_features": layer.encoded.plan.out_features,
                "plan_id": layer.encoded.plan.plan_id.hex(),
                "log_weight_scale": layer.encoded.log_weight_scale,
                "packed": [_packed_listing(hosted.encoded) for hosted in layer.packed],
            }
            for name, layer in self.layers.items()
        ]
        return {
            "name": self.name,
            "model_digest": self.digest.hex(),
            "preset": self.preset.name,
            "bundle": {"digest": self.bundle.digest, "size": self.bundle.size},
            "context_length": self.context_length,
            "layers": layers,
        }


@dataclass(frozen=True, slots=True)
class Phase:
    """What loading is doing; ``done`` of ``total`` in the phase's own unit."""

    name: str
    done: int = 0
    total: int = 0

    def __str__(self) -> str:
        return f"{self.name} {self.done}/{self.total}" if self.total else self.name


class ModelHost:
    """Loads one model and hands it out once it is ready. ``phase`` may be read from any thread."""

    def __init__(self, model: str, evaluator: Evaluator, data_dir: Path, progress: Progress = silent) -> None:
        self._wanted = model
        self._evaluator = evaluator
        self._data_dir = data_dir
        self._progress = progress
        self._stop = threading.Event()
        self._model: HostedModel | None = None
        self.phase = Phase("starting")

    @property
    def preset(self) -> Preset:
        """The preset this proxy serves."""
        return self._evaluator.preset

    def ready(self) -> HostedModel:
        """The model, or ``not_ready``."""
        if self._model is None:
            message = f"cannot serve rounds yet: the proxy is {self.phase}. Retry a little later."
            raise Refusal("not_ready", message, retry_after_ms=1000)
        return self._model

    def stop(self) -> None:
        """Make a running :meth:`load` give up at its next layer."""
        self._stop.set()

    def load(self) -> None:
        """Everything up to the first round; raises :class:`ModelError` and leaves the phase at ``failed``."""
        try:
            self._model = self._load()
            self._enter("ready")
        except (FheLlmError, OSError) as error:
            self._enter("failed to load")
            if isinstance(error, FheLlmError):
                raise
            cause = error.strerror or type(error).__name__
            raise ModelError(
                f"cannot load the model: {cause}. Check the data directory and the disk."
            ) from error
        except BaseException:
            self._enter("failed to load")
            raise

    def _load(self) -> HostedModel:
        self._enter("resolving")
        source = open_model(self._wanted, progress=self._download_progress)
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", source.config.name).strip("-.") or "model"
        stem = f"{name}-{source.model_digest[:16]}"
        bundle = self._bundle(source, self._data_dir / "bundles" / f"{stem}.safetensors")
        plans = {
            layer: layer_plans(self.preset, *shape) for layer, shape in linear_shapes(source.config).items()
        }
        encoded = self._encoded(source, plans, self._data_dir / "encoded" / f"{stem}-{self.preset.name}.enc")
        layers = {layer: self._hosted(layer, encoded, plans[layer]) for layer in plans}
        digest = bytes.fromhex(source.model_digest)
        model = HostedModel(name, digest, self.preset, source.config.context_length, layers, bundle)
        self._bring_to_device(model)
        self._warm_up(model)
        return model

    def _bring_to_device(self, model: HostedModel) -> None:
        """An evaluator with memory of its own decides, once it knows all layers, where their weights live."""
        hold = getattr(self._evaluator, "hold", None)
        if hold is not None:
            self._enter("bringing weights to the device")
            hold([plan.encoded for layer in model.layers.values() for plan in (layer.single, *layer.packed)])

    def _hosted(
        self, layer: str, encoded: Mapping[str, EncodedLayer], plans: tuple[Plan, ...]
    ) -> HostedLayer:
        single, *packed = (
            HostedPlan(encoded[_entry(layer, plan)], frozenset(plan_elements(self.preset, [plan])))
            for plan in plans
        )
        return HostedLayer(single, tuple(packed))

    def _bundle(self, source: ModelSource, path: Path) -> Bundle:
        """Written at every start: the same model gives the same bytes, so no old file is trusted."""
        self._enter("writing the client bundle")
        return Bundle(path, write_bundle(source, path), path.stat().st_size)

    def _encoded(
        self, source: ModelSource, plans: dict[str, tuple[Plan, ...]], path: Path
    ) -> dict[str, EncodedLayer]:
        entries = {_entry(layer, plan): plan for layer, some in plans.items() for plan in some}
        kind = f"{type(self._evaluator).__module__}.{type(self._evaluator).__qualname__}"
        kind = getattr(self._evaluator, "form", kind)
        identity = {
            "version": CACHE_VERSION,
            "evaluator": kind,
            "preset": f"{self.preset.name} {self.preset.primes}",
            "model_digest": source.model_digest,
        }
        try:
            layers = open_cache(
                path, identity, entries, lambda done, total: self._enter("checking", done, total)
            )
            self._spot_check(source, plans, layers)
        except FileNotFoundError:
            logger.info("encoding the weights; this happens once")
        except DamagedCacheError as error:
            logger.warning("%s", error)
        else:
            return layers
        try:
            self._encode_to_disk(source, plans, path, identity)
        except OSError as error:
            logger.warning(
                "cannot keep the encoded weights on disk: %s. They stay in memory.", error.strerror
            )
            return {layer.name: layer for name in plans for layer in self._encode(source, plans, name)}
        return open_cache(path, identity, entries, lambda done, total: self._enter("checking", done, total))

    def _encode_to_disk(
        self, source: ModelSource, plans: dict[str, tuple[Plan, ...]], path: Path, identity: dict[str, str]
    ) -> None:
        with cache_writer(path, identity) as writer:
            for name in plans:
                for layer in self._encode(source, plans, name):
                    writer.add(layer)
            writer.commit()

    def _encode(
        self, source: ModelSource, plans: dict[str, tuple[Plan, ...]], name: str
    ) -> list[EncodedLayer]:
        if self._stop.is_set():
            raise ModelError("cannot load the model: the proxy is stopping. Start it again.")
        self._enter("encoding", list(plans).index(name), len(plans))
        weights = source.linear_weight(name)
        return [self._evaluator.encode(_entry(name, plan), plan, weights) for plan in plans[name]]

    def _spot_check(
        self, source: ModelSource, plans: dict[str, tuple[Plan, ...]], layers: Mapping[str, EncodedLayer]
    ) -> None:
        """Encode the smallest layer again: a newer encoder must not be served weights of an older one."""
        name = min(plans, key=lambda layer: layers[layer].words.nbytes)
        weights = source.linear_weight(name)
        for plan in (plans[name][0], plans[name][-1]):
            entry = _entry(name, plan)
            fresh, cached = self._evaluator.encode(entry, plan, weights), layers[entry]
            same = fresh.log_weight_scale == cached.log_weight_scale
            if not (same and np.array_equal(fresh.words, cached.words)):
                raise DamagedCacheError(
                    "cannot use the encoded weights on disk: its encoder was another. They are encoded again."
                )

    def _warm_up(self, model: HostedModel) -> None:
        """Evaluations of zeros, so that no client waits for kernels to compile: one per distinct plan, and one per size
        of group."""
        seen: set[bytes | int] = set()
        hosted = [plan for layer in model.layers.values() for plan in (layer.single, *layer.packed)]
        todo = [layer for layer in hosted if not _seen(seen, layer.encoded.plan)]
        data_limbs, degree = len(self.preset.data_primes), self.preset.ring_degree
        for done, layer in enumerate(todo):
            self._enter("warming up", done, len(todo))
            elements = tuple(sorted(layer.elements))
            words = np.zeros((len(elements), data_limbs, 2, data_limbs + 1, degree), np.uint32)
            keys = self._evaluator.prepare_keys(EvaluationKeys(self.preset, elements, words))
            shape = (layer.encoded.plan.input_ciphertexts, 2, data_limbs, degree)
            self._evaluator.evaluate(layer.encoded, [Job(keys, np.zeros(shape, np.uint32))])
        warm_wire(self.preset)

    def _download_progress(self, label: str, done: int, total: int, /) -> None:
        self._enter(f"resolving ({label})", done, total)

    def _enter(self, name: str, done: int = 0, total: int = 0) -> None:
        before, self.phase = self.phase, Phase(name, done, total)
        if before.name != name:
            if before.total:  # ends its bar before anything else is written
                self._progress(_label(before.name), before.total, before.total)
            logger.info("model: %s", self.phase)
        if total:
            self._progress(_label(name), done, total)


def _label(phase: str) -> str:
    return phase[:1].upper() + phase[1:]


def _entry(layer: str, plan: Plan) -> str:
    """The name under which a layer is encoded for a plan."""
    return f"{layer}@{plan.tokens}" if isinstance(plan, PackedPlan) else layer


def _packed_listing(encoded: EncodedLayer) -> dict[str, Any]:
    assert isinstance(encoded.plan, PackedPlan)  # noqa: S101  what `packed` holds
    return {
        "tokens": encoded.plan.tokens,
        "plan_id": encoded.plan.plan_id.hex(),
        "log_weight_scale": encoded.log_weight_scale,
    }


def _seen(seen: set[bytes | int], plan: Plan) -> bool:
    key = plan.tokens if isinstance(plan, PackedPlan) else plan.plan_id
    known = key in seen
    seen.add(key)
    return known
