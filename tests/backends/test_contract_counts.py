"""On every family: what a backend says it achieved is what the tensors hold, and the rest is left alone."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from owl_compress.compression.contract import Backend
from owl_compress.compression.driver import compress_with_
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.plan import Plan
from owl_compress.documents.units import Unit
from owl_compress.models.structure import find_structure

Planned = Callable[..., Plan]
Make = Callable[..., TokenWindows]


@pytest.fixture
def case(dealt_case: Any) -> Any:
    return dealt_case


def test_what_is_achieved_is_counted_from_the_tensors_and_nothing_else_is_touched(
    family_model: Any,
    case: Any,
    backend: Backend,
    planned: Planned,
    make_windows: Make,
    counted: Callable[..., dict[str, float]],
    some_skipped: Callable[[Any], tuple[str, ...]],
    only_changes: Callable[..., AbstractContextManager[None]],
) -> None:
    family_model.train()
    plan, values = planned(family_model, skipped=some_skipped(family_model)), case.values(family_model)
    assert len(plan.budgets) >= (2 if case.unit is Unit.WIDTH else 3)
    n_weights = find_structure(family_model).linear_sizes
    with only_changes(family_model, plan):
        result = compress_with_(family_model, plan, backend, make_windows(3))
    kept = counted(family_model, plan, n_weights)
    assert [row.name for row in result.budgets] == [budget.name for budget in plan.budgets]
    kept_in_all = 0.0
    for row in result.budgets:
        assert row.achieved == kept[row.name]
        assert row.asked == values[row.name]
        assert (row.unit, row.n_weights) == (case.unit, n_weights[row.name])
        assert 0 <= row.relative_error < 1.5  # 0 where only inputs were cut that are always zero (OPT's ReLU)
        assert row.relative_error < 1 or case.unit is Unit.WIDTH  # whole heads may lose more than there was
        assert row.seconds >= 0
        assert row.achieved <= row.asked or case.unit is Unit.WIDTH  # widths even out over the model
        assert row.achieved == row.asked or case.grid is None
        kept_in_all += row.achieved * row.n_weights
    assert sum(row.relative_error > 0 for row in result.budgets) > len(result.budgets) / 2
    assert result.totals.n_weights == sum(row.n_weights for row in result.budgets)
    assert result.totals.achieved == pytest.approx(kept_in_all / result.totals.n_weights, rel=1e-12)
    assert result.totals.achieved <= result.totals.asked == plan.achieved <= plan.target
