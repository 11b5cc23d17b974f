"""The largest target within a limit, against every plan that there is."""

from collections.abc import Callable
from math import inf

import pytest

from owl_compress.allocators import Target, allocate
from owl_compress.allocators.limit import OutOfReachError, Priced, Reach, largest_within
from owl_compress.documents.plan import Plan
from owl_compress.documents.report import ImportanceReport
from owl_compress.errors import RequestError

SCORES = (0.4, 0.1, 0.3, 0.9, 0.2)


def rising(plan: Plan) -> float:
    """More for every weight that is kept, and a constant."""
    return 1000 + sum(budget.n_weights * budget.value for budget in plan.budgets)


def padded(plan: Plan) -> float:
    """As where codes of three bits are stored in the room of four: a larger average may cost less."""
    return sum(budget.n_weights * (4 if budget.value == 3 else budget.value) for budget in plan.budgets)


def price(
    report: ImportanceReport, allocator: str, cost: Callable[[Plan], float]
) -> Callable[[float], Priced]:
    def at(value: float) -> Priced:
        plan = allocate(report, allocator, Target.from_bits(value, (2, 3, 4)))
        return Priced(plan, cost(plan))

    return at


@pytest.mark.parametrize("allocator", ["uniform", "owl", "linear-depth"])
@pytest.mark.parametrize("cost", [rising, padded])
def test_on_a_grid_no_plan_with_a_larger_average_is_within_the_limit(
    make_report: Callable[..., ImportanceReport], allocator: str, cost: Callable[[Plan], float]
) -> None:
    at = price(make_report(SCORES), allocator, cost)
    every = [at(2 + index / 5) for index in range(11)]  # five equal blocks: all averages that there are
    reach = Reach(2, 4, 1 / 5, is_grid=True)
    for limit in {priced.cost + change for priced in every[::4] for change in (0, 1)}:
        if limit < every[0].cost:
            continue
        best = max((one for one in every if one.cost <= limit), key=lambda one: one.plan.achieved)
        found = largest_within(at, limit, reach).plan
        assert found.budgets == best.plan.budgets
        assert found.target in {found.achieved, 4}


@pytest.mark.parametrize("allocator", ["uniform", "owl", "er"])
def test_off_a_grid_one_weight_more_would_be_too_much(
    make_report: Callable[..., ImportanceReport], allocator: str
) -> None:
    report = make_report(SCORES)

    def at(value: float) -> Priced:
        plan = allocate(report, allocator, Target.from_sparsity(1 - value))
        return Priced(plan, rising(plan))

    n_weights = sum(block.n_weights for block in report.blocks)
    limit = 1000 + 0.37 * n_weights
    found = largest_within(at, limit, Reach(0.1, 1, 1 / n_weights, is_grid=False))
    assert limit - 1 <= found.cost <= limit


def test_all_that_is_kept_is_the_plan_of_a_limit_above_it(
    make_report: Callable[..., ImportanceReport],
) -> None:
    found = largest_within(price(make_report(SCORES), "owl", rising), inf, Reach(2, 4, 0.2, is_grid=True))
    assert found.plan.achieved == 4


def test_a_limit_below_everything_names_the_least(make_report: Callable[..., ImportanceReport]) -> None:
    at = price(make_report(SCORES), "owl", rising)
    with pytest.raises(OutOfReachError) as caught:
        largest_within(at, 1001, Reach(2, 4, 0.2, is_grid=True))
    assert caught.value.least == at(2)


def refusing_below(limit: float, at: Callable[[float], Priced]) -> Callable[[float], Priced]:
    def refusing(value: float) -> Priced:
        if value < limit:
            raise RequestError("too little")
        return at(value)

    return refusing


def test_plans_that_begin_somewhere_are_found(make_report: Callable[..., ImportanceReport]) -> None:
    at = refusing_below(2.9, price(make_report(SCORES), "uniform", rising))
    reach = Reach(2, 4, 1e-6, is_grid=False)
    assert largest_within(at, at(3.2).cost, reach).plan.achieved == pytest.approx(3.2)
    with pytest.raises(OutOfReachError) as caught:
        largest_within(at, 1001, reach)
    assert caught.value.least.cost == at(2.9).cost


def test_what_every_lower_target_is_refused_for_is_told(make_report: Callable[..., ImportanceReport]) -> None:
    at = refusing_below(3.99, price(make_report(SCORES), "uniform", rising))
    with pytest.raises(RequestError, match="too little"):
        largest_within(at, 1001, Reach(2, 4, 0.2, is_grid=True))
