"""Pictures of what was measured, allocated and compressed."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from owl_compress.cli import options
from owl_compress.cli.console import Output
from owl_compress.documents.compared import is_comparison, read_comparison
from owl_compress.documents.disk import check_output_file
from owl_compress.documents.kinds import read_document
from owl_compress.documents.outputs import PICTURE
from owl_compress.documents.plan import Plan
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.result import Result
from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.errors import RequestError, nearest

if TYPE_CHECKING:  # a refusal must not wait for matplotlib
    from owl_compress.pages.chart import Budgets

Measured = ImportanceReport | SensitivityProfile
Budgeted = Plan | Result

_BESIDE_WEIGHTS = ("sensitivity.json", "report.json", "plan.json")
_METRIC = "lod@5"
_INCHES = 9.0
"""Width of the picture of a comparison."""


def chart(
    files: Annotated[
        list[Path],
        options.path_argument(
            "FILES",
            "Reports, profiles, plans, results, or a folder that compress, run or compare wrote.",
        ),
    ],
    out: options.OutPicture,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Which importance to draw; default that of the plan, or lod@5. Of a comparison: "
            "which of its figures; default the perplexity."
        ),
    ] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Draw importance or damage and the budget of every block; of a comparison, quality against budget."""
    if out.suffix.lower() != ".png":
        raise RequestError(f"--out {out} is no name of a picture: charts are PNG, name it {out.stem}.png")
    check_output_file(out, inputs=files, kind=PICTURE)
    if any(map(is_comparison, files)):
        _draw_comparison(files, out, metric)
    else:
        _draw_documents(files, out, metric)
    output = Output(as_json=as_json, quiet=quiet)
    output.answer({"chart": str(out)})
    output.say(f"wrote {out}")


def _draw_comparison(files: Sequence[Path], out: Path, figure: str | None) -> None:
    from owl_compress.pages.comparison_pictures import quality_picture
    from owl_compress.pages.drawing import write_png

    if len(files) > 1:
        raise RequestError(f"a comparison is drawn alone: name one of the {len(files)} files")
    comparison = read_comparison(files[0])
    picture = quality_picture(comparison.rows, comparison.baseline, figure)
    write_png(picture.draw(_INCHES), out)


def _draw_documents(files: Sequence[Path], out: Path, metric: str | None) -> None:
    found = [(path, read_document(path)) for file in files for path in _files_of(file)]
    measured = [document for _, document in found if isinstance(document, Measured)]
    _check_one(measured)
    budgeted = [(path, document) for path, document in found if isinstance(document, Budgeted)]
    budgets = _budgets(budgeted)
    if measured and isinstance(measured[0], SensitivityProfile):
        if metric is not None:
            raise RequestError(f"--metric {metric} is drawn from a report, not from a profile: drop it")
        from owl_compress.pages.damage_chart import draw_damage

        draw_damage(out, measured[0], budgets)
    else:
        from owl_compress.pages.chart import draw

        report = next((one for one in measured if isinstance(one, ImportanceReport)), None)
        draw(out, report, budgets, _metric(report, metric, [document for _, document in budgeted]))


def _files_of(path: Path) -> list[Path]:
    """The file, or what a folder of ours has to draw: what its plan was made from, and the plan."""
    if not path.is_dir():
        return [path]
    found = [path / name for name in _BESIDE_WEIGHTS if (path / name).is_file()]
    if not found:
        raise RequestError(f"{path} holds no {' or '.join(_BESIDE_WEIGHTS)}: name a report, plan or result")
    has_profile = found[0].name == _BESIDE_WEIGHTS[0]
    return [one for one in found if not (has_profile and one.name == _BESIDE_WEIGHTS[1])]


def _check_one(measured: Sequence[Measured]) -> None:
    """Refuse two importances, or damages, of blocks on one chart."""
    n_profiles = sum(isinstance(document, SensitivityProfile) for document in measured)
    n_reports = len(measured) - n_profiles
    if n_profiles and n_reports:
        raise RequestError("a report and a sensitivity profile do not fit on one chart: name one of them")
    if len(measured) > 1:
        kinds = f"{n_profiles} sensitivity profiles" if n_profiles else f"{n_reports} reports"
        raise RequestError(f"{kinds} do not fit on one chart: name one, and plans made from it")


def _budgets(found: Sequence[tuple[Path, Budgeted]]) -> "list[Budgets]":
    """What plans and results say of every block, each under a name that tells it from the others."""
    from owl_compress.pages.chart import Budgets

    budgets = [Budgets.of(document) for _, document in found]
    names = [one.label for one in budgets]
    if len(set(names)) == len(names):
        return budgets
    return [one.called(str(path)) for one, (path, _) in zip(budgets, found, strict=True)]


def _metric(report: ImportanceReport | None, asked: str | None, documents: Sequence[Budgeted]) -> str:
    """The metric to draw: the one that was asked for, or the one that a plan was made from."""
    if report is None:
        if asked is not None:
            raise RequestError(
                f"--metric {asked} is drawn from a report: name one beside the plan, or drop it"
            )
        return _METRIC
    known = list(report.blocks[0].metrics)
    used = [
        document.allocator.parameters.get("metric") for document in documents if isinstance(document, Plan)
    ]
    wanted = [asked] if asked else [*used, _METRIC, *known]
    for name in wanted:
        if name in known:
            return str(name)
    raise RequestError(f"the report has no metric {asked!r}: {nearest(asked or '', known)}")
