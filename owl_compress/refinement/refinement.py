"""Refinement: a plan made better where it stands, with the whole model compressed.

At the plan every part is moved a level up and a level down, alone, and what that does to the damage is
measured. A few of these moves that keep the budget together are carried out, and the new plan is kept only if
it does less damage on text that played no part in choosing it; else half as many moves are tried. All
profitable moves at once do more harm than good: gains of single moves do not add up for long. The method
`evo` searches by chance instead, at a higher cost, see `lineage`.
"""

from collections.abc import Mapping
from time import perf_counter
from typing import Protocol

from pydantic import JsonValue
from torch import nn

from owl_compress.arguments import checked
from owl_compress.compression.account import method_record
from owl_compress.compression.contract import Backend
from owl_compress.compression.demands import check_has_text, check_takes_budgets, check_unit
from owl_compress.compression.gradient_memory import settled_backend
from owl_compress.compression.statistics import check_statistics
from owl_compress.device import given_device
from owl_compress.documents.journal import check_same_method
from owl_compress.documents.plan import ASKED_TARGET, AllocatorRecord, Plan
from owl_compress.documents.result import MethodRecord
from owl_compress.errors import RequestError
from owl_compress.importance.parts import check_kind, usual_kind
from owl_compress.importance.reference import DenseReference
from owl_compress.models.residence import refuse_streamed
from owl_compress.models.state import check_finite, evaluation_mode, parameter_device
from owl_compress.models.structure import ModelStructure, check_compressible, find_structure
from owl_compress.refinement.evolution import Evolution
from owl_compress.refinement.gate import Gate
from owl_compress.refinement.refined import Refinement, RefinementOptions, RefinementWindows
from owl_compress.refinement.spending import Spending
from owl_compress.refinement.steps import Steps
from owl_compress.refinement.swap_rounds import SwapRounds
from owl_compress.refinement.workshop import Standing, WorkOptions, Workshop
from owl_compress.walk.agreement import settled_structure

_CARRIED_ON = (ASKED_TARGET, "drift", "set", "skip")
"""What a plan says of its budget holds for the refined one, too."""


class Search(Protocol):
    """A way to better plans."""

    def costs(self, at: Standing) -> tuple[float, float]:
        """Tokens that it takes at least, and where nobody says how many it may."""
        ...

    def run(self, given: Standing) -> tuple[Standing, str]:
        """The best plan that the gate let through, and why no more was tried."""
        ...


@checked
def refine_plan(
    model: nn.Module,
    plan: Plan,
    backend: Backend,
    windows: RefinementWindows,
    options: RefinementOptions | None = None,
    work: WorkOptions | None = None,
    *,
    structure: ModelStructure | None = None,
) -> Refinement:
    """Make `plan` better by measured damage, at the same budget.

    The plan as it is given is the first candidate, and no other stands beside it: it is only ever replaced by
    one whose damage, carried out and measured on text held apart, is lower. Up to three copies of the model
    are held.

    Args:
        model: a causal language model; unchanged afterwards.
        plan: for this model, in the unit of the backend.
        backend: who carries it out.
        windows: what the backend sees, moves are chosen on, and plans are judged by.
        options: how it is refined.
        work: where, and who is told.
        structure: of the model, where it was found already.

    Raises:
        RequestError: a plan of another model or unit, or in which nothing can move; a backend that divides
            budgets by itself; windows that overlap; a cost that pays for no round; NaN or Inf.
    """
    refuse_streamed(model, "refining a plan")
    options, work = options or RefinementOptions(), work or WorkOptions()
    device = given_device(work.device) or parameter_device(model)
    structure = structure or find_structure(model)
    check_compressible(structure)
    _check_request(plan, backend, windows, work, structure)
    steps, kind = Steps.of(plan, options.step), options.part or usual_kind(plan.unit)
    check_kind(kind, plan.unit)
    check_finite(model)
    structure = settled_structure(model, structure, windows.choosing.ids, device)
    backend, _ = settled_backend(backend, model, structure, windows.statistics, work.batch_size, device)
    method = method_record(backend)
    check_same_method(work.notes.once("backend", MethodRecord, lambda: method), method)
    spending = Spending()
    with evaluation_mode(model):
        choosing, judge = (
            DenseReference.of(
                model, structure, one, device, n_positions=options.positions, progress=work.progress
            )
            for one in (windows.choosing, windows.gate)
        )
        spending.add(windows.choosing.ids.numel() + windows.gate.ids.numel())
        workshop = Workshop(model, structure, backend, windows.statistics, judge, work, device, spending)
        names = frozenset(budget.name for budget in plan.budgets)
        gate = Gate(workshop, choosing, options, steps, kind, names, plan.grid)
        search: Search = Evolution(gate) if options.method == "evo" else SwapRounds(gate)
        return _refined(gate, plan, search, windows.record)


def _check_request(
    plan: Plan, backend: Backend, windows: RefinementWindows, work: WorkOptions, structure: ModelStructure
) -> None:
    plan.check_fits(structure.linear_sizes)
    check_unit(plan, backend)
    check_statistics(backend, work.statistics)
    check_has_text(backend, windows.statistics)
    check_takes_budgets(backend)


def _refined(gate: Gate, plan: Plan, search: Search, texts: Mapping[str, str]) -> Refinement:
    """Carry the plan out as it is, and look for a better one from there."""
    workshop = gate.workshop
    start = perf_counter()
    given = workshop.standing(plan)
    seconds_per_token = (perf_counter() - start) / workshop.cost_of_standing
    least, usual = search.costs(given)
    _set_limit(gate, least, usual)
    left = workshop.spending.limit - workshop.spending.spent
    workshop.options.announce(workshop.spending.limit, left * seconds_per_token)
    best, ended = search.run(given)
    return Refinement(
        plan if best is given else _recorded(gate, best, given, plan, texts),
        (given.damage, best.damage),
        tuple(gate.attempts),
        workshop.spending.spent,
        ended,
        gate.kind,
        gate.options.method,
    )


def _set_limit(gate: Gate, least: float, usual: float) -> None:
    """How much it may cost in all.

    Raises:
        RequestError: less than the first round takes.
    """
    spending, asked = gate.workshop.spending, gate.options.max_cost
    least += spending.spent
    if asked is not None and asked < least:
        raise RequestError(
            f"max-cost {asked:,.0f} pays for no round: the plan as it is and one round take {least:,.0f} "
            "forward tokens; allow as much, or give fewer --samples or a coarser --part"
        )
    spending.limit = spending.spent + usual if asked is None else asked


def _recorded(gate: Gate, best: Standing, given: Standing, source: Plan, texts: Mapping[str, str]) -> Plan:
    """The plan of `best`, which says how it came about, and on which `texts`."""
    kept = [attempt for attempt in gate.attempts if attempt.is_kept]
    before, method = source.allocator, method_record(gate.workshop.backend)
    parameters: dict[str, JsonValue] = {
        "method": gate.options.method,
        "part": gate.kind.value,
        "rounds": len(kept),
        "moves": sum(len(attempt.moves) for attempt in kept),
        "damage_before": given.damage,
        "damage_after": best.damage,
        "backend": method.name,
        "backend_options": dict(method.parameters),
        "statistics": gate.workshop.options.statistics,
        "refined_from": source.fingerprint,
        "refined_allocator": before.name,
    }
    parameters |= {"step": gate.steps.step} if gate.steps.levels is None else {}
    parameters |= {name: value for name, value in gate.options.record.items() if value is not None}
    parameters |= texts
    parameters |= {name: value for name, value in before.parameters.items() if name in _CARRIED_ON}
    return best.plan.model_copy(update={"allocator": AllocatorRecord(name="refine", parameters=parameters)})
