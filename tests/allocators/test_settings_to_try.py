"""The settings that allocators say are worth trying: the usual one first, and each of them can be meant."""

from typing import Any

import pytest

from owl_compress.allocators import ALLOCATORS, Target, Tunable

TUNABLE = [name for name in ALLOCATORS.builtin if issubclass(ALLOCATORS.load(name), Tunable)]
TARGETS = {
    "density": Target.from_sparsity(0.6),
    "N:M": Target.from_nm("3:8"),
    "bits": Target.from_bits(3.0),
    "width": Target.from_prune_ratio(0.4),
}


def test_those_of_the_literature_have_some() -> None:
    assert set(TUNABLE) == {"uniform", "linear-depth", "owl", "alpha", "dlp", "lsa", "sensitivity"}


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
@pytest.mark.parametrize("name", TUNABLE)
def test_the_usual_setting_comes_first_and_none_twice(name: str, target: Target) -> None:
    allocator: Any = ALLOCATORS.load(name)
    settled = [setting.settled(target) for setting in allocator.settings_to_try(target)]
    assert settled[0] == allocator().settled(target)
    assert len(set(settled)) == len(settled)


def test_owl_has_the_grid_of_the_paper_off_a_grid_and_steps_on_one() -> None:
    owl: Any = ALLOCATORS.load("owl")
    lams = {
        name: sorted({one.lam for one in owl.settings_to_try(target)}) for name, target in TARGETS.items()
    }
    assert lams["density"] == lams["width"] == [0.02, 0.05, 0.08, 0.1, 0.2]
    assert lams["N:M"] == pytest.approx([2 / 3, 1, 1.5, 2, 3])
    assert lams["bits"] == [0.5, 0.75, 1, 1.5]
    metrics = {one.metric for one in owl.settings_to_try(TARGETS["density"])}
    assert metrics == {"lod@3", "lod@5", "lod@7", "lod@10"}
