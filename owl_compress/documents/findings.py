"""All that is known of one compression: the documents that were named, or those of a folder of ours."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from owl_compress.documents.kinds import AnyDocument, read_document
from owl_compress.documents.plan import Plan
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.result import Result
from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.documents.strict_json import read_text
from owl_compress.documents.tuning import TuningDocument
from owl_compress.errors import RequestError

T = TypeVar("T")
Budgeted = TypeVar("Budgeted", Plan, Result)

_DOCUMENTS = (
    "report.json", "sensitivity.json", "plan.json", "plan-*.json", "result.json", "result-*.json",
    "tuning.json",
)  # fmt: skip
_RECIPE = "recipe.yaml"
_OF_CARD = re.compile(r"(?:plan|result)-(.+)")


@dataclass(frozen=True)
class Found:
    """A document, and the file that it was read from."""

    path: Path
    document: AnyDocument


@dataclass(frozen=True)
class Findings:
    """What was measured, planned and done.

    Attributes:
        report, profile: what budgets are made from; None where there is none.
        plans: by a name that tells each from the others.
        results: likewise; a result has the name of the plan that it carried out, where that is here.
        tuning: what was tried before a plan was taken; None where that is not here.
        recipe: that does it again, as it is written; None where there is none.
        files: everything above but the recipe, with where it was read.
    """

    report: ImportanceReport | None
    profile: SensitivityProfile | None
    plans: dict[str, Plan]
    results: dict[str, Result]
    tuning: TuningDocument | None
    recipe: str | None
    files: tuple[Found, ...]

    @property
    def model(self) -> str:
        """The model that it is all about; empty where only plans are there, which name none."""
        named = (self.report, self.profile, *self.results.values(), self.tuning)
        return next((one.model.id for one in named if one), "")

    @property
    def blocks(self) -> tuple[str, ...]:
        """The names of the blocks, in their order."""
        if self.report:
            return tuple(block.name for block in self.report.blocks)
        if self.profile:
            return self.profile.blocks
        return tuple(dict.fromkeys(one.block for document in self.budgeted for one in document.budgets))

    @property
    def budgeted(self) -> tuple[Plan | Result, ...]:
        """All that names budgets: plans, then results."""
        return (*self.plans.values(), *self.results.values())


def read_findings(paths: Sequence[Path]) -> Findings:
    """What the files say, and the documents in the folders.

    Raises:
        RequestError: a file is unreadable or of another kind, a folder holds nothing of ours, two reports,
            profiles or tunings are named, or documents are of different models.
    """
    found = tuple(Found(path, read_document(path)) for given in paths for path in _files_of(given))
    documents = [one.document for one in found]
    plans = _named([(one.path, one.document) for one in found if isinstance(one.document, Plan)])
    results = _named([(one.path, one.document) for one in found if isinstance(one.document, Result)])
    _check_models(found)
    recipes = [path / _RECIPE for path in paths if (path / _RECIPE).is_file()]
    return Findings(
        report=_one([one for one in documents if isinstance(one, ImportanceReport)], "reports"),
        profile=_one(
            [one for one in documents if isinstance(one, SensitivityProfile)], "sensitivity profiles"
        ),
        plans=plans,
        results=_called_as_plans(results, plans),
        tuning=_one([one for one in documents if isinstance(one, TuningDocument)], "tunings"),
        recipe=_text(recipes[0]) if len(recipes) == 1 else None,
        files=found,
    )


def _files_of(path: Path) -> list[Path]:
    """The file, or the documents in a folder of ours."""
    if not path.is_dir():
        return [path]
    files = [file for pattern in _DOCUMENTS for file in sorted(path.glob(pattern)) if file.is_file()]
    if not files:
        raise RequestError(
            f"{path} holds nothing of ours: name a folder that run, compress, demo or compare wrote, or a "
            "report, profile, plan or result"
        )
    return files


def _one(documents: Sequence[T], what: str) -> T | None:
    if len(documents) > 1:
        raise RequestError(f"{len(documents)} {what} do not fit on one page: name one of them")
    return documents[0] if documents else None


def _named(found: Sequence[tuple[Path, Budgeted]]) -> dict[str, Budgeted]:
    """Each by the method that made it, or where several would have one name by the file."""
    names = [_method(document) for _, document in found]
    if len(set(names)) < len(names):
        cards = [_OF_CARD.fullmatch(path.stem) for path, _ in found]
        names = [card[1] if card else path.stem for card, (path, _) in zip(cards, found, strict=True)]
    if len(set(names)) < len(names):
        names = [str(path) for path, _ in found]
    return {name: document for name, (_, document) in zip(names, found, strict=True)}


def _method(document: Plan | Result) -> str:
    return document.allocator.name if isinstance(document, Plan) else document.backend.name


def _called_as_plans(results: dict[str, Result], plans: dict[str, Plan]) -> dict[str, Result]:
    names = {plan.fingerprint: name for name, plan in plans.items()}
    called = {names.get(result.plan, name): result for name, result in results.items()}
    return called if len(called) == len(results) else results


def _check_models(found: Iterable[Found]) -> None:
    """Refuse documents of models with other linears: names and sizes of shared linears have to agree."""
    first: tuple[Path, dict[str, int]] | None = None
    for one in found:
        if isinstance(one.document, TuningDocument):
            continue  # it names no linears
        sizes = _sizes(one.document)
        if first is None:
            first = one.path, sizes
            continue
        common = sizes.keys() & first[1].keys()
        off = next((name for name in sizes if name in common and sizes[name] != first[1][name]), None)
        if off or not common:
            what = f"{off} has other sizes in them" if off else "they have no linear in common"
            raise RequestError(
                f"{first[0]} and {one.path} are of different models: {what}; name files of one"
            )


def _sizes(document: ImportanceReport | SensitivityProfile | Plan | Result) -> dict[str, int]:
    """Number of weights by the name of the linear."""
    if isinstance(document, ImportanceReport):
        return {linear.name: linear.n_weights for block in document.blocks for linear in block.linears}
    if isinstance(document, SensitivityProfile):
        return dict(document.linear_sizes)
    return {budget.name: budget.n_weights for budget in document.budgets}


def _text(path: Path) -> str | None:
    """A recipe as it is written; it is shown, and nothing depends on it."""
    try:
        return read_text(path).strip()
    except (RequestError, ValueError):
        return None
