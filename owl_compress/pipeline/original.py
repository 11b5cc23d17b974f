"""The dense model that a folder of ours was made from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from owl_compress.arguments import checked
from owl_compress.checkpoints.loading import BUILTIN, BUILTIN_PACKAGE, LoadedModel
from owl_compress.documents.paths import given_path
from owl_compress.documents.result import Result
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError
from owl_compress.models.state import n_parameters
from owl_compress.pipeline.stages import load


@dataclass(frozen=True)
class Original:
    """A dense model as result.json names it, and the parameters that it had."""

    source: str
    revision: str | None
    n_params: int

    def load(self, **options: Any) -> Any:
        """The model; `options` as for `owl_compress.load`.

        Raises:
            RequestError: it cannot be loaded, or the name means another model by now, or here.
        """
        return self.load_whole(**options).model

    def load_whole(self, **options: Any) -> LoadedModel:
        """The model with its tokenizer; see `load`."""
        dense = load(self.source, revision=self.revision, **options)
        if n_parameters(dense.model) != self.n_params:
            raise RequestError(
                f"{self.source} has {n_parameters(dense.model):,} parameters, and {self.n_params:,} are what "
                "it had then: name it by --against"
            )
        return dense


@checked
def original_of(folder: Path | str) -> Original | None:
    """The model that a folder of ours with heads or channels removed was made from; None for any other.

    Raises:
        RequestError: a result.json that cannot be read.
    """
    result = _result_in(folder)
    if result is None or all(step.unit is not Unit.WIDTH for step in result.as_earlier):
        return None
    return _first_model(result, folder)


@checked
def origin_of(folder: Path | str) -> Original | None:
    """The model that any folder of ours was made from; None where nothing says that.

    Raises:
        RequestError: a result.json that cannot be read.
    """
    result = _result_in(folder)
    return None if result is None else _first_model(result, folder)


def _result_in(folder: Path | str) -> Result | None:
    path = given_path(folder) / "result.json"
    return Result.read(path) if path.is_file() else None


def _first_model(result: Result, folder: Path | str) -> Original | None:
    first = result.as_earlier[0]  # of several compressions; the model before it is the dense one
    if first.model == str(folder):
        return None
    if (first.revision or "").startswith(f"{BUILTIN_PACKAGE} "):
        return Original(BUILTIN, None, first.n_params_before)
    return Original(first.model, first.revision, first.n_params_before)
