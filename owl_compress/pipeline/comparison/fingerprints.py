"""What tells a cell from every other one: all that goes into it, so that a row that is there can be kept."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from owl_compress.documents.recipe import Recipe
from owl_compress.documents.versions import versions
from owl_compress.pipeline.comparison.cells import Cell
from owl_compress.pipeline.comparison.measures import Measures
from owl_compress.pipeline.comparison.texts import Texts
from owl_compress.pipeline.recipe_texts import calibration_options, evaluation_options
from owl_compress.pipeline.request import Request
from owl_compress.pipeline.scoring import tasks_of
from owl_compress.pipeline.session import looks_at_text

_NAMED_BY_CONTENT = {
    "model", "revision", "calib", "data", "damage_data", "plan", "profile", "cost_table", "task_file",
    "task_path", "device", "strict", "activations",
}  # fmt: skip
"""What of a recipe says where something lies, and not what it is."""


def fingerprint(cell: Cell, measures: Measures, texts: Texts) -> str:
    """sha256 over model, texts, settings, what is measured, the kind of device, and the versions that count.

    Raises:
        RequestError: a model or text that is not there.
    """
    content: dict[str, Any] = {
        "versions": {name: one for name, one in versions().items() if name != "python"},
        "measures": measures.content,
    }
    if cell.request is None:
        content |= {"settings": dict(cell.settings), "data": dict(measures.texts)}
    else:
        recipe = cell.request.recipe
        content |= {
            "model": texts.model(recipe),
            "device": cell.request.device.type,
            "data": {name: texts.digest(texts.evaluation(one)) for name, one in evaluated(recipe, measures)},
        }
        if tasks_of(recipe) is not None:
            content["tasks"] = _of_tasks(recipe)
        content |= {"dense": _plain(cell.settings)} if cell.is_dense else _compression(cell.request, texts)
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def evaluated(recipe: Recipe, measures: Measures) -> list[tuple[str, Any]]:
    """The name of each text, and the windows of it that a recipe asks for."""
    found = []
    for name, source in measures.texts.items():
        options = evaluation_options(recipe.model_copy(update={"data": source}))
        found.append((name, options))
    return found


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: one for name, one in settings.items() if name.replace("-", "_") not in _NAMED_BY_CONTENT}


def _of_tasks(recipe: Recipe) -> dict[str, Any]:
    """Task files by what is in them, and who scores; what named tasks hold goes with its version."""
    files = [*recipe.task_file, *([recipe.task_path] if recipe.task_path else [])]
    return {"files": [_digest(Path(one)) for one in files], "lm_eval": _version_of("lm_eval")}


def _digest(path: Path) -> str:
    """sha256 of a file, or of all files below a folder, with their names; of what is not there, its name."""
    whole = hashlib.sha256(path.name.encode())
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        with suppress(OSError):
            whole.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}".encode())
    return whole.hexdigest()


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _compression(request: Request, texts: Texts) -> dict[str, Any]:
    recipe = request.recipe
    content: dict[str, Any] = {
        "settings": recipe.model_dump(mode="json", exclude=_NAMED_BY_CONTENT)
        | {"statistics": request.statistics},
        "backend": asdict(request.backend),
        "allocator": asdict(request.allocator) if request.allocator else None,
    }
    if looks_at_text(request):
        options = calibration_options(recipe)
        content["calib"] = texts.digest(texts.calibration(options))
        if request.measures_damage and recipe.damage_data is not None:
            content["damage"] = texts.digest(
                texts.calibration(
                    calibration_options(recipe.model_copy(update={"calib": recipe.damage_data}))
                )
            )
    if request.plan is not None:
        content["plan"] = request.plan.fingerprint
    if request.profile is not None:
        content["profile"] = request.profile.fingerprint
    if recipe.cost_table is not None:
        content["cost_table"] = hashlib.sha256(Path(recipe.cost_table).read_bytes()).hexdigest()
    return content
