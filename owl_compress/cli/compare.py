"""Comparison: every cell of a grid carried out, each a row, with what seeds do to it."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from owl_compress.cli import options
from owl_compress.cli.comparison_sheets import costs_sheet, rows_sheet
from owl_compress.cli.console import Output
from owl_compress.cli.watching import watch_for
from owl_compress.consent import Consent
from owl_compress.device import own_gpu
from owl_compress.documents.comparison import ROWS, TABLE, Row, Status, read_rows
from owl_compress.errors import RequestError

if TYPE_CHECKING:  # a refusal must not wait for torch
    from owl_compress.pipeline.comparison.comparison import Comparison
    from owl_compress.pipeline.comparison.processes import Jobs

_DEFECT = 1


def compare(
    grid: Annotated[
        Path, options.path_argument("GRID", "A recipe (.yaml) in which any value may be a list.")
    ],
    out: Annotated[
        Path | None,
        options.out_option("Folder of results: new, or one to go on in. Required, but for --dry-run."),
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="In the place of the grid's device.")] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", metavar="N", help="Processes that share out the cells, a GPU each.")
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the cells and what they will cost; write nothing.")
    ] = False,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Carry out every cell of a grid, dense first, each a row; what has its row already is left alone."""
    from owl_compress.pipeline.comparison.cells import Place
    from owl_compress.pipeline.comparison.comparison import Comparison
    from owl_compress.pipeline.comparison.processes import Jobs

    options.check_out_named(out, "the folder of results", dry_run=dry_run)
    output = Output(as_json=as_json, quiet=quiet)
    consent = Consent(trust_remote_code, allow_pickle)
    command = shlex.join(["owl-compress", *sys.argv[1:]])
    comparison = Comparison.read(grid, consent, place=Place(device, own_gpu())).named(command)
    if dry_run:
        _show_costs(comparison, out, output)
    elif out is not None:
        _carry_out(comparison, out, Jobs.of(jobs, device), output)


def _carry_out(comparison: "Comparison", out: Path, jobs: "Jobs", output: Output) -> None:
    from owl_compress.pipeline.comparison.share import Share

    share = Share.from_environment()
    if not share.leads:  # one of several processes under torchrun: who leads speaks
        comparison.run(out, share=share)
        return
    try:
        with watch_for(output) as watch:
            rows = comparison.run(out, watch.progress, watch, watch.say, share, jobs)
    except KeyboardInterrupt as error:
        kept = len(read_rows(out / ROWS)) if (out / ROWS).exists() else 0
        raise RequestError(
            f"interrupted: {out} keeps {kept} rows of {len(comparison.cells)}; run the same command to go on"
        ) from error
    baseline = comparison.measures.options.baseline
    output.answer([row.model_dump(mode="json") for row in rows], rows_sheet(rows, baseline))
    output.say(_in_words(rows, out))
    if any(row.status is Status.FAILED for row in rows):
        raise typer.Exit(_DEFECT)


def _show_costs(comparison: "Comparison", out: Path | None, output: Output) -> None:
    from owl_compress.pipeline.comparison.cost import costs

    found = costs(comparison, out, output.progress)
    answer = [
        {
            "name": one.cell.name, "group": one.cell.group, "forward_tokens": one.forward_tokens,
            "seconds": one.seconds, "note": one.note or None,
        }
        for one in found
    ]  # fmt: skip
    output.answer(answer, costs_sheet(found))


def _in_words(rows: Sequence[Row], out: Path) -> str:
    counts = {status: sum(row.status is status for row in rows) for status in Status}
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return f"wrote {out}: {len(rows)} rows, {told}; {out / TABLE} has the tables"
