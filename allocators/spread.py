"""The shape shared by OWL and its relatives: scores stretched to a range around the target."""

from collections.abc import Sequence
from math import floor, isfinite, log10
from typing import Literal

import numpy as np

from owl_compress.allocators.base import Curve, FloatArray, Group, sizes, weighted_mean
from owl_compress.allocators.target import Target
from owl_compress.documents.units import KeptOfGrid, Unit
from owl_compress.errors import RequestError

OwlLaw = Literal["published", "bounded"]
"""How far budgets may stray: a range of 2 lam, or no departure beyond lam."""

MixedLaw = Literal["published", "bounded", "published-special"]
"""The same, and the second of the two rules that OWL's authors have for mixed N:M."""

PAPER = "[Outlier Weighed Layerwise Sparsity](https://arxiv.org/abs/2310.05175)"
"""What the model card of whoever follows OWL says of it."""

METRIC_TEXT = "What blocks are ranked by, such as lod@5."
LAM_TEXT = (
    "Half the range of the budgets, on a grid their largest departure: 0.08 if left open; of N:M 2 weights "
    "of M, of bits 1."
)
"""Help of the options that OWL and its relatives share."""

OWL_LAM = 0.08
"""OWL's default half range off a grid, and that of all its relatives but DLP."""

_LAM_OF_KEPT = 2.0
_LAM_OF_BITS = 1.0
_SLACK = 1e-12


def settled_lam(lam: float | None, target: Target, off_grid: float = OWL_LAM, *, name: str = "lam") -> float:
    """The half range `lam`, checked, or its default where it was left open; `name` is what users call it.

    In density or width it is a fraction (default `off_grid`); on an N:M grid it counts kept weights of M
    (default 2, as in OWL's mixed N:M); in bits it is bits (default 1).

    Raises:
        RequestError: lam is negative, not a number, or wider than the unit.
    """
    match target.grid:
        case KeptOfGrid(kept_of=kept_of):
            default, widest, meaning = _LAM_OF_KEPT, float(kept_of), f"kept weights of {kept_of}"
        case None:
            default, widest, meaning = off_grid, 1.0, f"a share of {target.unit}"
        case _:
            default, widest, meaning = _LAM_OF_BITS, target.outer_bounds[1], "bits"
    value = default if lam is None else lam
    if not isfinite(value) or not 0 <= value <= widest:
        raise RequestError(
            f"{name} {value:g} is outside [0, {widest:g}] ({meaning}); the default is {default:g}"
        )
    return value


_PAPER_LAMS = (OWL_LAM, 0.1, 0.05, 0.2, 0.02)
_SHARES_OF_KEPT = (1 / 4, 1 / 8, 3 / 16, 3 / 8, 1 / 12)
_LAMS_OF_BITS = (_LAM_OF_BITS, 0.5, 0.75, 1.5)


def lams_to_try(target: Target) -> tuple[float, ...]:
    """Half ranges worth trying, the usual one first.

    Off a grid they are those that OWL's authors tune over (arXiv 2310.05175). On an N:M grid, where less than
    half a step changes next to nothing, they are shares of M, for M = 8 from two thirds of a weight to three.
    """
    match target.grid:
        case KeptOfGrid(kept_of=kept_of):
            return tuple(share * kept_of for share in _SHARES_OF_KEPT)
        case None:
            return _PAPER_LAMS
        case _:
            return _LAMS_OF_BITS


def settled_law(law: OwlLaw | None, target: Target) -> OwlLaw:
    """The law, or its default: `published`, but on a grid, whose ends are near, `bounded`."""
    if law is not None:
        return law
    return "published" if target.grid is None else "bounded"


def unit_range(scores: FloatArray) -> FloatArray:
    """Stretch scores to z = (scores - min) / (max - min) in [0, 1]; all zero where all scores are equal."""
    extent = np.ptp(scores)
    return (scores - scores.min()) / extent if extent > 0 else np.zeros_like(scores)


def deviations(scores: FloatArray, weights: FloatArray, lam: float, law: OwlLaw) -> FloatArray:
    """How far each group departs from the target; the weighted mean of it is zero.

    published: 2 · lam · (z - m), m the weighted mean of z (OWL, arXiv 2310.05175, as its code computes it).
    The *range* is 2 · lam, so one group may depart further than lam.

    bounded: the same shape, scaled so that the largest departure is lam, which is what the paper's text says.
    """
    z = unit_range(scores)
    centred = z - weighted_mean(z, weights)
    largest = np.abs(centred).max()
    if largest == 0:
        return centred
    return 2 * lam * centred if law == "published" else lam * (centred / largest)


def spread(
    groups: Sequence[Group], target: Target, scores: FloatArray, lam: float, law: OwlLaw | None = None
) -> Curve:
    """The law target + deviations as a family: its argument shifts all groups alike.

    A `law` left open is the default of `settled_law`. Without a grid and without bounds given by the user, a
    law that leaves [0, 1] is refused. A grid brings its own ends, and bounds given by the user are there to
    be met: then values are clipped, and the others shifted until the mean holds again.

    Raises:
        RequestError: the law leaves [0, 1] unasked.
    """
    scale = 1 / target.grid.kept_of if isinstance(target.grid, KeptOfGrid) else 1.0
    shape = deviations(scores, sizes(groups), lam, settled_law(law, target)) * scale
    if target.grid is None and not target.is_bounded_by_user:
        _check_inside(groups, target, shape, lam)

    def curve(shift: float) -> FloatArray:
        return shift + shape

    return curve


def _check_inside(groups: Sequence[Group], target: Target, shape: FloatArray, lam: float) -> None:
    values = target.value + shape
    outside = np.maximum(values - 1, -values)
    worst = int(outside.argmax())
    if outside[worst] <= _SLACK:
        return
    # Departures grow in proportion to lam; the room is 1 - target above and target below.
    room = np.where(shape > 0, 1 - target.value, target.value)
    fitting = rounded_down(lam * float((room[shape != 0] / np.abs(shape[shape != 0])).min()))
    # With no room at all no lam helps: then all budgets are equal.
    less = f"use lam {fitting:g} or less" if fitting > 0 else "use --allocator uniform"
    measure = "density" if target.unit is Unit.DENSITY else "width"
    raise RequestError(
        f"lam {lam:g} gives {groups[worst].name} a {measure} of {values[worst]:.4g}, outside [0, 1]: {less}, "
        "or --low/--high to clip"
    )


def rounded_down(value: float) -> float:
    """`value` with three significant digits, never above it."""
    if value <= 0:
        return 0.0
    digits = 2 - floor(log10(value))
    return floor(value * 10.0**digits) / 10.0**digits
