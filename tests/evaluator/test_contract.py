"""One suite for every evaluator: the plaintext scheme and the encrypted ones behind the same interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from seal_oracle import SealOracle

from fhe_llm.errors import ParameterError
from fhe_llm.evaluator import rns
from fhe_llm.evaluator.contract import EncodedLayer, EvaluationKeys, Evaluator, Job, MissingRotationKeyError
from fhe_llm.evaluator.cpu import CpuEvaluator
from fhe_llm.evaluator.packed_plan import plan_elements
from fhe_llm.evaluator.plan import LinearPlan, plan_linear
from fhe_llm.evaluator.reference import ReferenceEvaluator
from fhe_llm.params import PRESETS, Preset

SHAPES = (
    (960, 576),
    (576, 576),
    (3072, 576),
    (576, 1536),
    (5, 3),
    (1, 700),
    (700, 1),
    (1001, 333),
    (5000, 96),
)


def fold_input(plan: LinearPlan, x: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Slots [input_ciphertexts, slots] of a vector, by the definition in ``plan``."""
    h = plan.folded_columns
    padded = np.zeros(2 * h if plan.fold == "input" else h)
    padded[: len(x)] = x
    folded = padded[:h] + 1j * padded[h:] if plan.fold == "input" else padded.astype(np.complex128)
    where = plan.input_map()
    return np.where(where >= 0, folded[np.maximum(where, 0)], 0)


def unfold_output(plan: LinearPlan, slots: NDArray[np.complex128]) -> NDArray[np.float64]:
    where = plan.output_map()
    sums = np.zeros(plan.folded_rows, dtype=np.complex128)
    np.add.at(sums, where[where >= 0], slots[where >= 0])
    both = sums.real if plan.fold == "input" else np.concatenate([sums.real, sums.imag])
    return both[: plan.out_features]


class EvaluatorContract(ABC):
    """What every evaluator promises. ``encrypt`` and ``decrypt`` stand for the client."""

    tolerance: float

    @pytest.fixture(scope="class")
    @classmethod
    def client(cls) -> Any:
        contract = cls()
        return contract.make_client(tuple({k for plan in contract.plans() for k in plan.rotations}))

    @pytest.fixture(scope="class")
    @classmethod
    def evaluator(cls) -> Evaluator:
        return cls().make_evaluator()

    @pytest.fixture(scope="class")
    @classmethod
    def keys(cls, client: Any, evaluator: Evaluator) -> Any:
        return evaluator.prepare_keys(cls().evaluation_keys(client))

    preset: Preset = PRESETS["default"]

    def plans(self) -> list[LinearPlan]:
        return [plan_linear(self.preset, *shape) for shape in SHAPES]

    @abstractmethod
    def make_evaluator(self) -> Evaluator: ...
    @abstractmethod
    def make_client(self, steps: tuple[int, ...]) -> Any: ...
    @abstractmethod
    def evaluation_keys(self, client: Any) -> EvaluationKeys: ...
    @abstractmethod
    def encrypt(self, client: Any, slots: NDArray[np.complex128]) -> NDArray[Any]: ...
    @abstractmethod
    def decrypt(self, client: Any, reply: NDArray[Any], layer: EncodedLayer) -> NDArray[np.complex128]: ...

    def rounding(self, layer: EncodedLayer) -> float:
        """Error that does not shrink with the layer's outputs: none in plaintext."""
        return 0.0

    @pytest.mark.parametrize("shape", SHAPES)
    def test_product_is_right(
        self, client: Any, evaluator: Evaluator, keys: Any, shape: tuple[int, int]
    ) -> None:
        rng = np.random.default_rng()
        plan = plan_linear(self.preset, *shape)
        weights = rng.normal(scale=0.05, size=shape).astype(np.float32)
        layer = evaluator.encode("layer", plan, weights)
        x = rng.standard_t(3, size=shape[1])
        x /= np.sqrt(np.mean(x * x))
        (reply,), timings = evaluator.evaluate(layer, [Job(keys, self.encrypt(client, fold_input(plan, x)))])
        y = unfold_output(plan, self.decrypt(client, reply, layer))
        scale = 0.05 * np.sqrt(shape[1])
        assert np.sqrt(np.mean((y - weights @ x) ** 2)) < self.tolerance * scale + self.rounding(layer)
        assert timings.products > 0

    def test_grouping_jobs_changes_nothing(self, client: Any, evaluator: Evaluator, keys: Any) -> None:
        rng = np.random.default_rng()
        plan = plan_linear(self.preset, 576, 576)
        layer = evaluator.encode("layer", plan, rng.normal(size=(576, 576)).astype(np.float32))
        jobs = [Job(keys, self.encrypt(client, fold_input(plan, rng.normal(size=576)))) for _ in range(11)]
        together, _ = evaluator.evaluate(layer, jobs)
        for job, reply in zip(jobs, together, strict=True):
            np.testing.assert_array_equal(evaluator.evaluate(layer, [job])[0][0], reply)

    def test_zero_weights_give_zero(self, client: Any, evaluator: Evaluator, keys: Any) -> None:
        plan = plan_linear(self.preset, 5, 3)
        layer = evaluator.encode("layer", plan, np.zeros((5, 3), dtype=np.float32))
        (reply,), _ = evaluator.evaluate(
            layer, [Job(keys, self.encrypt(client, fold_input(plan, np.ones(3))))]
        )
        assert np.abs(unfold_output(plan, self.decrypt(client, reply, layer))).max() < self.tolerance

    def test_some_evaluations_may_run_at_once(self, evaluator: Evaluator) -> None:
        assert evaluator.parallel >= 1

    def test_wrong_weight_shape_is_refused(self, evaluator: Evaluator) -> None:
        with pytest.raises(ParameterError, match="weights are"):
            evaluator.encode("layer", plan_linear(self.preset, 5, 3), np.zeros((3, 5), dtype=np.float32))

    def test_weights_that_are_not_finite_are_refused(self, evaluator: Evaluator) -> None:
        with pytest.raises(ParameterError, match="not finite"):
            evaluator.encode("layer", plan_linear(self.preset, 1, 1), np.array([[np.nan]], dtype=np.float32))

    def test_wrong_job_shape_is_refused(self, client: Any, evaluator: Evaluator, keys: Any) -> None:
        plan = plan_linear(self.preset, 5, 3)
        layer = evaluator.encode("layer", plan, np.ones((5, 3), dtype=np.float32))
        inputs = self.encrypt(client, fold_input(plan, np.ones(3)))
        with pytest.raises(ParameterError, match="shape"):
            evaluator.evaluate(layer, [Job(keys, np.concatenate([inputs, inputs]))])

    def test_missing_rotation_key_is_refused(self, evaluator: Evaluator) -> None:
        client = self.make_client((1, 2))
        keys = evaluator.prepare_keys(self.evaluation_keys(client))
        plan = plan_linear(self.preset, 576, 576)
        layer = evaluator.encode("layer", plan, np.ones((576, 576), dtype=np.float32))
        with pytest.raises(MissingRotationKeyError, match="missing"):
            evaluator.evaluate(layer, [Job(keys, self.encrypt(client, fold_input(plan, np.ones(576))))])


class TestReference(EvaluatorContract):
    tolerance = 1e-6

    def make_evaluator(self) -> Evaluator:
        return ReferenceEvaluator(self.preset)

    def make_client(self, steps: tuple[int, ...]) -> Any:
        return steps

    def evaluation_keys(self, client: Any) -> EvaluationKeys:
        elements = tuple(sorted(pow(3, k, 2 * self.preset.ring_degree) for k in client))
        return EvaluationKeys(self.preset, elements, np.empty((0,), dtype=np.uint32))

    def encrypt(self, client: Any, slots: NDArray[np.complex128]) -> NDArray[Any]:
        return slots

    def decrypt(self, client: Any, reply: NDArray[Any], layer: EncodedLayer) -> NDArray[np.complex128]:
        return reply


class TestCpu(EvaluatorContract):
    tolerance = 2.0**-14

    def make_evaluator(self) -> Evaluator:
        return CpuEvaluator(self.preset, threads=2)

    def make_client(self, steps: tuple[int, ...]) -> Any:
        return SealOracle(self.preset, steps)

    def evaluation_keys(self, client: Any) -> EvaluationKeys:
        keys: EvaluationKeys = client.evaluation_keys()
        return keys

    def encrypt(self, client: Any, slots: NDArray[np.complex128]) -> NDArray[Any]:
        scale = 2.0**self.preset.log_input_scale
        return np.stack([client.words(client.encrypt(z, scale)) for z in slots])

    def decrypt(self, client: Any, reply: NDArray[Any], layer: EncodedLayer) -> NDArray[np.complex128]:
        primes = self.preset.data_primes[: self.preset.reply_limbs]
        words = rns.ntt_forward(reply, self.preset.ring_degree, primes)
        return np.stack([client.decrypt(client.load(w, self.reply_scale(layer))) for w in words])

    def rounding(self, layer: EncodedLayer) -> float:
        """Four standard deviations of the last rescaling: each coefficient of c0 + c1 s is off by a sum of 1 + 2N/3
        roundings of variance 1/12; a slot collects N/2 coefficients, an answer the slots of all segments."""
        degree = self.preset.ring_degree
        deviation = np.sqrt((1 + 2 * degree / 3) / 12 * degree / 2 * layer.plan.segments)
        return float(4 * deviation / self.reply_scale(layer))

    def reply_scale(self, layer: EncodedLayer) -> float:
        dropped = float(np.prod([float(q) for q in self.preset.data_primes[self.preset.reply_limbs :]]))
        return float(2.0 ** (self.preset.log_input_scale + layer.log_weight_scale) / dropped)

    def test_keys_of_another_preset_are_refused(self, evaluator: Evaluator) -> None:
        other = next(p for p in PRESETS.values() if p != self.preset)
        with pytest.raises(ParameterError, match="keys of preset"):
            evaluator.prepare_keys(EvaluationKeys(other, (), np.empty((0,), dtype=np.uint32)))

    def test_elements_that_turn_no_slots_are_left_out(self, evaluator: Evaluator) -> None:
        limbs, n = len(self.preset.primes), self.preset.ring_degree
        elements = (3, 5, 9, 2 * n - 1)  # 5 and -1 are no powers of 3
        words = np.zeros((len(elements), limbs - 1, 2, limbs, n), dtype=np.uint32)
        prepared = evaluator.prepare_keys(EvaluationKeys(self.preset, elements, words))
        assert prepared.index == {1: 0, 2: 2}

    def test_words_of_another_plan_are_refused(self, client: Any, evaluator: Evaluator, keys: Any) -> None:
        plan, weights = plan_linear(self.preset, 40, 30), np.ones((40, 30), dtype=np.float32)
        layer = evaluator.encode("layer", plan, weights)
        short = EncodedLayer("layer", plan, layer.log_weight_scale, layer.words[:, :, :-1])
        job = Job(keys, self.encrypt(client, fold_input(plan, np.ones(30))))
        with pytest.raises(ParameterError, match="cannot evaluate layer"):
            evaluator.evaluate(short, [job])

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda words: words.astype(np.int64),
            np.asfortranarray,
            lambda words: words.repeat(2, -1)[..., ::2],
        ],
    )
    def test_words_of_another_kind_or_layout_are_refused(
        self, client: Any, evaluator: Evaluator, keys: Any, spoil: Callable[[Any], Any]
    ) -> None:
        plan, weights = plan_linear(self.preset, 40, 30), np.ones((40, 30), dtype=np.float32)
        layer = evaluator.encode("layer", plan, weights)
        spoilt = EncodedLayer("layer", plan, layer.log_weight_scale, spoil(layer.words))
        job = Job(keys, self.encrypt(client, fold_input(plan, np.ones(30))))
        with pytest.raises(ParameterError, match=r"cannot evaluate layer: its words are (int64|not contig)"):
            evaluator.evaluate(spoilt, [job])

    def test_threads_change_nothing(self, client: Any, evaluator: Evaluator, keys: Any) -> None:
        plan = plan_linear(self.preset, 960, 576)
        weights = np.random.default_rng().normal(size=(960, 576)).astype(np.float32)
        layer = evaluator.encode("layer", plan, weights)
        job = Job(keys, self.encrypt(client, fold_input(plan, np.ones(576))))
        (expected,), _ = evaluator.evaluate(layer, [job])
        for threads in (1, 3):
            (reply,), _ = CpuEvaluator(self.preset, threads=threads).evaluate(layer, [job])
            np.testing.assert_array_equal(reply, expected)


class TestCpuWide(TestCpu):
    preset = PRESETS["wide"]
    tolerance = 2.0**-24


def test_the_keys_of_the_real_model_fit_twelve_megabytes() -> None:
    preset = PRESETS["default"]
    elements = plan_elements(preset, [plan_linear(preset, *shape) for shape in SHAPES[:4]])
    limbs, bits = len(preset.primes), sum(preset.prime_bits)
    key_bytes = (limbs - 1) * 2 * bits * preset.ring_degree // 8
    assert len(elements) == 51
    assert len(elements) * key_bytes < 9_600_000
