"""What a backend asks for, and what is refused before anything is done."""

from collections.abc import Collection, Mapping

import torch
from torch import nn

from owl_compress.compression.contract import (
    AnyBackend,
    ApartSolver,
    Backend,
    BlockwiseSurvey,
    GradientReader,
)
from owl_compress.compression.gradient_memory import windows_of_gradients
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.plan import Plan
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError
from owl_compress.models.residence import refuse_streamed
from owl_compress.models.structure import ModelStructure
from owl_compress.progress import Progress
from owl_compress.walk.gradients import Salience, measure_salience


def wants_text(backend: Backend) -> bool:
    """Whether the backend looks at text, for statistics of inputs or for gradients."""
    return backend.statistic is not None or wants_gradients(backend)


def wants_gradients(backend: Backend) -> bool:
    """Whether gradients of the dense model are taken for the backend."""
    return isinstance(backend, GradientReader) and backend.reads_gradients


def solves_apart(backend: AnyBackend) -> bool:
    """Whether what becomes of linears that share an input depends on no other linear of the block."""
    return isinstance(backend, ApartSolver) and backend.solves_groups_apart


def check_unit(plan: Plan, backend: AnyBackend) -> None:
    """Refuse a plan that counts in another unit than the backend.

    Raises:
        RequestError: see above.
    """
    if plan.unit is not backend.unit:
        raise RequestError(
            f"backend {backend.name!r} carries out budgets in {backend.unit}, the plan is in {plan.unit}: "
            "choose another backend"
        )


def check_takes_budgets(backend: Backend) -> None:
    """Refuse a backend that makes budgets of its own of those that it is given.

    Raises:
        RequestError: it does, see `Survey.own_division`.
    """
    if backend.survey is not None and (why := backend.survey.own_division) is not None:
        raise RequestError(f"backend {backend.name!r} {why}")


def check_has_text(backend: Backend, calibration: TokenWindows | None) -> None:
    """Refuse to go on without text for a backend that looks at some.

    Raises:
        RequestError: see above.
    """
    if calibration is None and wants_text(backend):
        raise RequestError(f"backend {backend.name!r} needs calibration text: give --calib")


def check_request(
    plan: Plan, backend: Backend, calibration: TokenWindows | None, structure: ModelStructure
) -> None:
    """Refuse a plan that is not of this model or not for this backend, or text that is missing.

    Raises:
        RequestError: see above.
    """
    name = backend.name
    plan.check_fits(structure.linear_sizes)
    check_unit(plan, backend)
    check_has_text(backend, calibration)
    if plan.grid is not None and plan.unit is Unit.WIDTH:
        raise RequestError(
            f"backend {name!r} rounds widths itself, which leaves the grid of the plan: give a plan without"
        )
    if plan.grid is not None and backend.survey is not None:
        raise RequestError(
            f"backend {name!r} is to compare weights across the model, which leaves the grid of the plan: "
            "use --scope row or linear, or a plan without a grid"
        )


def check_in_memory(model: nn.Module, backend: Backend) -> None:
    """Refuse what needs the weights of all blocks at once, of a model that has them on disk.

    Raises:
        RequestError: blocks are to be compared with each other, or gradients taken.
    """
    if backend.survey is not None and not isinstance(backend.survey, BlockwiseSurvey):
        refuse_streamed(model, f"a comparison across the model (backend {backend.name!r})")
    if wants_gradients(backend):
        refuse_streamed(model, f"gradients of the whole model (backend {backend.name!r})")


def salience_for(
    backend: Backend,
    model: nn.Module,
    structure: ModelStructure,
    calibration: TokenWindows | None,
    names: Collection[str],
    *,
    device: torch.device,
    batch_size: int,
    progress: Progress,
) -> Mapping[str, Salience]:
    """Gradients of the dense model, summed up by linear of these names; nothing for who wants none."""
    if calibration is None or not isinstance(backend, GradientReader) or not backend.reads_gradients:
        return {}
    return measure_salience(
        model,
        structure,
        windows_of_gradients(backend, calibration),
        names=names,
        device=device,
        batch_size=batch_size,
        progress=progress,
    )
