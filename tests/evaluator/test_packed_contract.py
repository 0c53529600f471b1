"""What every evaluator promises about groups of tokens that share ciphertexts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_contract import EvaluatorContract, TestCpu, TestCpuWide, TestReference

from fhe_llm.errors import ParameterError
from fhe_llm.evaluator import packed, packed_linear
from fhe_llm.evaluator.contract import EncodedLayer, Evaluator, Job, MissingRotationKeyError
from fhe_llm.evaluator.cpu import CpuEvaluator
from fhe_llm.evaluator.packed_plan import PackedPlan, packed_plans

SHAPES = ((96, 40), (40, 96), (300, 130), (1, 1), (64, 64))


def fold_group(plan: PackedPlan, x: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Slots [input_ciphertexts, slots] of x [tokens, in_features], by the definition in ``packed_plan``."""
    where = plan.input_map()
    pairs = x[: plan.rows] + 1j * x[plan.rows :]
    slots = np.zeros(where.shape, dtype=np.complex128)
    for row in range(plan.rows):
        slots[:, row] = np.where(where[:, row] >= 0, pairs[row][np.maximum(where[:, row], 0)], 0)
    return slots.reshape(plan.input_ciphertexts, plan.slots)


def unfold_group(plan: PackedPlan, slots: NDArray[np.complex128]) -> NDArray[np.float64]:
    rows = np.roll(slots.reshape(plan.output_ciphertexts, plan.rows, plan.width), 1, axis=1)
    y = rows.transpose(1, 0, 2).reshape(plan.rows, -1)[:, : plan.out_features]
    return np.concatenate([y.real, y.imag])


class PackedContract:
    """Mixed into an evaluator's own contract class, which says how to encrypt."""

    def packed(self, shape: tuple[int, int], tokens: int = 64) -> PackedPlan:
        contract: Any = self
        (plan,) = (p for p in packed_plans(contract.preset, *shape) if p.tokens == tokens)
        return plan

    def plans(self) -> Any:
        return [self.packed(shape, tokens) for shape in SHAPES for tokens in (16, 32, 64)]

    @pytest.mark.parametrize("tokens", [16, 32, 64])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_product_is_right(
        self, client: Any, evaluator: Evaluator, keys: Any, shape: tuple[int, int], tokens: int
    ) -> None:
        contract: Any = self
        rng = np.random.default_rng()
        plan = self.packed(shape, tokens)
        weights = rng.normal(scale=0.05, size=shape).astype(np.float32)
        layer = evaluator.encode("layer", plan, weights)
        x = rng.standard_t(3, size=(tokens, shape[1]))
        x /= np.sqrt(np.mean(x * x, axis=1, keepdims=True))
        x[tokens // 3] = 0  # a row of padding
        (reply,), timings = evaluator.evaluate(
            layer, [Job(keys, contract.encrypt(client, fold_group(plan, x)))]
        )
        y = unfold_group(plan, contract.decrypt(client, reply, layer))
        scale = 0.05 * np.sqrt(shape[1])
        error = np.sqrt(np.mean((y - x @ weights.T) ** 2))
        assert error < contract.tolerance * scale + self.packed_rounding(layer)
        assert timings.products > 0

    def test_grouping_jobs_changes_nothing(self, client: Any, evaluator: Evaluator, keys: Any) -> None:
        contract: Any = self
        rng = np.random.default_rng()
        for tokens in (16, 64):
            plan = self.packed((300, 130), tokens)
            layer = evaluator.encode("layer", plan, rng.normal(size=(300, 130)).astype(np.float32))
            groups = [rng.normal(size=(tokens, 130)) for _ in range(3)]
            jobs = [Job(keys, contract.encrypt(client, fold_group(plan, x))) for x in groups]
            together, _ = evaluator.evaluate(layer, jobs)
            for job, reply in zip(jobs, together, strict=True):
                np.testing.assert_array_equal(evaluator.evaluate(layer, [job])[0][0], reply)

    def test_zero_weights_give_zero(self, client: Any, evaluator: Evaluator, keys: Any) -> None:
        contract: Any = self
        plan = self.packed((40, 96))
        layer = evaluator.encode("layer", plan, np.zeros((40, 96), dtype=np.float32))
        (reply,), _ = evaluator.evaluate(
            layer, [Job(keys, contract.encrypt(client, fold_group(plan, np.ones((64, 96)))))]
        )
        y = unfold_group(plan, contract.decrypt(client, reply, layer))
        assert np.abs(y).max() < contract.tolerance

    def test_wrong_weight_shape_is_refused(self, evaluator: Evaluator) -> None:
        with pytest.raises(ParameterError, match="weights are"):
            evaluator.encode("layer", self.packed((40, 96)), np.zeros((96, 40), dtype=np.float32))

    def test_weights_that_are_not_finite_are_refused(self, evaluator: Evaluator) -> None:
        with pytest.raises(ParameterError, match="not finite"):
            evaluator.encode("layer", self.packed((1, 1)), np.array([[np.inf]], dtype=np.float32))

    def test_wrong_job_shape_is_refused(self, client: Any, evaluator: Evaluator, keys: Any) -> None:
        contract: Any = self
        plan = self.packed((40, 96))
        layer = evaluator.encode("layer", plan, np.ones((40, 96), dtype=np.float32))
        inputs = contract.encrypt(client, fold_group(plan, np.ones((64, 96))))
        with pytest.raises(ParameterError, match="shape"):
            evaluator.evaluate(layer, [Job(keys, np.concatenate([inputs, inputs]))])

    def test_missing_rotation_key_is_refused(self, evaluator: Evaluator) -> None:
        contract: Any = self
        client = contract.make_client((1, 2))
        keys = evaluator.prepare_keys(contract.evaluation_keys(client))
        plan = self.packed((40, 96))
        layer = evaluator.encode("layer", plan, np.ones((40, 96), dtype=np.float32))
        with pytest.raises(MissingRotationKeyError, match="missing"):
            evaluator.evaluate(
                layer, [Job(keys, contract.encrypt(client, fold_group(plan, np.ones((64, 96)))))]
            )

    def packed_rounding(self, layer: EncodedLayer) -> float:
        """Error that does not shrink with the layer's outputs: none in plaintext."""
        return 0.0


class CpuPackedContract(PackedContract):
    """The encrypted evaluators' additions."""

    def packed_rounding(self, layer: EncodedLayer) -> float:
        """Four standard deviations of the last rescaling in one slot, as in the contract of single tokens."""
        contract: Any = self
        degree = contract.preset.ring_degree
        deviation = np.sqrt((1 + 2 * degree / 3) / 12 * degree / 2)
        return float(4 * deviation / contract.reply_scale(layer))

    def test_threads_change_nothing(self, client: Any, evaluator: Evaluator, keys: Any) -> None:
        contract: Any = self
        plan = self.packed((300, 130), 32)
        weights = np.random.default_rng().normal(size=(300, 130)).astype(np.float32)
        layer = evaluator.encode("layer", plan, weights)
        job = Job(keys, contract.encrypt(client, fold_group(plan, np.ones((32, 130)))))
        (expected,), _ = evaluator.evaluate(layer, [job])
        for threads in (1, 3):
            (reply,), _ = CpuEvaluator(contract.preset, threads=threads).evaluate(layer, [job])
            np.testing.assert_array_equal(reply, expected)

    @pytest.mark.parametrize("spoil", [np.asfortranarray, np.float64, np.transpose])
    def test_weights_of_another_kind_or_layout_are_refused(
        self, client: Any, evaluator: Evaluator, keys: Any, spoil: Callable[[Any], Any]
    ) -> None:
        contract: Any = self
        plan = self.packed((40, 96))
        layer = evaluator.encode("layer", plan, np.ones((40, 96), dtype=np.float32))
        spoilt = EncodedLayer("layer", plan, layer.log_weight_scale, spoil(layer.words))
        job = Job(keys, contract.encrypt(client, fold_group(plan, np.ones((64, 96)))))
        with pytest.raises(ParameterError, match="cannot evaluate layer: its words are"):
            evaluator.evaluate(spoilt, [job])

    @pytest.mark.parametrize("tokens", [16, 32, 64])
    def test_chunks_change_nothing_and_stay_inside_their_arrays(
        self, client: Any, keys: Any, monkeypatch: pytest.MonkeyPatch, tokens: int
    ) -> None:
        contract: Any = self
        plan = self.packed((300, 130), tokens)
        weights = np.random.default_rng().normal(size=(300, 130)).astype(np.float32)
        job = Job(keys, contract.encrypt(client, fold_group(plan, np.ones((tokens, 130)))))
        whole = CpuEvaluator(contract.preset, threads=2)
        (expected,), _ = whole.evaluate(whole.encode("layer", plan, weights), [job])
        monkeypatch.setattr(packed, "CHUNK_BYTES", 1)  # one output at a time
        rows: list[tuple[int, int]] = []
        multiply = packed_linear.multiply

        def watched(v: Any, x: Any, products: Any, base: int, *rest: Any) -> None:
            rows.append((base + len(v), len(products)))
            multiply(v, x, products, base, *rest)

        monkeypatch.setattr(packed_linear, "multiply", watched)
        cut = CpuEvaluator(contract.preset, threads=2)
        (reply,), _ = cut.evaluate(cut.encode("layer", plan, weights), [job])
        np.testing.assert_array_equal(reply, expected)
        assert all(written <= there for written, there in rows)


class TestPackedReference(PackedContract, TestReference):
    """Plain slots."""


class TestPackedCpu(CpuPackedContract, TestCpu):
    """Ciphertexts, default preset."""


class TestPackedCpuWide(CpuPackedContract, TestCpuWide):
    """Ciphertexts, three data primes."""


del EvaluatorContract, TestCpu, TestCpuWide, TestReference  # collected where they are defined
