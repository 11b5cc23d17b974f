"""From what was measured to a plan: of the average that was asked for, or the largest within a limit."""

from dataclasses import replace
from itertools import pairwise
from math import gcd

from owl_compress.allocators import Allocator, Granularity, Source, Target, allocate
from owl_compress.allocators.groups import build_groups, partition
from owl_compress.allocators.limit import OutOfReachError, Priced, Reach, largest_within
from owl_compress.allocators.profiled import ProfiledModel
from owl_compress.compression.contract import PlanChecker
from owl_compress.documents.plan import AllocatorRecord, Plan
from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.pipeline.prices import Price, price_of
from owl_compress.pipeline.session import Session


def divide(session: Session, source: Source, allocator: Allocator | str | None = None) -> Plan:
    """Divide the budget of the request over the linears of `source`, by its allocator or another.

    Where it is a limit, the plan is the one of the largest average that stays within it, and says what was
    asked for and what is predicted.

    Raises:
        RequestError: a budget or limit that cannot be met.
    """
    request = session.request
    allocator = allocator or request.allocator
    if allocator is None or request.target is None:
        raise TypeError("a request has a plan, or an allocator and a target")
    price = price_of(session)
    if price is None:
        return allocate(source, allocator, request.target)
    return _within(session, source, allocator, request.target, price)


def _within(
    session: Session, source: Source, allocator: Allocator | str, target: Target, price: Price
) -> Plan:
    backend, known = session.request.backend, price.known(source)

    def price_at(value: float) -> Priced:
        plan = allocate(known, allocator, replace(target, value=value))
        if isinstance(backend, PlanChecker):
            backend.check_plan(session.structure, plan)
        return Priced(plan, price.of(plan))

    try:
        found = largest_within(price_at, price.limit, reach_of(known, allocator, target))
    except OutOfReachError as error:
        raise price.out_of_reach(error.least.cost) from error
    price.check(found.plan)
    record = found.plan.allocator
    told = AllocatorRecord(name=record.name, parameters=record.parameters | price.record(found.cost))
    return found.plan.model_copy(update={"allocator": told, "report": source.fingerprint})


def reach_of(source: Source, allocator: Allocator | str, target: Target) -> Reach:
    """The averages that plans of `source` can have, with the pins and bounds of `target`."""
    is_profile = isinstance(source, SensitivityProfile)
    model = ProfiledModel(source) if isinstance(source, SensitivityProfile) else source
    split = partition(model, target)
    linears = [linear for block in model.blocks for linear in block.linears]
    counted = [linear for linear in linears if linear.name not in split.skipped]
    n_all = sum(linear.n_weights for linear in counted)
    pinned = sum(
        split.pinned[linear.name] * linear.n_weights for linear in counted if linear.name in split.pinned
    )
    n_free = sum(linear.n_weights for linear in counted if linear.name not in split.pinned)
    lowest, highest = target.solver_bounds
    step = 1 / n_all
    if target.grid is not None:
        granularity: Granularity = "linear"  # parts of a profile may be single linears
        if not is_profile and not isinstance(allocator, str):
            granularity = allocator.granularity
        groups = build_groups(model, split, target.granularity or granularity, target)
        spacing = min((after - before for before, after in pairwise(target.levels)), default=1.0)
        step *= spacing * gcd(*(group.n_weights for group in groups))
    low = max((pinned + lowest * n_free) / n_all, step)
    return Reach(low, (pinned + highest * n_free) / n_all, step, target.grid is not None)
