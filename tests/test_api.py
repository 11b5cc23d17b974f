"""What `import owl_compress` offers, and that it costs nothing until it is used."""

import subprocess
import sys
from typing import Any

import pytest

import owl_compress
from owl_compress.documents.plan import Plan
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.result import Result


@pytest.mark.parametrize("name", owl_compress.__all__)
def test_every_exported_name_exists_and_is_explained(name: str) -> None:
    exported = getattr(owl_compress, name)
    assert exported.__name__ == name
    assert exported.__doc__


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'alocate'"):
        _ = owl_compress.alocate


def test_import_is_light() -> None:
    code = "import sys, owl_compress; print(sorted(name for name in sys.modules if name.startswith('owl_')))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "['owl_compress']"


def test_stages_from_python(tiny_llama: Any, make_windows: Any) -> None:
    windows = make_windows(sequences=2, seq_len=16)
    before = owl_compress.perplexity(tiny_llama, windows)
    report = owl_compress.measure(tiny_llama, windows)
    plan = owl_compress.allocate(report, "owl", sparsity=0.6, lam=0.05, skips=("model.layers.1.mlp.*",))
    result = owl_compress.compress_(tiny_llama, plan, "wanda", windows)
    after = owl_compress.perplexity(tiny_llama, windows)
    assert (type(report), type(plan), type(result)) == (ImportanceReport, Plan, Result)
    assert plan.allocator.parameters["lam"] == 0.05
    assert len(plan.skipped) == 3
    assert result.totals.achieved <= 0.4
    assert before.perplexity != after.perplexity


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give exactly one of sparsity, nm, prune_ratio, bits; got none"),
        ({"sparsity": 0.5, "bits": 3}, "got sparsity and bits"),
        ({"sparsity": 0.5, "lamb": 0.1}, "allocator 'owl' takes no lamb; it takes: metric, lam, owl-law"),
        ({"sparsity": 1.5}, "sparsity 1.5 is outside"),
    ],
)
def test_bad_requests_from_python(
    tiny_llama: Any, make_windows: Any, options: dict[str, Any], message: str
) -> None:
    report = owl_compress.measure(tiny_llama, make_windows(sequences=1, seq_len=8))
    with pytest.raises(owl_compress.RequestError, match=message):
        owl_compress.allocate(report, "owl", **options)
