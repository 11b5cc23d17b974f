"""plan.json: what it looks like, edits that are taken, and edits that are refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from owl_compress.documents.plan import AllocatorRecord, BlockBudget, LinearBudget, Plan, weighted_mean
from owl_compress.documents.units import KeptOfGrid, Unit
from owl_compress.errors import RequestError

GOLDEN = Path(__file__).parent / "golden" / "plan.json"


def example() -> Plan:
    """Two blocks on a grid of eighths; 0.35 asked on average, (60 * 3/8 + 20 * 2/8) / 80 = 0.34375 spent."""
    return Plan(
        unit=Unit.DENSITY,
        target=0.35,
        grid=KeptOfGrid(kept_of=8),
        low=0.0,
        high=1.0,
        allocator=AllocatorRecord(
            name="owl", parameters={"metric": "lod@5", "lam": 0.08, "law": "published", "seed": None}
        ),
        report="cd" * 32,
        skipped=("layers.1.gate",),
        budgets=(
            LinearBudget(name="layers.0.up", block="layers.0", n_weights=40, value=3 / 8),
            LinearBudget(name="layers.0.down", block="layers.0", n_weights=20, value=3 / 8),
            LinearBudget(name="layers.1.up", block="layers.1", n_weights=20, value=2 / 8),
        ),
    )


def written(tmp_path: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    """The example as a file, after a hand has been at it."""
    content = json.loads(GOLDEN.read_text(encoding="utf-8"))
    edit(content)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(content, indent=4), encoding="utf-8")
    return path


def set_value(index: int, value: float) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content["budgets"][index].update(value=value)


def test_the_file_looks_as_agreed() -> None:
    assert example().to_json() == GOLDEN.read_text(encoding="utf-8")


def test_reading_and_writing_changes_no_byte(tmp_path: Path) -> None:
    plan = Plan.read(GOLDEN)
    assert plan == example()
    assert isinstance(plan.grid, KeptOfGrid)
    plan.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == GOLDEN.read_bytes()


def test_a_plan_may_come_from_no_document(tmp_path: Path) -> None:
    plan = Plan.read(written(tmp_path, lambda content: content.pop("report")))
    assert plan.report is None
    assert "report" not in json.loads(plan.to_json())
    assert plan.budgets == example().budgets


def test_the_mean_is_weighted_and_computed() -> None:
    assert example().achieved == 0.34375
    assert weighted_mean(example().budgets) == 0.34375


def test_a_block_shows_the_mean_of_its_linears() -> None:
    plan = Plan.model_validate({**example().model_dump(), "grid": None})
    lowered = [{**budget.model_dump()} for budget in plan.budgets]
    lowered[0]["value"] = 0.3
    plan = Plan.model_validate({**plan.model_dump(), "budgets": lowered})
    first, second = plan.per_block
    assert (first.name, first.n_weights) == ("layers.0", 60)
    assert first.value == pytest.approx((40 * 0.3 + 20 * 0.375) / 60)
    assert second == BlockBudget(name="layers.1", n_weights=20, value=0.25)
    assert plan.value_of("layers.0.up") == 0.3


def test_an_edit_within_the_budget_is_taken_and_counted_anew(tmp_path: Path) -> None:
    plan = Plan.read(written(tmp_path, set_value(1, 0.25)))
    assert plan.value_of("layers.0.down") == 0.25
    assert plan.achieved == pytest.approx((40 * 0.375 + 40 * 0.25) / 80)  # whatever the file said


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            set_value(2, 5 / 8),
            "budget exceeded: the budgets average 0.437500 density per weight, the target is 0.350000; lower",
        ),
        (set_value(0, 0.3), "layers.0.up has 0.3, off the grid [0.0, 0.125, 0.25"),
        (set_value(0, -0.125), "layers.0.up has -0.125, outside [low 0.0, high 1.0]"),
        (set_value(0, float("nan")), "budgets.0.value: has to be a finite number"),
        (lambda c: c.update(high=0.3), "layers.0.up has 0.375, outside [low 0.0, high 0.3]"),
        (lambda c: c.update(high=1.5), "low 0.0 and high 1.5 must lie in [0, 1] for budgets in density"),
        (lambda c: c.update(low=0.5, high=0.4), "low 0.5 and high 0.4 must lie in [0, 1]"),
        (
            lambda c: c.update(unit="percent"),
            "unit: has to be 'density', 'width' or 'bits' (got 'percent')",
        ),
        (lambda c: c.update(unit="bits"), "layers.0.up has 0.375 bits: give it a whole number from 2 to 8"),
        (lambda c: c.update(grid={"bits": [2, 3]}), "layers.0.up has 0.375, off the grid [2.0, 3.0]"),
        (lambda c: c.update(grid={"kept_of": 0}), "grid.KeptOfGrid.kept_of: has to be above 0"),
        (lambda c: c.update(budgets=[]), "budgets: has 0 entries, and needs 1 or more"),
        (lambda c: c["budgets"].append(dict(c["budgets"][0])), "a linear is listed twice"),
        (
            lambda c: c["budgets"][0].update(n_weights=0),
            "budgets.0.n_weights: has to be above 0",
        ),
        (lambda c: c["budgets"][0].pop("block"), "budgets.0.block: is missing"),
        (
            lambda c: c["budgets"][0].update(sparsity=0.7),
            "budgets.0.sparsity: is not known here (got 0.7)",
        ),
        (lambda c: c.update(budgets="all"), "budgets: has to be a list (got 'all')"),
        (lambda c: c.pop("target"), "target: is missing"),
    ],
)
def test_an_edit_that_breaks_a_law_is_refused(
    tmp_path: Path, edit: Callable[[dict[str, Any]], Any], message: str
) -> None:
    path = written(tmp_path, edit)
    with pytest.raises(RequestError, match=re.escape(message)) as caught:
        Plan.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_rounding_of_the_mean_is_no_offence() -> None:
    # ten times 0.1 is a little over one tenth of ten in floating point
    budgets = tuple(LinearBudget(name=f"{i}", block="b", n_weights=3 + i, value=0.1) for i in range(10))
    example_content = example().model_dump() | {"grid": None, "target": 0.1, "skipped": ()}
    plan = Plan.model_validate({**example_content, "budgets": [budget.model_dump() for budget in budgets]})
    assert plan.achieved == pytest.approx(0.1, rel=1e-12)


SIZES = {"layers.0.up": 40, "layers.0.down": 20, "layers.1.up": 20, "layers.1.gate": 20}


def test_a_plan_fits_its_model() -> None:
    example().check_fits(SIZES)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (SIZES | {"layers.1.up": 21}, "layers.1.up has 21 weights in the model and 20 in the plan"),
        (SIZES | {"layers.2.up": 20}, "plan has no budget for linear 'layers.2.up'"),
        ({"layers.1.up": 20}, "plan names linear 'layers.0.up', which the model does not have"),
    ],
)
def test_a_plan_of_another_model_does_not(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)) as caught:
        example().check_fits(sizes)
    assert "allocate it from this model's own report" in str(caught.value)
