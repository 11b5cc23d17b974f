"""What is asked for: unit, average, bounds, grid, pins and skips; refused at birth if it cannot be meant."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Literal, TypedDict, Unpack, get_args

from owl_compress.arguments import checked
from owl_compress.documents.quantities import told_apart
from owl_compress.documents.units import (
    BIT_WIDTHS,
    BIT_WIDTHS_SHOWN,
    BitsGrid,
    Grid,
    KeptOfGrid,
    Sublayer,
    Unit,
    is_bit_width,
)
from owl_compress.errors import RequestError, nearest

Granularity = Literal["block", "linear"]
Solver = Literal["proportional", "optimal"]

KEPT_OF = (4, 8, 16, 32)
"""The M of N:M that masks are made for."""


class TargetOptions(TypedDict, total=False):
    """The parts of a `Target` that every constructor takes."""

    low: float | None
    high: float | None
    pins: Mapping[str, float]
    skips: tuple[str, ...]
    granularity: Granularity | None
    solver: Solver
    tie: bool
    parts: tuple[str, ...]
    protect_first: int
    protect_last: int


@checked
@dataclass(frozen=True)
class Target:
    """The average asked for, in the unit of the plan (a larger value keeps more), and what limits the answer.

    Attributes:
        unit: what is budgeted.
        value: weighted mean over all linears that are not skipped.
        grid: the values allowed, or None for any value.
        low, high: bounds of every value; None means not given by the user: then [0, 1], on a grid its ends,
            and an N:M grid starts at one kept weight, because emptying a block is not done unasked.
        pins: block, linear or glob pattern -> value that it gets; counted in the budget.
        skips: blocks, linears or glob patterns left alone and out of the account.
        granularity: what gets a value of its own; None leaves the choice to the allocator.
        solver: how a budget is put on a grid, see `owl_compress.allocators.budget`.
        tie: give linears that inference servers fuse (q/k/v, gate/up) equal bits.
        parts: sublayers of a block that are compressed, of "attention" and "mlp"; the others are skipped.
        protect_first, protect_last: number of blocks at either end that are skipped.
    """

    unit: Unit
    value: float
    grid: Grid | None = None
    low: float | None = None
    high: float | None = None
    pins: Mapping[str, float] = field(default_factory=dict)
    skips: tuple[str, ...] = ()
    granularity: Granularity | None = None
    solver: Solver = "proportional"
    tie: bool = True
    parts: tuple[str, ...] = tuple(Sublayer)
    protect_first: int = 0
    protect_last: int = 0

    def __post_init__(self) -> None:
        """Refuse what no plan can satisfy."""
        self._check_grid()
        self._check_parts()
        floor, ceiling = self.outer_bounds
        what = f"target {self.unit}"
        if not isfinite(self.value) or not floor <= self.value <= ceiling or self.value <= 0:
            opening = "(" if floor == 0 else "["
            raise RequestError(f"{what} {self.value:g} is outside {opening}{floor:g}, {ceiling:g}]")
        for name, bound in (("low", self.low), ("high", self.high)):
            if bound is not None and not floor <= bound <= ceiling:
                raise RequestError(
                    f"{name} {bound:g} is outside [{floor:g}, {ceiling:g}], the range of {self.unit}"
                )
        if self.plan_low > self.plan_high:
            raise RequestError(f"low {self.plan_low:g} is above high {self.plan_high:g}: exchange them")
        if self.value < self.plan_low:
            value, low = told_apart(self.value, self.plan_low)
            raise RequestError(f"{what} {value} is below low {low}: raise the target or lower low")
        if self.value > self.plan_high:
            value, high = told_apart(self.value, self.plan_high)
            raise RequestError(f"{what} {value} is above high {high}: lower the target or raise high")
        self._check_choices()

    def _check_grid(self) -> None:
        match self.grid:
            case KeptOfGrid(kept_of=kept_of):
                if kept_of not in KEPT_OF:
                    raise RequestError(f"N:{kept_of} is not supported: M is one of {_listed(KEPT_OF)}")
                if self.unit is not Unit.DENSITY:
                    raise RequestError(f"an N:M grid is for density, not for {self.unit}")
            case BitsGrid(bits=bits):
                _check_bit_choices(bits)
                if self.unit is not Unit.BITS:
                    raise RequestError(f"a grid of bits is for bits, not for {self.unit}")
            case None:
                if self.unit is Unit.BITS:
                    raise RequestError("a target in bits needs bit choices, such as 2,3,4")

    def _check_parts(self) -> None:
        for part in self.parts:
            if part not in tuple(Sublayer):
                raise RequestError(f"unknown part {part!r}: {nearest(part, map(str, Sublayer))}")
        if not self.parts:
            raise RequestError(f"no part is left to compress: name one of {', '.join(Sublayer)}")
        for end, count in (("first", self.protect_first), ("last", self.protect_last)):
            if count < 0:
                raise RequestError(f"protect-{end} {count} is negative: it counts blocks")

    def _check_choices(self) -> None:
        for name, choice, known in (
            ("granularity", self.granularity, get_args(Granularity)),
            ("solver", self.solver, get_args(Solver)),
        ):
            if choice is not None and choice not in known:
                raise RequestError(f"unknown {name} {choice!r}: {nearest(choice, known)}")
        if self.solver == "optimal" and self.grid is None:
            raise RequestError("solver 'optimal' needs a grid (N:M or bits); without one use 'proportional'")
        if not self.levels and self.grid is not None:
            raise RequestError(
                f"no value of the grid {_listed(self.grid.values())} lies in [low {self.plan_low:g}, "
                f"high {self.plan_high:g}]: widen them"
            )
        lowest, highest = self.solver_bounds
        if not lowest <= self.value <= highest:
            raise RequestError(
                f"target {self.value:g} with low {self.plan_low:g} and high {self.plan_high:g} is outside "
                f"what the grid allows between them: {lowest:g} to {highest:g}"
            )
        for name, value in self.pins.items():
            self._check_pin(name, value)

    def _check_pin(self, name: str, value: float) -> None:
        if self.grid is not None and value not in self.grid.values():
            raise RequestError(f"{name} is set to {value:g}, off the grid {_listed(self.grid.values())}")
        if not self.plan_low <= value <= self.plan_high:
            raise RequestError(
                f"{name} is set to {value:g}, outside [low {self.plan_low:g}, high {self.plan_high:g}]"
            )

    @property
    def outer_bounds(self) -> tuple[float, float]:
        """The range that the unit and the grid allow at all."""
        if isinstance(self.grid, BitsGrid):
            return self.grid.values()[0], self.grid.values()[-1]
        return 0.0, 1.0

    @property
    def plan_low(self) -> float:
        """The lower bound that the plan states."""
        return self.outer_bounds[0] if self.low is None else self.low

    @property
    def plan_high(self) -> float:
        """The upper bound that the plan states."""
        return self.outer_bounds[1] if self.high is None else self.high

    @property
    def is_bounded_by_user(self) -> bool:
        """True where low or high was given: a law that leaves them is then clipped instead of refused."""
        return self.low is not None or self.high is not None

    @property
    def is_continuous(self) -> bool:
        """True where a value between two others can be given out as well: densities off a grid.

        Widths are off a grid, but go by heads and channels.
        """
        return self.grid is None and self.unit is Unit.DENSITY

    @property
    def levels(self) -> tuple[float, ...]:
        """The grid values that may be given out, rising; empty without a grid."""
        if self.grid is None:
            return ()
        values = tuple(v for v in self.grid.values() if self.plan_low <= v <= self.plan_high)
        if self.low is None and len(values) > 1 and values[0] == 0 and self.value >= values[1]:
            return values[1:]
        return values

    @property
    def solver_bounds(self) -> tuple[float, float]:
        """The range in which the laws of budget look for values."""
        return (self.levels[0], self.levels[-1]) if self.levels else (self.plan_low, self.plan_high)

    @classmethod
    @checked
    def from_sparsity(cls, sparsity: float, **options: Unpack[TargetOptions]) -> "Target":
        """Density 1 - sparsity, for unstructured pruning.

        Raises:
            RequestError: sparsity is outside [0, 1), or an option cannot be meant.
        """
        return cls(Unit.DENSITY, _kept_share("sparsity", sparsity), **options)

    @classmethod
    @checked
    def from_prune_ratio(cls, prune_ratio: float, **options: Unpack[TargetOptions]) -> "Target":
        """Width 1 - prune_ratio, for structured removal.

        Raises:
            RequestError: prune_ratio is outside [0, 1), or an option cannot be meant.
        """
        return cls(Unit.WIDTH, _kept_share("prune ratio", prune_ratio), **options)

    @classmethod
    @checked
    def from_nm(cls, pattern: str, **options: Unpack[TargetOptions]) -> "Target":
        """N:M with N weights *kept* on average of every M, such as "3:8" or "2.5:8".

        Raises:
            RequestError: not of that form, M not in `KEPT_OF`, or N not in (0, M].
        """
        kept_text, colon, of_text = pattern.partition(":")
        try:
            kept, kept_of = float(kept_text), int(of_text)
        except ValueError:
            colon = ""
        if not colon:
            raise RequestError(f"N:M pattern {pattern!r} is not of the form 3:8 or 2.5:8 (N kept of every M)")
        if kept_of not in KEPT_OF:
            raise RequestError(f"N:M pattern {pattern!r} has M {kept_of}: M is one of {_listed(KEPT_OF)}")
        if not 0 < kept <= kept_of:
            raise RequestError(
                f"N:M pattern {pattern!r} keeps {kept:g} of {kept_of}: N is above 0 and at most M"
            )
        return cls(Unit.DENSITY, kept / kept_of, grid=KeptOfGrid(kept_of=kept_of), **options)

    @classmethod
    @checked
    def from_bits(
        cls, bits: float, choices: tuple[int, ...] = (2, 3, 4), **options: Unpack[TargetOptions]
    ) -> "Target":
        """An average of `bits` per compressed weight, each linear at one of `choices`.

        Raises:
            RequestError: a choice outside 2..8, or an average outside the choices.
        """
        _check_bit_choices(choices)
        if not min(choices) <= bits <= max(choices):
            raise RequestError(
                f"an average of {bits:g} bits is outside the choices {_listed(choices)}: "
                f"ask for {min(choices)} to {max(choices)}, or widen the choices"
            )
        return cls(Unit.BITS, float(bits), grid=BitsGrid(bits=tuple(sorted(set(choices)))), **options)


def _check_bit_choices(choices: tuple[int, ...]) -> None:
    wrong = [width for width in choices if not is_bit_width(width)]
    if wrong or not choices:
        shown = f"bit choice {wrong[0]}" if wrong else "an empty list of bit choices"
        raise RequestError(f"{shown} is outside {BIT_WIDTHS[0]}..{BIT_WIDTHS[-1]}: choose {BIT_WIDTHS_SHOWN}")


def _kept_share(name: str, removed: float) -> float:
    if not 0 <= removed < 1:
        raise RequestError(
            f"{name} {removed:g} is outside [0, 1): it is the share removed, a fraction such as 0.7"
        )
    return round(1.0 - removed, 12)


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
