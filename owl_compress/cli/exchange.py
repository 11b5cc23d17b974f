"""Plans to other tools, and from them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from owl_compress.cli import options
from owl_compress.cli.console import Output
from owl_compress.cli.tables import plan_table
from owl_compress.documents.disk import check_output_file, write_text
from owl_compress.documents.outputs import EXPORT
from owl_compress.documents.plan import Plan
from owl_compress.documents.report import ImportanceReport


def export(
    plan: Annotated[Path, options.path_argument("PLAN", "The plan that `allocate` or `run` wrote.")],
    to: Annotated[str, typer.Option("--to", metavar="TOOL", help="The tool; `list tools` names them.")],
    out: options.OutFile,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    **given: Any,
) -> None:
    """Write a plan in the words of another tool, which then carries it out."""
    from owl_compress.pipeline.exchange import exported

    check_output_file(out, inputs=[plan], kind=EXPORT)
    output = Output(as_json=as_json, quiet=quiet)
    found = exported(Plan.read(plan), to, given)
    write_text(out, found.text)
    output.answer({"tool": to, "file": str(out), "notes": list(found.notes)})
    for note in found.notes:
        output.say(note)
    output.say(f"wrote {out}")


def import_(
    file: Annotated[Path, options.path_argument("FILE", "What the other tool wrote, or is run with.")],
    source: Annotated[
        str, typer.Option("--from", metavar="TOOL", help="The tool; `list sources` names them.")
    ],
    report: Annotated[Path, options.path_option("The report of the model, which names its linears.")],
    out: options.OutFile,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    **given: Any,
) -> None:
    """Make a plan of what another tool decided, so that backends here carry it out and compare it."""
    from owl_compress.pipeline.exchange import imported

    check_output_file(out, inputs=[file, report], kind="plan")
    output = Output(as_json=as_json, quiet=quiet)
    plan = imported(file, source, ImportanceReport.read(report), given)
    plan.write(out)
    output.answer(plan.model_dump(mode="json"), plan_table(plan))
    output.say(f"wrote {out}")
