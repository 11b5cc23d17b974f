"""A run that is asked to go on, and is done already: told from the output that it left."""

import json
from dataclasses import dataclass
from pathlib import Path

from owl_compress.documents.plan import Plan
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.result import Result
from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.errors import RequestError
from owl_compress.pipeline.beside import is_same
from owl_compress.pipeline.request import Request
from owl_compress.pipeline.unfinished import forget

_NAMES = ("model", "calib", "data", "damage-data")
"""Options that name files or what lies on the hub: the same one may be named in two ways."""
_FREE = (
    "plan", "profile", "cost-table", "task-file", "task-path", "offload", "activations", "device",
    "batch-size",
)  # fmt: skip
"""Options that are looked at otherwise, or say how it is done rather than what."""


@dataclass(frozen=True)
class Outcome:
    """What a run made: everything but the model, which was compressed in place."""

    report: ImportanceReport | None
    plan: Plan
    result: Result
    profile: SensitivityProfile | None = None


def finished_before(request: Request, out: Path) -> Outcome | None:
    """What lies in `out`, where that is the outcome of the request; None where nothing is finished there.

    Raises:
        RequestError: something is, and of another request; the first option that differs is named.
    """
    if not (out / "result.json").is_file():
        return None
    result, plan = Result.read(out / "result.json"), Plan.read(out / "plan.json")
    if request.plan is not None and request.plan.fingerprint != result.plan:
        raise RequestError(f"{out} is finished, and by another plan than {request.recipe.plan}: {_REMEDY}")
    if (out / "recipe.yaml").is_file():
        _check_same(request.recipe, Recipe.read(out / "recipe.yaml"), out)
    forget(out)  # killed between the two, a run leaves both its output and what was kept of it
    report, profile = out / "report.json", out / "sensitivity.json"
    return Outcome(
        ImportanceReport.read(report) if report.is_file() else None,
        plan,
        result,
        SensitivityProfile.read(profile) if profile.is_file() else None,
    )


_REMEDY = "name another folder, or replace it with --overwrite in the place of --resume"


def _check_same(asked: Recipe, done: Recipe, out: Path) -> None:
    """Refuse to take one recipe for another; what is left open in `asked` may be anything in `done`."""
    there = done.settings
    for name, value in asked.settings.items():
        if name in _FREE or value == "auto":
            continue
        found = there.get(name)
        if found in (value, _read(value)) or (name in _NAMES and is_same(str(found), str(value))):
            continue
        raise RequestError(f"{out} is finished, with --{name} {found}, and {value} is asked for: {_REMEDY}")


def _read(value: object) -> object:
    """A value as a recipe that was written holds it: what was typed is still text in the request."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        return value
