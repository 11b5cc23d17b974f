"""Allocators: from an importance report or a sensitivity profile, and a target, to a plan; in pure numbers.

Adding one: a file with a frozen dataclass that follows the protocol `Allocator`, and a line in the table
here. Packages of others register theirs through the entry point group of the same name.
"""

from collections.abc import Mapping
from typing import Any

from owl_compress.allocators.base import Allocator, Curve, Group, LevelCosts, OffBudget, Tunable, reads_damage
from owl_compress.allocators.damage import DamageCurve
from owl_compress.allocators.planning import Source, make_plan
from owl_compress.allocators.target import Granularity, Solver, Target
from owl_compress.arguments import checked
from owl_compress.documents.plan import Plan
from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.errors import RequestError
from owl_compress.registry import Registry

__all__ = [
    "ALLOCATORS",
    "CHEAPEST",
    "DEFAULT_ALLOCATOR",
    "DEFAULT_FROM_PROFILE",
    "EQUAL_SHARES",
    "Allocator",
    "Curve",
    "DamageCurve",
    "Granularity",
    "Group",
    "LevelCosts",
    "OffBudget",
    "Solver",
    "Source",
    "Target",
    "Tunable",
    "allocate",
    "default_for",
    "reads_damage",
]

ALLOCATORS = Registry(
    kind="allocator",
    group="owl_compress.allocators",
    builtin={
        "alpha": "owl_compress.allocators.alpha:Alpha",
        "dlp": "owl_compress.allocators.dlp:Dlp",
        "er": "owl_compress.allocators.er:Er",
        "er-plus": "owl_compress.allocators.er_plus:ErPlus",
        "global": "owl_compress.allocators.global_threshold:GlobalThreshold",
        "linear-depth": "owl_compress.allocators.linear_depth:LinearDepth",
        "lsa": "owl_compress.allocators.lsa:Lsa",
        "owl": "owl_compress.allocators.owl:Owl",
        "owl-inverse": "owl_compress.allocators.owl_inverse:OwlInverse",
        "random": "owl_compress.allocators.seeded_random:SeededRandom",
        "sensitivity": "owl_compress.allocators.sensitivity:Sensitivity",
        "uniform": "owl_compress.allocators.uniform:Uniform",
        "weight-l1": "owl_compress.allocators.weight_l1:WeightL1",
    },
)

DEFAULT_ALLOCATOR = "owl"
"""Who divides a budget where nobody says."""

DEFAULT_FROM_PROFILE = "sensitivity"
"""The same where damages were measured, and no metrics."""

EQUAL_SHARES = "uniform"
"""Who gives every block the same: what any other is measured against."""

CHEAPEST = (EQUAL_SHARES, "linear-depth")
"""Who looks at nothing: what costs nothing is always tried where the best of several is wanted."""


def default_for(source: Source) -> str:
    """Who divides a budget over what this document measured, where nobody says."""
    return DEFAULT_FROM_PROFILE if isinstance(source, SensitivityProfile) else DEFAULT_ALLOCATOR


@checked
def allocate(
    source: Source,
    allocator: str | Allocator,
    target: Target,
    options: Mapping[str, Any] | None = None,
) -> Plan:
    """Divide `target` over the linears of `source`, a report or a sensitivity profile.

    `allocator` is a registered name, with `options` for it, or an allocator that has its options already.

    Raises:
        RequestError: the request cannot be satisfied; the message says what, the value and the remedy.
    """
    if isinstance(allocator, str):
        return make_plan(source, ALLOCATORS.create(allocator, options), target)
    if options:
        raise RequestError(
            f"options {sorted(options)} are for an allocator given by name, not for {allocator!r}"
        )
    return make_plan(source, allocator, target)
