"""What the documentation takes from the code: JSON Schemas of the files, tables of the methods' options."""

import json
from typing import Any

from mkdocs.structure.files import File, Files

from owl_compress.allocators import ALLOCATORS
from owl_compress.backends import BACKENDS
from owl_compress.documents.costs import CostTable
from owl_compress.documents.plan import Plan
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.result import Result
from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.documents.tuning import TuningDocument
from owl_compress.options import Option
from owl_compress.registry import Registry

_SCHEMAS = {
    "report": ImportanceReport,
    "sensitivity": SensitivityProfile,
    "plan": Plan,
    "result": Result,
    "costs": CostTable,
    "tuning": TuningDocument,
}
_TABLES = {"allocators": ALLOCATORS, "backends": BACKENDS}


def on_files(files: Files, config: Any) -> Files:
    """Add `schemas/NAME.json` for every kind of file."""
    for name, model in _SCHEMAS.items():
        content = json.dumps(model.model_json_schema(), indent=2)
        files.append(File.generated(config, f"schemas/{name}.json", content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put a table of options where a page has `<!-- options of allocators -->`."""
    for kind, registry in _TABLES.items():
        mark = f"<!-- options of {kind} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, options_table(registry))
    return markdown


def options_table(registry: Registry) -> str:
    """The options of every built-in method, one row each."""
    rows = ["| method | option | default | what it does |", "|---|---|---|---|"]
    for method in sorted(registry.builtin):
        rows += [_row(method, option) for option in registry.options(method)]
    return "\n".join(rows)


def _row(method: str, option: Option) -> str:
    default = "off" if option.is_switch else "left open" if option.default is None else option.default
    choices = f" One of {', '.join(option.choices)}." if option.choices else ""
    text = (option.help + choices).replace("|", r"\|")
    return f"| `{method}` | `--{option.shown_name}` | {default} | {text} |"
