"""What plans are predicted to cost, in the unit of the limit that a request sets."""

from collections.abc import Callable
from dataclasses import dataclass
from math import floor, fsum
from typing import Protocol

from pydantic import JsonValue

from owl_compress.allocators import Source
from owl_compress.allocators.groups import partition
from owl_compress.checkpoints.leftovers import carried_headers
from owl_compress.checkpoints.stored_forms import SizedForm
from owl_compress.checkpoints.stored_size import WeightFiles, sizer_of_weights
from owl_compress.compression.contract import Quantizer
from owl_compress.documents.plan import LinearBudget, Plan
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError
from owl_compress.importance.estimator import outline
from owl_compress.pipeline.limits import SizeLimit, TimeLimit
from owl_compress.pipeline.session import Session
from owl_compress.pipeline.speed import time_price

_SLACK = 1e-12
"""Relative rounding of sums of budgets that is allowed to whoever removes heads and channels."""


class Price(Protocol):
    """What plans are predicted to cost, and how much they may."""

    @property
    def limit(self) -> float:
        """The most that a plan may cost."""
        ...

    def known(self, source: Source) -> Source:
        """`source` without levels of a profile whose cost is not really known."""
        ...

    def of(self, plan: Plan) -> float:
        """What `plan` costs: more, or as much, where budgets rise."""
        ...

    def check(self, plan: Plan) -> None:
        """Refuse a plan whose cost is not really known, whatever was said of it while plans were compared."""
        ...

    def out_of_reach(self, least: float) -> RequestError:
        """The refusal of a limit that is below the `least` that any plan costs."""
        ...

    def record(self, cost: float) -> dict[str, JsonValue]:
        """What a plan that costs so much says of that, among the parameters of its allocator."""
        ...


def price_of(session: Session) -> Price | None:
    """The price that the request of `session` limits; None if it asks for an average.

    Raises:
        RequestError: a form of storage that tells no size beforehand.
    """
    match session.request.limit:
        case SizeLimit() as limit:
            return SizePrice(limit.n_bytes, _size_of_plans(session))
        case TimeLimit() as limit:
            return time_price(session, limit)
    return None


@dataclass(frozen=True)
class SizePrice:
    """Bytes of the weight files. Where widths are still to be rounded down, an upper bound of them."""

    limit: int
    n_bytes: Callable[[Plan], int]

    def known(self, source: Source) -> Source:
        """All of it."""
        return source

    def of(self, plan: Plan) -> int:
        """Bytes of what carrying out `plan` writes, at most."""
        return self.n_bytes(plan)

    def check(self, plan: Plan) -> None:
        """The bytes of every plan are known."""

    def out_of_reach(self, least: float) -> RequestError:
        """With the smallest size that there is."""
        return RequestError(
            f"size {self.limit:,} bytes cannot be met: the smallest that these options allow is {least:,.0f} "
            "bytes, for all weight files with embeddings and norms: ask for that, or let --bit-choices, "
            "--low, --group-size or --round-to go lower"
        )

    def record(self, cost: float) -> dict[str, JsonValue]:
        """The bytes that were asked for, and those that are predicted."""
        return {"asked_size_bytes": self.limit, "predicted_size_bytes": round(cost)}


def _size_of_plans(session: Session) -> Callable[[Plan], int]:
    form = session.form
    if session.writes_by_itself or not isinstance(form, SizedForm):
        what = f"backend {session.recipe.backend!r}" if session.writes_by_itself else f"form {form.name!r}"
        raise RequestError(
            f"{what} does not tell the size of its files beforehand: ask for an average instead"
        )
    if session.request.unit is Unit.BITS:
        return _size_of_bits(session, form)
    return _size_of_widths(session)


def _size_of_bits(session: Session, form: SizedForm) -> Callable[[Plan], int]:
    """The very bytes, from the bits of every linear."""
    backend, target, model = session.request.backend, session.request.target, session.loaded.model
    if not isinstance(backend, Quantizer) or target is None:
        raise TypeError("budgets in bits are carried out by a quantizer, to a target")
    skipped = partition(outline(model, session.identity, session.structure), target).skipped
    names = [linear.name for linear in session.structure.linears if linear.name not in skipped]
    files = form.sizer(model, names, backend.code_format)

    def n_bytes(plan: Plan) -> int:
        bits = {budget.name: round(budget.value) for budget in plan.budgets}
        return _carrying(session, files(bits)).n_bytes

    return n_bytes


def _size_of_widths(session: Session) -> Callable[[Plan], int]:
    """The bytes of the model as it is, less the weights that go: biases that go with them are not counted.

    Names are those of the form that has the longer ones: which it will be, widths decide.
    """
    model = session.loaded.model
    whole = max(
        _carrying(session, sizer_of_weights(model, original_names=original)({})).n_bytes
        for original in (True, False)
    )
    element_bytes = {
        linear.name: linear.module.get_parameter("weight").element_size()
        for linear in session.structure.linears
    }

    def n_bytes(plan: Plan) -> int:
        return whole - min(element_bytes.values()) * _n_removed(plan.budgets)

    return n_bytes


def _n_removed(budgets: tuple[LinearBudget, ...]) -> int:
    """Weights that go at least."""
    kept = fsum(budget.value * budget.n_weights for budget in budgets) * (1 + _SLACK)
    return sum(budget.n_weights for budget in budgets) - floor(kept)


def _carrying(session: Session, files: WeightFiles) -> WeightFiles:
    """With the tensors that the model does not load, where they are carried over."""
    export, leftovers = session.request.export, session.loaded.leftovers
    if leftovers is None or (export is not None and export.is_asked_for):
        return files
    held: set[str] = {name for headers in files.shards.values() for name in headers}
    return files.carrying(carried_headers(leftovers, held))
