"""What every ledger has to do, whatever it is kept in: inherited by the tests of each."""

from __future__ import annotations

import pytest
from ledger_kit import DAY, HOUR, NOON, Clock, Open, history_sums, spent, tokens, work
from ledger_store_contract import LedgerStoreContract

from fhe_llm.errors import BudgetExhaustedError, IdempotencyError, LedgerError, PrivacyParameterError
from fhe_llm.privacy.charge import MAX_AMOUNT
from fhe_llm.privacy.events import (
    EncryptedCall,
    Event,
    IdentifiersReplaced,
    TextInClear,
    ValuesDisclosed,
    VectorsNoised,
)
from fhe_llm.privacy.ledger import WINDOWS, Budget, Ledger


class LedgerContract(LedgerStoreContract):
    """A subclass has a fixture ``opened``: each call of it opens the same store once more."""

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def ledger(self, opened: Open, clock: Clock) -> Ledger:
        return opened(clock=clock)

    # -- charge, commit, release

    def test_a_charge_is_counted_in_every_window(self, ledger: Ledger) -> None:
        for window in WINDOWS:
            ledger.set_budget("ann", Budget.of(10, "epsilon", window))
        made = ledger.charge("ann", tokens(3), key="k")
        assert (made.state, made.replayed, made.time) == ("committed", False, NOON)
        assert made.charge == {"epsilon": 3_000_000}
        assert [(b.window, b.spent, b.pending, b.left) for b in ledger.balances("ann")] == [
            (window, 3_000_000, 0, 7_000_000) for window in WINDOWS
        ]

    def test_what_is_reserved_counts_until_it_is_released(self, ledger: Ledger) -> None:
        ledger.set_budget("ann", Budget.of(10, "epsilon"))
        first = ledger.reserve("ann", tokens(7), key="1")
        (balance,) = ledger.balances("ann")
        assert (first.state, balance.spent, balance.pending) == ("reserved", 7_000_000, 7_000_000)
        with pytest.raises(BudgetExhaustedError):
            ledger.reserve("ann", tokens(4), key="2")
        ledger.release(first)
        (balance,) = ledger.balances("ann")
        assert (balance.spent, balance.pending) == (0, 0)
        ledger.commit(ledger.reserve("ann", tokens(10), key="3"))
        (balance,) = ledger.balances("ann")
        assert (balance.spent, balance.pending) == (10_000_000, 0)

    def test_a_commit_of_less_gives_the_rest_back(self, ledger: Ledger) -> None:
        ledger.set_budget("ann", Budget.of(10, "epsilon"))
        made = ledger.reserve("ann", tokens(7), key="k")
        ledger.commit(made, tokens(2))
        (balance,) = ledger.balances("ann")
        assert (balance.spent, balance.pending) == (2_000_000, 0)
        reserve, commit = list(ledger.history("ann"))[1:]
        assert (reserve.action, reserve.change, reserve.event) == (
            "reserve",
            {"epsilon": 7_000_000},
            tokens(7),
        )
        assert (commit.action, commit.change, commit.event) == (
            "commit",
            {"epsilon": -5_000_000},
            tokens(2),
        )

    def test_a_commit_of_more_or_of_another_kind_is_refused(self, ledger: Ledger) -> None:
        ledger.set_budget("ann", Budget.of(10, "epsilon"))
        ledger.set_budget("ann", Budget.of(10, "group-epsilon"))
        made = ledger.reserve("ann", tokens(2), key="k")
        for other in (tokens(3), work(1), tokens(1, unit="group-epsilon")):
            with pytest.raises(PrivacyParameterError, match="cannot commit"):
                ledger.commit(made, other)
        ledger.commit(made, TextInClear(messages=1, characters=3))
        assert spent(ledger)["epsilon", "lifetime"] == 0

    def test_a_charge_ends_in_one_way_only(self, ledger: Ledger) -> None:
        ledger.set_budget("ann", Budget.of(10, "epsilon"))
        kept, back = (ledger.reserve("ann", tokens(1), key=key) for key in ("kept", "back"))
        ledger.commit(kept)
        ledger.commit(kept, tokens(0))
        ledger.release(back)
        ledger.release(back)
        with pytest.raises(IdempotencyError, match="cannot release 'kept': it was committed"):
            ledger.release(kept)
        with pytest.raises(IdempotencyError, match="cannot commit 'back': it was released"):
            ledger.commit(back)
        assert spent(ledger) == {("epsilon", "lifetime"): 1_000_000}
        assert [e.action for e in ledger.history("ann")] == [
            "budget",
            "reserve",
            "reserve",
            "commit",
            "release",
        ]

    def test_a_reservation_that_was_never_made_is_refused(self, opened: Open, ledger: Ledger) -> None:
        ledger.set_budget("ann", Budget.of(10, "epsilon"))
        made = ledger.reserve("ann", tokens(1), key="k")
        for fake in ({"key": "other"}, {"principal": "bob"}, {"event": tokens(2)}):
            forged = type(made)(
                **{**{name: getattr(made, name) for name in made.__dataclass_fields__}, **fake}
            )
            for end in (ledger.commit, ledger.release):
                with pytest.raises((LedgerError, PrivacyParameterError), match="cannot"):
                    end(forged)
        assert [b.pending for b in ledger.balances("ann")] == [1_000_000]

    def test_a_reservation_that_claims_more_than_was_taken_commits_no_more(self, ledger: Ledger) -> None:
        ledger.set_budget("ann", Budget.of(10, "epsilon"))
        made = ledger.reserve("ann", tokens(1), key="k")
        forged = type(made)("ann", "k", tokens(1), {"epsilon": 9_000_000}, "reserved", made.time)
        with pytest.raises(PrivacyParameterError, match="costs more than was reserved"):
            ledger.commit(forged, tokens(2))

    # -- idempotency

    @pytest.mark.parametrize("take", ["reserve", "charge"])
    def test_a_replayed_key_charges_once(self, ledger: Ledger, clock: Clock, take: str) -> None:
        ledger.set_budget("ann", Budget.of(3, "epsilon"))
        first = getattr(ledger, take)("ann", tokens(3, 1.0), key="k")
        clock.now += DAY
        again = getattr(ledger, take)("ann", tokens(3, 1), key="k")
        assert again.replayed
        assert (again.state, again.time, again.charge) == (first.state, first.time, first.charge)
        ledger.commit(again)
        assert ledger.reserve("ann", tokens(3), key="k").state == "committed"
        assert spent(ledger) == {("epsilon", "lifetime"): 3_000_000}
        assert sum(e.action == take for e in ledger.history("ann")) == 1

    def test_a_key_pays_for_one_event_and_not_after_it_was_given_back(self, ledger: Ledger) -> None:
        ledger.set_budget("ann", Budget.of(9, "epsilon"))
        made = ledger.reserve("ann", tokens(1), key="k")
        with pytest.raises(IdempotencyError, match="another event"):
            ledger.reserve("ann", tokens(2), key="k")
        ledger.release(made)
        with pytest.raises(IdempotencyError, match="given back"):
            ledger.charge("ann", tokens(1), key="k")

    def test_keys_belong_to_their_principal(self, ledger: Ledger) -> None:
        for name in ("ann", "bob"):
            ledger.set_budget(name, Budget.of(1, "epsilon"))
            assert not ledger.charge(name, tokens(1), key="k").replayed

    def test_a_refused_charge_leaves_its_key_free(self, ledger: Ledger) -> None:
        with pytest.raises(BudgetExhaustedError):
            ledger.charge("ann", tokens(1), key="k")
        ledger.set_budget("ann", Budget.of(1, "epsilon"))
        assert not ledger.charge("ann", tokens(1), key="k").replayed

    # -- budgets

    def test_without_a_budget_nothing_but_work_may_be_spent(self, ledger: Ledger) -> None:
        disclosed = ValuesDisclosed(queries=1, values=1, noise=1.5, statistical_bits=40, query_limit=10)
        noised = VectorsNoised(vectors=1, noise_multiplier=2.0, clip=1.0, dimensions=4)
        for event, unit in ((tokens(1), "epsilon"), (noised, "rho"), (disclosed, "queries")):
            with pytest.raises(
                BudgetExhaustedError, match=rf"no budget of {unit} is set.*Set one"
            ) as refused:
                ledger.charge("ann", event, key="k")
            assert (refused.value.unit, refused.value.left, refused.value.refreshes_at) == (unit, 0, None)
        assert ledger.balances("ann") == ()
        assert list(ledger.history()) == []
        ledger.charge("ann", work(2, 500), key="k")
        assert spent(ledger) == {("rounds", "lifetime"): 2, ("bytes", "lifetime"): 500}

    def test_a_budget_of_another_unit_is_of_no_use(self, ledger: Ledger) -> None:
        ledger.set_budget("ann", Budget.of(10, "group-epsilon"))
        with pytest.raises(BudgetExhaustedError, match="no budget of epsilon"):
            ledger.charge("ann", tokens(1), key="k")

    def test_a_budget_counts_what_was_spent_before_it_was_set(self, ledger: Ledger) -> None:
        ledger.charge("ann", work(7), key="1")
        for window in WINDOWS:
            ledger.set_budget("ann", Budget("rounds", 10, window))
        assert {b.left for b in ledger.balances("ann")} == {3}
        with pytest.raises(BudgetExhaustedError):
            ledger.charge("ann", work(4), key="2")

    def test_a_lowered_budget_leaves_nothing_and_no_less(self, ledger: Ledger) -> None:
        ledger.set_budget("ann", Budget("rounds", 10))
        ledger.charge("ann", work(7), key="1")
        ledger.set_budget("ann", Budget("rounds", 5))
        (balance,) = ledger.balances("ann")
        assert (balance.spent, balance.left) == (7, 0)
        with pytest.raises(BudgetExhaustedError) as refused:
            ledger.charge("ann", work(1), key="2")
        assert refused.value.left == 0
        assert ledger.budgets("ann") == (Budget("rounds", 5),)

    def test_the_same_budget_again_is_not_a_new_entry(self, ledger: Ledger) -> None:
        for limit in (5, 5, 6, 6, 5):
            ledger.set_budget("ann", Budget("rounds", limit, "day"))
        assert [e.budget for e in ledger.history("ann")] == [
            Budget("rounds", limit, "day") for limit in (5, 6, 5)
        ]
        assert {(e.action, e.key, e.event, e.kind, tuple(e.change)) for e in ledger.history("ann")} == {
            ("budget", "", None, "work", ())
        }

    def test_a_charge_of_several_units_takes_all_or_none(self, ledger: Ledger) -> None:
        ledger.set_budget("ann", Budget("rounds", 10))
        ledger.set_budget("ann", Budget("bytes", 100, "hour"))
        with pytest.raises(BudgetExhaustedError) as refused:
            ledger.charge("ann", work(1, 101), key="1")
        assert (refused.value.unit, refused.value.left) == ("bytes", 100)
        assert {b.spent for b in ledger.balances("ann")} == {0}
        ledger.charge("ann", work(10, 100), key="2")
        assert {b.left for b in ledger.balances("ann") if b.budget} == {0}

    def test_the_refusal_names_the_tightest_budget_and_when_it_refreshes(self, ledger: Ledger) -> None:
        ledger.set_budget("ann", Budget.of(5, "epsilon", "day"))
        ledger.set_budget("ann", Budget.of(20, "epsilon"))
        ledger.charge("ann", tokens(4), key="1")
        with pytest.raises(BudgetExhaustedError) as refused:
            ledger.charge("ann", tokens(2), key="2")
        assert refused.value.left == 1_000_000
        assert refused.value.refreshes_at == NOON + DAY // 2
        assert str(refused.value) == (
            "cannot spend 2 ε for 'ann': 1 ε of 5 ε per day is left. "
            "It refreshes at 2025-06-16 00:00 UTC; wait, or send less."
        )
        ledger.set_budget("ann", Budget.of(4.5, "epsilon"))
        with pytest.raises(BudgetExhaustedError, match=r"0.5 ε of 4.5 ε in all is left. It does not refresh"):
            ledger.charge("ann", tokens(2), key="2")

    def test_of_two_budgets_with_as_little_left_the_one_that_lasts_is_named(self, ledger: Ledger) -> None:
        for window in ("hour", "lifetime", "day"):
            ledger.set_budget("ann", Budget("rounds", 1, window))
        with pytest.raises(BudgetExhaustedError) as refused:
            ledger.charge("ann", work(2), key="k")
        assert refused.value.refreshes_at is None

    def test_what_costs_nothing_is_recorded_all_the_same(self, ledger: Ledger) -> None:
        free: list[Event] = [
            EncryptedCall(model="tiny", rounds=9, bytes_up=5, bytes_down=6),
            IdentifiersReplaced(replaced=2, entity_types=("NAME", "IBAN")),
            tokens(0),
            work(),
        ]
        for number, event in enumerate(free):
            assert ledger.charge("ann", event, key=str(number)).charge == {}
        assert ledger.charge("ann", free[0], key="0").replayed
        assert [(e.event, e.change) for e in ledger.history("ann")] == [(event, {}) for event in free]
        assert ledger.balances("ann") == ()

    # -- amounts

    def test_the_largest_amount_is_exact_and_nothing_passes_it(self, ledger: Ledger) -> None:
        ledger.set_budget("ann", Budget("bytes", MAX_AMOUNT, "hour"))
        ledger.charge("ann", work(sent=MAX_AMOUNT - 1), key="1")
        ledger.charge("ann", work(sent=1), key="2")
        assert spent(ledger) == {("bytes", "hour"): MAX_AMOUNT, ("bytes", "lifetime"): MAX_AMOUNT}
        with pytest.raises(BudgetExhaustedError):
            ledger.charge("ann", work(sent=1), key="3")
        assert [e.change["bytes"] for e in ledger.history("ann") if e.change] == [MAX_AMOUNT - 1, 1]
        assert ledger.budgets("ann") == (Budget("bytes", MAX_AMOUNT, "hour"),)

    def test_a_lifetime_holds_no_more_than_the_largest_amount(self, ledger: Ledger, clock: Clock) -> None:
        ledger.set_budget("ann", Budget("bytes", MAX_AMOUNT, "hour"))
        ledger.charge("ann", work(sent=MAX_AMOUNT - 10), key="1")
        clock.now += HOUR
        with pytest.raises(BudgetExhaustedError) as refused:
            ledger.charge("ann", work(sent=11), key="2")
        assert (refused.value.left, refused.value.refreshes_at) == (10, None)
        ledger.charge("ann", work(sent=10), key="3")

    def test_amounts_with_many_digits_stay_exact(self, ledger: Ledger) -> None:
        amounts = [10**15, 123_456_789_012_345, 999_999_999_999_999, 3]
        reservations = [ledger.reserve("ann", work(sent=amount), key=str(amount)) for amount in amounts]
        assert spent(ledger) == {("bytes", "lifetime"): sum(amounts)}
        ledger.release(reservations[0])
        ledger.commit(reservations[1], work(sent=1))
        assert spent(ledger) == {("bytes", "lifetime"): sum(amounts[2:]) + 1}
        assert history_sums(ledger, "ann") == {"bytes": sum(amounts[2:]) + 1}
