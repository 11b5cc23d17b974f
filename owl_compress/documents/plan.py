"""The plan: how much every linear keeps. A larger value always keeps more."""

from collections.abc import Mapping
from itertools import groupby
from math import fsum, isfinite
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, JsonValue, Tag, model_validator

from owl_compress.documents.coverage import Coverage
from owl_compress.documents.document import Document, Frozen, is_none
from owl_compress.documents.units import (
    BIT_WIDTHS_SHOWN,
    BitsGrid,
    KeptOfGrid,
    Unit,
    WeightCount,
    is_bit_width,
)
from owl_compress.errors import RequestError

ROUNDING = 1e-9
"""Relative slack for the rounding of floating-point sums when a budget is compared with its target."""

ASKED_TARGET = "asked_target"
"""The allocator's parameter under which a plan off its budget states the target that was asked for."""

CHOSEN_ALLOCATOR = "chosen"
"""The allocator's parameter under which a plan that was chosen among several names who made it."""

PREDICTED_DAMAGE = "predicted_damage"
"""The allocator's parameter under which a plan from a sensitivity profile states its sum of damages."""


def _kind_of_grid(grid: object) -> str:
    """Which of the two grids is meant, so that what is wrong with it is said of that one."""
    is_of_bits = isinstance(grid, BitsGrid) or (isinstance(grid, dict) and "bits" in grid)
    return "BitsGrid" if is_of_bits else "KeptOfGrid"


_OneGrid = Annotated[
    Annotated[KeptOfGrid, Tag("KeptOfGrid")] | Annotated[BitsGrid, Tag("BitsGrid")],
    Discriminator(_kind_of_grid),
]


class LinearBudget(Frozen):
    """What one linear keeps."""

    name: str
    block: str
    n_weights: WeightCount
    value: float


class BlockBudget(Frozen):
    """A view: the weighted mean over one block's linears."""

    name: str
    n_weights: int
    value: float


class AllocatorRecord(Frozen):
    """Which allocator made the plan, with all its parameters."""

    name: str
    parameters: dict[str, JsonValue] = Field(default_factory=dict)

    @property
    def maker(self) -> str:
        """Who made the budgets: the allocator itself, or the one that it chose among several."""
        chosen = self.parameters.get(CHOSEN_ALLOCATOR)
        return chosen if isinstance(chosen, str) else self.name


def weighted_mean(budgets: tuple[LinearBudget, ...]) -> float:
    """Mean value over the weights of all `budgets`."""
    return fsum(b.n_weights * b.value for b in budgets) / sum(b.n_weights for b in budgets)


class Plan(Document):
    """Budgets keyed per linear, valid by construction: in bounds, on the grid, and not above the target."""

    SCHEMA: ClassVar[str] = "owl-compress/plan/1"

    schema_: Literal["owl-compress/plan/1"] = Field(default="owl-compress/plan/1", alias="schema")
    unit: Unit
    target: float
    grid: _OneGrid | None = None
    low: float
    high: float
    allocator: AllocatorRecord
    report: str | None = Field(
        default=None,
        exclude_if=is_none,
        description="fingerprint of the report or sensitivity profile it was made from; None if of neither",
    )
    achieved: float = Field(default=0.0, description="weighted mean; computed, never trusted from a file")
    skipped: tuple[str, ...] = Field(default=(), description="linears left alone and out of the account")
    coverage: Coverage | None = Field(
        default=None,
        exclude_if=is_none,
        description="of the report: what of the weights in the blocks it accounts for",
    )
    budgets: tuple[LinearBudget, ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _compute_achieved(cls, content: Any) -> Any:
        # A plan edited by hand keeps its old mean; the mean always follows from the budgets.
        if not isinstance(content, dict) or not isinstance(content.get("budgets"), list | tuple):
            return content
        try:
            budgets = tuple(LinearBudget.model_validate(budget) for budget in content["budgets"])
            achieved = weighted_mean(budgets)
            return content | {"achieved": achieved if isfinite(achieved) else 0.0}
        except (ValueError, ZeroDivisionError, OverflowError):
            return content  # the field's own validation says what is wrong, with its place in the file

    @model_validator(mode="after")
    def _is_lawful(self) -> Self:
        names = [budget.name for budget in self.budgets]
        if len(set(names)) != len(names):
            raise ValueError("a linear is listed twice")
        if self.unit is not Unit.BITS and not 0 <= self.low <= self.high <= 1:
            raise ValueError(
                f"low {self.low} and high {self.high} must lie in [0, 1] for budgets in {self.unit}"
            )
        on_grid = set(self.grid.values()) if self.grid else None
        for budget in self.budgets:
            if not self.low <= budget.value <= self.high:
                raise ValueError(
                    f"{budget.name} has {budget.value}, outside [low {self.low}, high {self.high}]"
                )
            if on_grid is not None and budget.value not in on_grid:
                raise ValueError(f"{budget.name} has {budget.value}, off the grid {sorted(on_grid)}")
            if self.unit is Unit.BITS and not is_bit_width(budget.value):
                raise ValueError(f"{budget.name} has {budget.value} bits: give it {BIT_WIDTHS_SHOWN}")
        if self.achieved > self.target + ROUNDING * max(1.0, abs(self.target)):
            raise ValueError(
                f"budget exceeded: the budgets average {self.achieved:.6f} {self.unit} per weight, "
                f"the target is {self.target:.6f}; lower some of them or raise target"
            )
        slack = ROUNDING * max(1.0, abs(self.high))
        if not self.low - slack <= self.target <= self.high + slack:
            raise ValueError(f"target {self.target} is outside [low {self.low}, high {self.high}]")
        return self

    @property
    def per_block(self) -> tuple[BlockBudget, ...]:
        """The mean budget of each block, in the order of the file."""
        rows = []
        for name, members in groupby(self.budgets, key=lambda budget: budget.block):
            group = tuple(members)
            rows.append(
                BlockBudget(name=name, n_weights=sum(b.n_weights for b in group), value=weighted_mean(group))
            )
        return tuple(rows)

    @property
    def asked(self) -> float:
        """The mean that was asked for: the target, unless the law that was chosen drifts off its budget."""
        asked = self.allocator.parameters.get(ASKED_TARGET)
        return float(asked) if isinstance(asked, int | float) else self.target

    def value_of(self, name: str) -> float:
        """Budget of the linear `name`."""
        return next(budget.value for budget in self.budgets if budget.name == name)

    def check_fits(self, linear_sizes: Mapping[str, int]) -> None:
        """Refuse a model whose linears (name -> number of weights) are not those of the plan.

        Raises:
            RequestError: a linear of the plan is not in the model, has another size, or one is missing.
        """
        remedy = "the plan was made for another model, or edited; allocate it from this model's own report"
        for budget in self.budgets:
            if budget.name not in linear_sizes:
                raise RequestError(
                    f"plan names linear {budget.name!r}, which the model does not have: {remedy}"
                )
            if linear_sizes[budget.name] != budget.n_weights:
                raise RequestError(
                    f"{budget.name} has {linear_sizes[budget.name]} weights in the model "
                    f"and {budget.n_weights} in the plan: {remedy}"
                )
        left_out = self.coverage.linears if self.coverage else frozenset()
        missing = (
            linear_sizes.keys() - {budget.name for budget in self.budgets} - set(self.skipped) - left_out
        )
        if missing:
            raise RequestError(f"plan has no budget for linear {min(missing)!r}: {remedy}")
