"""What a folder is timed against: a model that was named, or the one that the folder was made from."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from owl_compress.cli.console import Output
from owl_compress.device import DTYPES
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError

if TYPE_CHECKING:  # --help must not wait for torch
    from owl_compress.checkpoints.loading import LoadedModel


def dense_model(
    model: str, against: str | None, load: "Callable[..., LoadedModel]", dtype: str, output: Output
) -> dict[str, Any]:
    """The dense model to time in turn with `model`, by its name, in the same `dtype`; empty if none.

    Raises:
        RequestError: the model named by --against cannot be loaded.
    """
    load_alike = partial(load, dtype=dtype if dtype in DTYPES else "auto")
    if against is not None:
        output.say(f"loading {against}")
        return {against: load_alike(against).model}
    try:
        return _original(model, load_alike, output)
    except RequestError as error:
        output.say(
            f"only {model} is timed, without the model it was made from ({error}); --against names one"
        )
        return {}


def _original(model: str, load: "Callable[..., LoadedModel]", output: Output) -> dict[str, Any]:
    """The model that the folder `model` was made from, by its name; empty if that cannot be asked."""
    from owl_compress.models.state import n_parameters

    made_from = _made_from(Path(model))
    if made_from is None or made_from.source == model:
        return {}
    output.say(f"loading {made_from.source}, which {model} was made from")
    dense = load(made_from.source, revision=made_from.revision).model
    if n_parameters(dense) != made_from.n_params:  # the name may mean something else by now, or here
        raise RequestError(
            f"{made_from.source} has {n_parameters(dense):,} parameters, and {made_from.n_params:,} are what "
            "it had then: name it by --against"
        )
    return {made_from.source: dense}


@dataclass(frozen=True)
class _MadeFrom:
    """A dense model as result.json names it, and the parameters that it had."""

    source: str
    revision: str | None
    n_params: int


def _made_from(folder: Path) -> _MadeFrom | None:
    """The model that a folder of ours with heads or channels removed was made from; None for any other."""
    from owl_compress.checkpoints.loading import BUILTIN, BUILTIN_PACKAGE
    from owl_compress.documents.result import Result

    if not (folder / "result.json").is_file():
        return None
    result = Result.read(folder / "result.json")
    steps = result.as_earlier
    if all(step.unit is not Unit.WIDTH for step in steps):
        return None
    first = steps[0]  # of several compressions; the model before it is the dense one
    if (first.revision or "").startswith(f"{BUILTIN_PACKAGE} "):
        return _MadeFrom(BUILTIN, None, first.n_params_before)
    return _MadeFrom(first.model, first.revision, first.n_params_before)
