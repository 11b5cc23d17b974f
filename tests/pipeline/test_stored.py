"""The size that is told without writing is the size of what is written, whatever the form."""

from pathlib import Path
from typing import Any

import pytest

from owl_compress.documents.recipe import Recipe
from owl_compress.pipeline.execution import compress_, make_plan, run
from owl_compress.pipeline.session import Session
from owl_compress.pipeline.stored import stored_size

BASE = {
    "model": "model", "calib": "text.txt", "samples": 2, "seq_len": 32, "allocator": "uniform",
    "device": "cpu",
}  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {"backend": "wanda", "sparsity": 0.5},
        {"backend": "rtn", "bits": 3, "bit_choices": "2,4", "group_size": 8},
        {"backend": "rtn", "bits": 4, "bit_choices": "4", "group_size": 8, "format": "dense"},
        {"backend": "structured", "prune_ratio": 0.4, "round_to": 8},
        {"backend": "structured", "prune_ratio": 0.4, "round_to": 8, "uniform_width": True},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_the_size_is_that_of_what_is_written(options: dict[str, Any], here: Path) -> None:
    recipe = Recipe.from_options(BASE | options)
    totals = run(recipe, "OUT").result.totals
    session = Session.open(recipe)
    compress_(session, make_plan(session)[1])
    found = stored_size(session)
    assert found.bytes_on_disk == totals.bytes_on_disk
    assert found.bits_per_weight == pytest.approx(totals.bits_per_weight, rel=1e-12)
