"""The folder of a recovered model: what was there, with what was learned, as exactly compressed as before."""

import shutil
from pathlib import Path

import torch
from torch import Tensor

from owl_compress.checkpoints.leftovers import carry_over
from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.checkpoints.saving import save_checkpoint
from owl_compress.checkpoints.stored_forms import StoredForm
from owl_compress.checkpoints.tensors import bytes_on_disk, tensor_from_checkpoint
from owl_compress.checkpoints.verification import verify
from owl_compress.documents.outputs import ADAPTER_FOLDER, DAMAGE_PICTURE
from owl_compress.documents.plan import Plan
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.result import Result
from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.errors import RequestError
from owl_compress.models.state import is_finite
from owl_compress.pipeline.folder import write_documents
from owl_compress.pipeline.stages import load
from owl_compress.recovery.contract import Trainee

_WRITTEN_ANEW = ("README.md", "recipe.yaml")
_DOCUMENTS = ("result.json", "plan.json", "report.json", "sensitivity.json", "tuning.json", DAMAGE_PICTURE)


def write_weights_beside(source: Path, folder: Path, trainee: Trainee) -> None:
    """Copy the files of `source` as they are, and put the adapter beside them.

    Raises:
        OSError: the disk is full.
    """
    for file in sorted(source.iterdir()):
        if file.is_file() and file.name not in _WRITTEN_ANEW:
            shutil.copyfile(file, folder / file.name)
    if trainee.write_adapter is not None:
        trainee.write_adapter(folder / ADAPTER_FOLDER)


def write_learned_weights(
    source: LoadedModel, folder: Path, form: StoredForm, learned: dict[str, Tensor]
) -> tuple[str, ...]:
    """Write the model in its `form` with the weights that were `learned`, each in the type that it had.

    Returns:
        Notes for the result.

    Raises:
        RequestError: a number that is none, or a weight that the form cannot hold.
    """
    parameters = dict(source.model.named_parameters())
    with torch.no_grad():
        for name, value in learned.items():
            if not is_finite(value):
                raise RequestError(f"{name} holds NaN or Inf after the training: lower --learning-rate")
            parameters[name].copy_(value.to(parameters[name].dtype))
    notes = save_checkpoint(source.model, source.tokenizer, folder, form)
    for name in _DOCUMENTS:
        path = Path(source.source) / name
        if path.is_file():
            shutil.copyfile(path, folder / name)
    return (*notes, *carry_over(source.leftovers, folder))


def check_as_compressed(before: Path, after: Path, plan: Plan, *, trust_remote_code: bool = False) -> None:
    """Count the saved tensors: what was zero is zero, and the plan is met as it was.

    Raises:
        RequestError: it is not; the training has broken what the compression did.
    """
    found = verify(after, trust_remote_code=trust_remote_code)
    if not found.ok:
        raise RequestError(
            f"the training broke the plan, and nothing was written: {found.violations[0].words}"
        )
    for budget in plan.budgets:
        if not budget.n_weights:
            continue
        old, new = (tensor_from_checkpoint(folder, budget.name) for folder in (before, after))
        risen = int(((old == 0) & (new != 0)).sum())
        if risen:
            raise RequestError(
                f"the training broke the pattern, and nothing was written: {risen:,} weights of "
                f"{budget.name} were zero and are not"
            )


def count_bytes(folder: Path) -> int:
    """Bytes of the weight files, an adapter's among them."""
    return bytes_on_disk(folder) + bytes_on_disk(folder / ADAPTER_FOLDER)


def write_recovered_documents(
    source: Path, out: Path, folder: Path, result: Result, plan: Plan, form: StoredForm, loaded: LoadedModel
) -> None:
    """Put result, plan, recipe and card into `folder`, which becomes `out`; the rest is there already."""
    recipe, made_from = _documents_of(source)
    recipe = recipe.seen_from(out) if recipe else None
    write_documents(folder, loaded, result, plan, form.describe(), report=made_from, recipe=recipe)


def check_source(source: Path, *, trust_remote_code: bool = False) -> None:
    """Refuse before the training what would be refused after it: broken documents, or weights off the plan.

    Raises:
        RequestError: with the first that is found.
    """
    _documents_of(source)
    found = verify(source, trust_remote_code=trust_remote_code)
    if not found.ok:
        raise RequestError(
            f"{source} is not as its plan says, so that no training can keep it so: compress again "
            f"({found.violations[0].words})"
        )


def _documents_of(source: Path) -> tuple[Recipe | None, SensitivityProfile | ImportanceReport | None]:
    """The recipe of a folder, and what its plan was made from, as far as they are there."""
    path = source / "recipe.yaml"
    recipe = Recipe.read(path) if path.is_file() else None
    if (source / "sensitivity.json").is_file():
        return recipe, SensitivityProfile.read(source / "sensitivity.json")
    if (source / "report.json").is_file():
        return recipe, ImportanceReport.read(source / "report.json")
    return recipe, None


def loaded_again(folder: Path, dtype: str, *, trust_remote_code: bool = False) -> LoadedModel:
    """The model as it lies in `folder`, whole in memory."""
    return load(folder, dtype=dtype, trust_remote_code=trust_remote_code, offload="none")
