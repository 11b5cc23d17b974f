"""What cannot be met, and what it will take: told from shapes alone before anything is compressed."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

from owl_compress.allocators import EQUAL_SHARES, allocate
from owl_compress.allocators.groups import partition
from owl_compress.arguments import checked
from owl_compress.compression.contract import FinishChecker, PlanChecker, Quantizer
from owl_compress.compression.demands import check_unit
from owl_compress.compression.gradient_memory import settled_backend
from owl_compress.compression.prediction import predict
from owl_compress.documents.measurements import Prediction, StageNeeds
from owl_compress.documents.plan import Plan
from owl_compress.documents.units import Grid, KeptOfGrid
from owl_compress.errors import RequestError
from owl_compress.importance.estimator import outline
from owl_compress.pipeline.dividing import divide
from owl_compress.pipeline.needs import needs_of_session
from owl_compress.pipeline.session import Session


def check_request(session: Session) -> None:
    """Refuse a budget that the backend of the request cannot meet on this model, whoever divides it.

    Every allocator spends the same budget, so an equal share for every block stands for all of them, as far
    as the backend says that it does.

    Raises:
        RequestError: what the backend refuses, or the target itself; or plans are to be tried out on a
            copy of a model that cannot be copied.
    """
    if session.request.measures_damage:
        session.check_copyable()
    backend, target = session.request.backend, session.request.target
    if target is None:
        return
    report = outline(session.loaded.model, session.identity, session.structure)
    skipped = partition(report, target).skipped
    names = [linear.name for linear in session.structure.linears if linear.name not in skipped]
    _check_groups(session, names, target.grid)
    if isinstance(backend, PlanChecker) and not backend.equal_shares_stand_for_all:
        return
    if session.request.limit is not None:
        divide(session, report, EQUAL_SHARES)
    elif isinstance(backend, PlanChecker):
        check_plan(session, allocate(report, EQUAL_SHARES, target))


def check_plan(session: Session, plan: Plan) -> None:
    """Refuse a plan that the backend of the request cannot carry out on this model.

    Raises:
        RequestError: what the backend refuses.
    """
    backend = session.request.backend
    _check_groups(session, [budget.name for budget in plan.budgets], plan.grid)
    if isinstance(backend, PlanChecker):
        backend.check_plan(session.structure, plan)
    if isinstance(backend, FinishChecker):
        backend.check_finish(session.loaded.model, session.structure, plan)


def _check_groups(session: Session, names: Sequence[str], grid: Grid | None) -> None:
    """Refuse groups, of an N:M pattern or of shared scales, that do not divide the inputs of a linear."""
    backend = session.request.backend
    sizes: list[tuple[int, str, str]] = []  # each with what is to be chosen, and how else it can be mended
    if isinstance(grid, KeptOfGrid):
        sizes.append((grid.kept_of, "another M", ""))
    if isinstance(backend, Quantizer) and backend.code_format.group_size is not None:
        sizes.append(
            (backend.code_format.group_size, "another --group-size", ", or none for one scale per row,")
        )
    widths = {linear.name: linear.shape[1] for linear in session.structure.linears}
    for size, choice, besides in sizes:
        if uneven := [name for name in names if widths[name] % size]:
            first, further = uneven[0], len(uneven) - 1
            others = f" ({further} more linears are like it)" if further else ""
            divides_all = gcd(size, *map(widths.__getitem__, names))
            such = f" such as {divides_all}" if divides_all > 1 else ""
            raise RequestError(
                f"{first} has {widths[first]} inputs, which groups of {size} do not divide{others}: choose "
                f"{choice}{such}{besides} or --skip {'them' if further else first}"
            )


@dataclass(frozen=True)
class Forecast:
    """What a compression will need and leave; `notes` say what the backend settled by the memory there is.

    `stages` are the needs of all that a run does.
    """

    prediction: Prediction
    notes: tuple[str, ...]
    stages: tuple[StageNeeds, ...] = ()


@checked
def forecast(session: Session, plan: Plan) -> Forecast:
    """Predict the size of the checkpoint and the memory that carrying out `plan` takes.

    Raises:
        RequestError: a plan of another model or unit.
    """
    check_unit(plan, session.request.backend)
    request, model = session.request, session.loaded.model
    batch_size = session.recipe.batch_size
    backend, notes = settled_backend(
        request.backend, model, session.structure, session.calibration, batch_size, request.device
    )
    prediction = predict(
        model,
        session.structure,
        plan,
        backend,
        session.calibration,
        batch_size,
        is_packed=request.keeps_codes,
    )
    stages = () if session.writes_by_itself else needs_of_session(session, prediction.checkpoint_bytes)
    return Forecast(prediction, notes, stages)
