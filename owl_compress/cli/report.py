"""A page to look at, of anything that owl-compress wrote."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from owl_compress.cli import options
from owl_compress.cli.console import Output
from owl_compress.documents.compared import is_comparison, read_comparison
from owl_compress.documents.disk import check_output_file, write_text
from owl_compress.documents.findings import read_findings
from owl_compress.documents.outputs import PAGE
from owl_compress.errors import RequestError

_SUFFIXES = (".html", ".htm")


def report(
    files: Annotated[
        list[Path],
        options.path_argument(
            "FILES",
            "Folder that run, compress, demo or compare wrote; or reports, profiles, plans, results.",
        ),
    ],
    out: options.OutPage,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Write one HTML page with pictures, tables and how it was made; it fetches nothing when it is read."""
    if out.suffix.lower() not in _SUFFIXES:
        raise RequestError(f"--out {out} is no name of a page: pages are HTML, name it {out.stem}.html")
    check_output_file(out, inputs=files, kind=PAGE)
    write_text(out, _page(files))
    output = Output(as_json=as_json, quiet=quiet)
    output.answer({"page": str(out)})
    output.say(f"wrote {out}")


def _page(files: Sequence[Path]) -> str:
    """The page of a comparison, or of what the files say of one compression."""
    compared = [path for path in files if is_comparison(path)]
    if compared and len(files) > 1:
        raise RequestError(f"{compared[0]} is a comparison and has a page of its own: name it alone")
    if compared:
        comparison = read_comparison(compared[0])
        from owl_compress.pages.comparison_page import (
            comparison_page,  # a refusal must not wait for matplotlib
        )

        return comparison_page(comparison.rows, comparison.baseline, comparison.grid)
    findings = read_findings(files)
    from owl_compress.pages.document_page import document_page

    return document_page(findings)
