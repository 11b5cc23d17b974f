"""What a recipe says of a sensitivity profile: parts, levels, windows, and the most that it may cost."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from owl_compress.allocators import Target
from owl_compress.documents.quantities import n_tokens
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.sensitivity import Measure, PartKind, SensitivityProfile
from owl_compress.documents.units import BitsGrid, KeptOfGrid, Unit
from owl_compress.errors import RequestError
from owl_compress.importance.levels import FEWEST_LEVELS, checked_levels, usual_levels
from owl_compress.importance.parts import check_kind, usual_kind
from owl_compress.importance.reference import DEFAULT_POSITIONS

DEFAULT_DAMAGE_SAMPLES = 4
DEFAULT_DAMAGE_LEN = 128
"""Windows of so many tokens, which order plans as whole texts do."""

_FEWEST_SAMPLES = 2
_N_OF_M = re.compile(r"(\d+):(\d+)")
_SHARE_OF_M = re.compile(r"\d+\.\d*:\d+")

CostOf = Callable[[int, Sequence[float]], float]
"""Forward tokens of a profile on so many windows of damage, at these levels."""


@dataclass(frozen=True)
class ProfileSettings:
    """How a profile is measured.

    Attributes:
        part: what is compressed at a time.
        levels: that each part is compressed to, rising.
        grid: the M of N:M that these are of, or None.
        are_levels_open: whether nobody asked for exactly these: then one that the backend refuses is passed
            over, and cost may leave some out.
        measure: of damage.
        positions: that measures of the output compare.
        damage_samples: windows that damage is measured on; None where cost may choose.
        damage_len: tokens of each; None for the default.
        max_cost: in forward tokens; None for the default.
    """

    part: PartKind
    levels: tuple[float, ...]
    grid: KeptOfGrid | None = None
    are_levels_open: bool = True
    measure: Measure = Measure.KL
    positions: int = DEFAULT_POSITIONS
    damage_samples: int | None = None
    damage_len: int | None = None
    max_cost: int | None = None

    @classmethod
    def of(
        cls, recipe: Recipe, unit: Unit, target: Target | None = None, *, extends: bool = False
    ) -> "ProfileSettings":
        """The settings of `recipe`; left open are those that suit the `target`, if there is one.

        Raises:
            RequestError: parts or levels that the unit does not have, or that leave the target out of reach.
        """
        part = recipe.part or _kind_for(unit, target)
        check_kind(part, unit)
        if recipe.levels is None:
            levels, grid = _usual_for(unit, target), _grid_of(target)
        else:
            levels, grid = parsed_levels(recipe.levels, unit, _grid_of(target), extends=extends)
            if target is not None:
                _check_reach(levels, target)
        if isinstance(grid, KeptOfGrid) and target is not None:
            _check_pattern(grid, target)
        return cls(
            part=part,
            levels=levels,
            grid=grid,
            are_levels_open=recipe.levels is None and unit is not Unit.BITS,
            measure=recipe.measure or Measure.KL,
            positions=recipe.positions or DEFAULT_POSITIONS,
            damage_samples=recipe.damage_samples,
            damage_len=recipe.damage_len,
            max_cost=n_tokens(recipe.max_cost) if recipe.max_cost else None,
        )

    def affordable(self, cost_of: CostOf, usual_cost: int) -> "ProfileSettings":
        """The same with what was left open chosen by cost: windows first, then levels.

        Args:
            cost_of: see there.
            usual_cost: the most where nobody said; where even the least is more, that is taken.

        Raises:
            RequestError: the least costs more than was allowed.
        """
        n_most = self.damage_samples or DEFAULT_DAMAGE_SAMPLES
        n_least = self.damage_samples or min(_FEWEST_SAMPLES, n_most)
        choices = [(n, self.levels) for n in range(n_most, n_least - 1, -1)]
        if self.are_levels_open:
            n_levels = range(len(self.levels) - 1, FEWEST_LEVELS - 1, -1)
            choices += [(n_least, spread(self.levels, n)) for n in n_levels]
        most = usual_cost if self.max_cost is None else self.max_cost
        found = next((choice for choice in choices if cost_of(*choice) <= most), None)
        if found is None:
            found = choices[-1]
            if self.max_cost is not None:
                raise RequestError(
                    f"max-cost {self.max_cost:,} is below {cost_of(*found):,.0f} forward tokens, the least "
                    f"that {found[0]} windows at {_counted(found[1])} cost: allow as much, or ask for a "
                    "coarser --part, fewer --levels or a shorter --damage-len"
                )
        return replace(self, damage_samples=found[0], levels=found[1])


def parsed_levels(
    given: Sequence[str | float],
    unit: Unit,
    asked_grid: KeptOfGrid | None = None,
    *,
    extends: bool = False,
) -> tuple[tuple[float, ...], KeptOfGrid | None]:
    """Levels as users write them: numbers, or N:M, which sets the grid where none is asked for.

    Raises:
        RequestError: too few levels, another M than is asked for or several, or none that the unit can carry
            out.
    """
    found = {level: _N_OF_M.fullmatch(str(level)) for level in given}
    sizes = {int(match[2]) for match in found.values() if match}
    sizes |= {asked_grid.kept_of} if asked_grid else set()
    if len(sizes) > 1:
        asked = f" and the budget is of N:{asked_grid.kept_of}" if asked_grid else ""
        raise RequestError(
            f"levels {_listed(given)} are of another M than each other{asked}: give all of one"
        )
    if sizes and unit is not Unit.DENSITY:
        raise RequestError(f"levels {_listed(given)} are N:M, and the backend counts {unit}: give numbers")
    if sizes and not all(found.values()) and asked_grid is None:
        raise _not_all_patterns(given)
    grid = KeptOfGrid(kept_of=next(iter(sizes))) if sizes and 0 not in sizes else asked_grid
    values = [_number(level, match) for level, match in found.items()]
    if grid is not None:  # refuses an M that no mask has
        Target(Unit.DENSITY, 1.0, grid=grid)
    return checked_levels(values, unit, grid, extends=extends), grid


def _not_all_patterns(given: Sequence[str | float]) -> RequestError:
    uneven = next((str(level) for level in given if _SHARE_OF_M.fullmatch(str(level))), None)
    if uneven is not None:
        return RequestError(f"level {uneven} keeps no whole number of weights of each group: give whole N")
    return RequestError(f"levels {_listed(given)} are N:M in part: write all of them so")


def _number(level: str | float, match: re.Match[str] | None) -> float:
    if match and int(match[2]):
        return int(match[1]) / int(match[2])
    try:
        return float(level)
    except ValueError:
        raise RequestError(
            f"level {level!r} is no level: give shares kept as in 0.2,0.3, N:M as in 2:8,3:8, or bits 2,3,4"
        ) from None


def spread(levels: Sequence[float], n_levels: int) -> tuple[float, ...]:
    """So many of the levels, evenly spread, both ends among them."""
    last = len(levels) - 1
    return tuple(levels[round(step * last / (n_levels - 1))] for step in range(n_levels))


def extending(recipe: Recipe, known: SensitivityProfile) -> Recipe:
    """The recipe of what adds to a profile: what it leaves open is as it was there."""
    text, damage = known.statistics, known.damage_text
    there = measured_as(known) | {"seed": damage.seed, "bos": damage.bos}
    if text is not None:
        there |= {"samples": text.sequences, "seq_len": text.seq_len, "sampling": text.sampling}
    given = recipe.model_fields_set
    return recipe.with_options({name: value for name, value in there.items() if name not in given})


def measured_as(profile: SensitivityProfile) -> dict[str, object]:
    """How a profile was measured, but for its levels, under the names that a recipe has for it."""
    damage = profile.damage_text
    found: dict[str, object] = {
        "part": str(profile.parts[0].kind),
        "measure": str(profile.measure),
        "positions": profile.positions,
        "damage_samples": damage.sequences,
        "damage_len": damage.seq_len,
    }
    return {name: value for name, value in found.items() if value is not None}


def _kind_for(unit: Unit, target: Target | None) -> PartKind:
    """The coarsest that tells apart what the target wants told apart."""
    if target is not None and target.granularity == "block":
        return PartKind.BLOCK
    if target is not None and unit is not Unit.WIDTH and (target.granularity == "linear" or not target.tie):
        return PartKind.TIED if unit is Unit.BITS and target.tie else PartKind.LINEAR
    return usual_kind(unit)


def _grid_of(target: Target | None) -> KeptOfGrid | None:
    return target.grid if target is not None and isinstance(target.grid, KeptOfGrid) else None


def _usual_for(unit: Unit, target: Target | None) -> tuple[float, ...]:
    """Levels among which a target is well within; on a grid all that a solver may choose."""
    if target is not None and isinstance(target.grid, BitsGrid):
        return checked_levels(target.levels, unit)
    grid = _grid_of(target)
    levels = usual_levels(unit, grid)
    if target is None:
        return levels
    if grid is not None:
        low, high = target.solver_bounds
        within = tuple(level for level in levels if low <= level <= high)
        return within if len(within) >= FEWEST_LEVELS else levels
    lowest = min(0.5 * target.value, 1.0 if target.low is None or target.low <= 0 else target.low)
    return levels if lowest >= levels[0] else (lowest, *levels)


def _check_reach(levels: Sequence[float], target: Target) -> None:
    """Refuse levels that no choice of meets the target, before anything is measured.

    Raises:
        RequestError: all are above it, or a number of bits is among the choices that is none of them.
    """
    if target.value < levels[0] and not target.pins:
        raise RequestError(
            f"an average of {target.value:.4g} {target.unit} is below {levels[0]:.4g}, the lowest of "
            f"--levels: add levels of {target.value:.4g} or less"
        )
    missing = [level for level in target.levels if level not in levels]
    if target.unit is Unit.BITS and missing:
        shown = ",".join(f"{level:g}" for level in missing)
        raise RequestError(f"--bit-choices has {shown} and --levels has not: add it there, or drop it here")


def _check_pattern(grid: KeptOfGrid, target: Target) -> None:
    """Refuse a target below the least that a pattern keeps, before anything is measured.

    Raises:
        RequestError: see above.
    """
    if target.value * grid.kept_of < 1 and not target.pins:
        asked = f"{target.value * grid.kept_of:g}:{grid.kept_of}"
        raise RequestError(
            f"{asked} is below 1:{grid.kept_of}, the least that is measured: ask for that or more"
        )


def _counted(levels: Sequence[float]) -> str:
    return f"{len(levels)} level{'s' if len(levels) != 1 else ''}"


def _listed(levels: Sequence[str | float]) -> str:
    return ",".join(map(str, levels))
