"""Whether a profile can be measured with a backend, and whether one that is there is of what is asked for."""

from pathlib import PurePath

from owl_compress.compression.account import method_record, settled_options
from owl_compress.compression.contract import AnyBackend, Backend, CheckpointBackend
from owl_compress.compression.demands import check_takes_budgets
from owl_compress.documents.provenance import ModelIdentity
from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.documents.units import KeptOfGrid, Unit
from owl_compress.errors import RequestError
from owl_compress.models.structure import ModelStructure
from owl_compress.pipeline.methods import BACKENDS

_AGAIN = "ask for a budget of that kind, or measure another profile"


def by_block(
    backend: AnyBackend,
    remedy: str = "measure a profile with {able}, allocate from it, and use compress --plan",
) -> Backend:
    """The backend, if it can compress a part of a model alone; `remedy` is what to do with those that can.

    Raises:
        RequestError: it cannot; those of the same unit that can are named, or the option that forbids it.
    """
    if not isinstance(backend, CheckpointBackend):
        check_takes_budgets(backend)
        return backend
    others = [name for name in BACKENDS.names() if BACKENDS.load(name).unit is backend.unit]
    able = [name for name in others if hasattr(BACKENDS.load(name), Backend.compress_block_.__name__)]
    raise RequestError(
        f"backend {backend.name!r} writes whole checkpoints, so it compresses no part alone: "
        f"{remedy.format(able=' or '.join(map(repr, able)))}"
    )


def check_profile(
    known: SensitivityProfile, backend: AnyBackend, unit: Unit, grid: KeptOfGrid | None
) -> None:
    """Refuse a profile of another backend, with other options, or of another kind of budget.

    What the backend leaves open until it sees the model may be as it was there.

    Raises:
        RequestError: naming what differs.
    """
    here = method_record(backend)
    if known.unit is not unit:
        raise RequestError(f"the profile is of {known.unit}, and the budget of {unit}: {_AGAIN}")
    if known.grid != grid:
        raise RequestError(
            f"the profile is {_of_grid(known.grid)}, and the budget {_of_grid(grid)}: {_AGAIN}"
        )
    if known.backend.name != here.name:
        raise RequestError(
            f"the profile is of backend {known.backend.name!r}, not of {here.name!r}: name that one, or "
            "measure another profile"
        )
    for name, value in settled_options(backend).items():
        before = known.backend.parameters.get(name)
        if value != before:
            raise RequestError(
                f"the profile is of backend {here.name!r} with {name} {before}, here it is {value}: give the "
                "same option, or measure another profile"
            )


def _of_grid(grid: KeptOfGrid | None) -> str:
    return "off a grid" if grid is None else f"of N:{grid.kept_of}"


def check_model(known: SensitivityProfile, identity: ModelIdentity, structure: ModelStructure) -> None:
    """Refuse a profile of another model; a folder that was moved keeps its name, and is the same.

    Raises:
        RequestError: naming what differs.
    """
    before = known.model
    same_name = PurePath(before.id).name == PurePath(identity.id).name
    revisions = {before.revision, identity.revision} - {None}
    if not same_name or before.family != identity.family or len(revisions) > 1:
        raise RequestError(
            f"the profile is of {_told(before)}, and the model is {_told(identity)}: measure a profile of it"
        )
    here = {linear.name: linear.shape for linear in structure.linears}
    there = {linear.name: linear.shape for linear in known.linears}
    if here != there:
        name = next(name for name in {**there, **here} if here.get(name) != there.get(name))
        raise RequestError(
            f"the profile is of another model: {name} is {_shape(there.get(name))} there and "
            f"{_shape(here.get(name))} here: measure a profile of this one"
        )


def _told(identity: ModelIdentity) -> str:
    revision = f" at {identity.revision}" if identity.revision else ""
    return f"{identity.id}{revision} ({identity.family})"


def _shape(shape: tuple[int, int] | None) -> str:
    return "missing" if shape is None else f"{shape[0]} x {shape[1]}"
