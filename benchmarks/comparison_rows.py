"""Rows of `owl-compress compare` under the names that the tables of docs/measured.md have for them.

The rows of a grid in grids/ are kept in results/ as the command wrote them: `rows.jsonl` of the folder, under
the name of the benchmark.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCHEMA = "owl-compress/row/1"

_EXPECTED = json.loads((Path(__file__).parent / "expected_smollm2.json").read_text())
"""Figures of the same protocol, measured with separate code."""

_MEASURED = ("done", "drifted")
_OF_STRUCTURED = ("importance", "parts", "gradient_samples", "repair", "high")


def is_of_comparison(row: Mapping[str, Any]) -> bool:
    """Whether `compare` wrote this row."""
    return row.get("schema") == SCHEMA


def is_measured(row: Mapping[str, Any]) -> bool:
    """Whether there is a figure in it."""
    return row["status"] in _MEASURED


def as_benchmark_row(benchmark: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """What the tables read of a row, as if the benchmark had printed it."""
    settings = {name.replace("-", "_"): value for name, value in row["recipe"].items()}
    figure = next(iter(row["perplexity"].values()))
    name = "dense" if row["dense"] else name_of(benchmark, settings)
    return {
        "benchmark": benchmark,
        "name": name,
        "perplexity": figure["perplexity"],
        "expected": _EXPECTED.get(name) if benchmark == "perplexity" else None,
        "options": {name: _as_given(value) for name, value in settings.items()},
        "tried": [],
        "asked": row["asked"],
        "achieved": row["achieved"],
        "n_params": row["n_params"],
        "seconds": row["seconds"].get("total"),
        "command": row["provenance"]["command"],
        "versions": row["provenance"]["versions"],
    }


def name_of(benchmark: str, settings: Mapping[str, Any]) -> str:
    """What a benchmark calls a cell with these settings, which are named with underscores."""
    names = {"perplexity": _of_unstructured, "structured": _of_structured}
    return names.get(benchmark, _of_grid)(settings)


def _of_unstructured(settings: Mapping[str, Any]) -> str:
    backend, allocator = settings["backend"], settings["allocator"]
    if "nm" in settings:
        return f"{backend} {allocator} {settings['nm']}"
    words = [backend, f"S={settings['sparsity']}", allocator]
    if allocator == "owl":
        words.append(settings["metric"])
    words += [f"{name}={settings[name]}" for name in ("tau", "lam") if name in settings]
    return " ".join(words)


def _of_grid(settings: Mapping[str, Any]) -> str:
    words = [settings["backend"], _amount(settings), settings["allocator"]]
    words += [f"{name}={settings[name]}" for name in ("group_size", "solver") if name in settings]
    if settings["allocator"] == "random" and "bits" in settings:
        words.append(f"seed={settings.get('seed', 0)}")
    return " ".join(words)


def _amount(settings: Mapping[str, Any]) -> str:
    if "nm" in settings:
        return str(settings["nm"])
    choices = settings["bit_choices"]
    bits = f"{settings['bits']:g}" if len(choices) == 1 else f"{settings['bits']:.1f}"
    return f"{bits}, {','.join(map(str, choices))}"


def _of_structured(settings: Mapping[str, Any]) -> str:
    words = [settings["backend"], str(settings["prune_ratio"]), settings["allocator"]]
    given = {name: _as_given(settings[name]) for name in _OF_STRUCTURED if name in settings}
    return " ".join([*words, *(f"{name}={value}" for name, value in given.items())])


def _as_given(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, list) else value
