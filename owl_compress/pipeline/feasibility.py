"""What cannot be met, and what it will take: told from shapes alone before anything is compressed."""

from dataclasses import dataclass

from owl_compress.allocators import EQUAL_SHARES, allocate
from owl_compress.compression.contract import PlanChecker
from owl_compress.compression.driver import check_unit
from owl_compress.compression.gradient_memory import settled_backend
from owl_compress.compression.prediction import predict
from owl_compress.documents.measurements import Prediction
from owl_compress.documents.plan import Plan
from owl_compress.importance.estimator import outline
from owl_compress.pipeline.session import Session


def check_request(session: Session) -> None:
    """Refuse a budget that the backend of the request cannot meet on this model, whoever divides it.

    Every allocator spends the same budget, so an equal share for every block stands for all of them, as far
    as the backend says that it does.

    Raises:
        RequestError: what the backend refuses, or the target itself.
    """
    backend, target = session.request.backend, session.request.target
    if target and isinstance(backend, PlanChecker) and backend.equal_shares_stand_for_all:
        report = outline(session.loaded.model, session.identity, session.structure)
        check_plan(session, allocate(report, EQUAL_SHARES, target))


def check_plan(session: Session, plan: Plan) -> None:
    """Refuse a plan that the backend of the request cannot carry out on this model.

    Raises:
        RequestError: what the backend refuses.
    """
    backend = session.request.backend
    if isinstance(backend, PlanChecker):
        backend.check_plan(session.structure, plan)


@dataclass(frozen=True)
class Forecast:
    """What a compression will need and leave; `notes` say what the backend settled by the memory there is."""

    prediction: Prediction
    notes: tuple[str, ...]


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
    return Forecast(prediction, notes)
