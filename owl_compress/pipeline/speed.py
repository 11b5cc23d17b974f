"""What plans of widths are predicted to take in time, by a cost table of the same model and machine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import floor, inf

import torch
from pydantic import JsonValue

from owl_compress.allocators import Source
from owl_compress.compression.contract import Rehearser
from owl_compress.documents.costs import CostTable
from owl_compress.documents.plan import Plan
from owl_compress.documents.sensitivity import PartDamage, SensitivityProfile
from owl_compress.documents.units import Sublayer
from owl_compress.errors import RequestError
from owl_compress.evaluation.latency import device_name
from owl_compress.models.anatomy import find_anatomy
from owl_compress.models.removable import part_linears
from owl_compress.models.structure import ModelStructure
from owl_compress.pipeline.limits import TimeLimit
from owl_compress.pipeline.session import Session

Part = tuple[str, Sublayer]
"""A block, and which of its parts."""

_AGAIN = "measure it again with `owl-compress eval MODEL --latency --cost-table FILE`"
_ROUNDING = 1e-9


@dataclass(frozen=True)
class TimePrice:
    """Seconds of the phase that is limited.

    `kept` tells the weights that each part of the table keeps under a plan, `linears` what it is made of.
    Below the narrowest width of the table a part counts with the time of that: more than it takes.
    """

    asked: TimeLimit
    kept: Callable[[Plan], Mapping[Part, float]]
    linears: Mapping[Part, tuple[str, ...]]

    @property
    def limit(self) -> float:
        """The most seconds."""
        return self.asked.seconds * (1 + _ROUNDING)

    def known(self, source: Source) -> Source:
        """`source`, a profile without levels that are narrower than any that was timed.

        Raises:
            RequestError: there are no others of some part.
        """
        if not isinstance(source, SensitivityProfile):
            return source
        return source.model_copy(update={"parts": tuple(map(self._timed, source.parts))})

    def _timed(self, part: PartDamage) -> PartDamage:
        costs = self.asked.table.by_part
        shares = [
            costs[timed].least / costs[timed].widths[-1].n_weights
            for timed, names in self.linears.items()
            if timed in costs and not {*names}.isdisjoint(part.linears)
        ]
        least = max(shares, default=0.0) * (1 - _ROUNDING)
        curve = [(at, cost) for at, cost in zip(part.levels, part.damage, strict=True) if not 0 < at < least]
        if not curve:
            raise RequestError(
                f"no level of {part.name} is at least {least:.3g} wide, which is the narrowest that the cost "
                "table knows: measure such a level, or narrower ones with eval --cost-widths"
            )
        levels, damage = zip(*curve, strict=True)
        return part.model_copy(update={"levels": levels, "damage": damage})

    def of(self, plan: Plan) -> float:
        """Seconds of the model, its widths rounded as far as can be told."""
        return self.asked.table.seconds(self.asked.phase, self.kept(plan))

    def check(self, plan: Plan) -> None:
        """Refuse a plan with a part narrower than any that was timed."""
        costs = self.asked.table.by_part
        for part, n_weights in self.kept(plan).items():
            of_part = costs.get(part)
            if of_part is not None and 0 < n_weights < of_part.least * (1 - _ROUNDING):
                whole = of_part.widths[-1].n_weights
                share, least = n_weights / whole, of_part.least / whole
                raise RequestError(
                    f"the {part[1]} of {part[0]} would keep {share:.3g} of its weights, and the cost table "
                    f"knows nothing below {least:.3g}: measure narrower with eval --cost-widths "
                    f"{_floored(share)}, or ask for less"
                )

    def out_of_reach(self, least: float) -> RequestError:
        """With the shortest time that there is."""
        phase, dense = self.asked.phase, self.asked.table.seconds(self.asked.phase)
        asked = f"latency {self.asked.seconds:.4g} s"
        if self.asked.speedup is not None:
            asked = f"speedup {self.asked.speedup:g}"
        most = floor(100 * dense / least) / 100 if least else inf
        return RequestError(
            f"{asked} of the {phase} cannot be met: the least that these options and the widths in the cost "
            f"table allow is {least:.4g} s of {dense:.4g} s, a speedup of {most:g}: ask for that, or measure "
            "narrower with eval --cost-widths"
        )

    def record(self, cost: float) -> dict[str, JsonValue]:
        """The time that was asked for, and the one that is predicted."""
        speedup = {} if self.asked.speedup is None else {"asked_speedup": self.asked.speedup}
        dense = self.asked.table.seconds(self.asked.phase)
        return {
            **speedup,
            "phase": self.asked.phase,
            "asked_seconds": self.asked.seconds,
            "predicted_seconds": cost,
            "predicted_speedup": dense / cost if cost else None,  # rest and widths may be measured as no time
            "cost_table": self.asked.table.fingerprint,
        }


def time_price(session: Session, limit: TimeLimit) -> TimePrice:
    """The price of plans for the model of `session`.

    Raises:
        RequestError: a table of another model, device or number of threads.
    """
    check_same(session, limit.table)
    structure, backend = session.structure, session.request.backend
    linears = _linears_by_part(structure)
    sizes = structure.linear_sizes

    def kept(plan: Plan) -> dict[Part, float]:
        if isinstance(backend, Rehearser):
            plan = backend.rehearsed(structure, plan).plan
        left = {budget.name: budget.value * budget.n_weights for budget in plan.budgets}
        return {part: sum(left.get(name, sizes[name]) for name in names) for part, names in linears.items()}

    return TimePrice(limit, kept, linears)


def check_same(session: Session, table: CostTable) -> None:
    """Refuse a table that says nothing of this model on this machine.

    Raises:
        RequestError: naming what differs.
    """
    device, is_cpu = session.request.device, session.request.device.type == "cpu"
    found = {
        "family": (table.model.family, session.identity.family),
        "dtype": (table.model.dtype, session.identity.dtype),
        "device": (table.device, device_name(device)),
        "threads": (table.threads, torch.get_num_threads() if is_cpu else None),
    }
    for what, (told, own) in found.items():
        if told != own:
            raise RequestError(f"the cost table is of {what} {told}, and this is {own}: {_AGAIN}")
    sizes, costs = session.structure.linear_sizes, table.by_part
    parts = {
        part: sum(sizes[name] for name in names)
        for part, names in _linears_by_part(session.structure).items()
    }
    for part in sorted(costs.keys() | parts.keys()):
        there, here = costs[part].widths[-1].n_weights if part in costs else 0, parts.get(part, 0)
        if there != here:
            raise RequestError(
                f"the cost table is of another model: the {part[1]} of {part[0]} has {there:,} weights there "
                f"and {here:,} here: {_AGAIN}"
            )


def _linears_by_part(structure: ModelStructure) -> dict[Part, tuple[str, ...]]:
    return {
        (site.name, part): names
        for site in structure.blocks
        for part, names in part_linears(find_anatomy(site)).items()
    }


def _floored(share: float) -> float:
    return max(0.01, floor(100 * share) / 100)
