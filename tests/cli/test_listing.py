"""What there is to choose from, asked of the methods; a broken package is named and harms nobody."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from owl_compress import registry
from owl_compress.allocators import ALLOCATORS
from owl_compress.backends import BACKENDS
from owl_compress.checkpoints.stored_forms import STORED_FORMS
from owl_compress.exports import EXPORTERS, IMPORTERS
from owl_compress.importance.metrics import METRICS
from owl_compress.pipeline import catalogue
from owl_compress.recovery.methods import METHODS as RECOVERIES
from owl_compress.registry import Registry

KINDS = ("allocators", "backends", "metrics", "forms", "exporters", "recoveries", "tools", "sources")


def test_everything_registered_is_listed_once(done: Callable[..., Any]) -> None:
    found = done("list", "--json").json
    assert tuple(found) == KINDS
    names = {kind: [offer["name"].partition("@")[0] for offer in found[kind]["offers"]] for kind in KINDS}
    assert set(names["allocators"]) == {*ALLOCATORS.names(), "auto"}  # which tries what the others make
    assert set(names["backends"]) == set(BACKENDS.names())
    assert set(names["recoveries"]) == set(RECOVERIES.names())
    assert set(names["metrics"]) == set(METRICS.names())
    assert sorted(names["forms"] + names["exporters"]) == sorted(STORED_FORMS.names())
    assert "decilm" in names["exporters"]
    assert set(names["tools"]) == set(EXPORTERS.names())
    assert set(names["sources"]) == set(IMPORTERS.names())
    assert all(not found[kind]["broken"] for kind in KINDS)
    assert all(offer["summary"] for kind in KINDS for offer in found[kind]["offers"])


def test_one_kind_tells_options_ranges_and_defaults(done: Callable[..., Any]) -> None:
    offers = done("list", "backends", "--json").json["backends"]["offers"]
    structured = next(offer for offer in offers if offer["name"] == "structured")
    round_to = next(option for option in structured["options"] if option["name"] == "round-to")
    assert (round_to["type"], round_to["default"], round_to["range"]) == ("int", 64, {"at_least": 1})
    assert [offer["name"] for offer in offers if offer["default"]] == ["wanda"]
    shown = done("list", "backends").out
    assert "wanda (sparsity, default): " in shown
    assert "--scope row|linear|model: " in shown
    assert "Default 64." in shown
    assert "--lam" not in done("list").out
    assert max(map(len, done("list", "allocators").out.splitlines())) <= 80


def test_another_kind_is_refused(refused: Callable[..., str]) -> None:
    assert "no list of 'alocators': did you mean 'allocators'?" in refused("list", "alocators")


def test_methods_of_others_are_listed_and_broken_ones_named(
    done: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [
        EntryPoint("theirs", "owl_compress.allocators.uniform:Uniform", ALLOCATORS.group),
        EntryPoint("broken", "no_such_module:Backend", ALLOCATORS.group),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    theirs = Registry(kind="allocator", group=ALLOCATORS.group, builtin=ALLOCATORS.builtin)
    monkeypatch.setattr(catalogue, "ALLOCATORS", theirs)
    outcome = done("list", "allocators")
    assert "owl (default): " in outcome.out
    assert "left out: allocator 'broken' cannot be imported (No module named 'no_such_module')" in outcome.err
    assert "left out: allocator 'theirs' cannot be used" in outcome.err  # it is called otherwise
    assert len(done("list", "allocators", "--json").json["allocators"]["broken"]) == 2


def test_allocators_are_listed_without_loading_torch() -> None:
    code = (
        "import sys; from owl_compress.cli import _exit_code; code = _exit_code(['list', 'allocators']);"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ), stdout=subprocess.DEVNULL)
