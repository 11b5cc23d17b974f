"""Targets are refused at birth, with the value and the remedy."""

from dataclasses import replace

import pytest

from owl_compress.allocators import Target, allocate
from owl_compress.documents.units import KeptOfGrid, Unit
from owl_compress.errors import RequestError


def test_constructors_state_what_is_kept():
    assert Target.from_sparsity(0.7).value == 0.3
    assert Target.from_prune_ratio(0.2) == Target(Unit.WIDTH, 0.8)
    assert Target.from_nm("2.5:8") == Target(Unit.DENSITY, 0.3125, grid=KeptOfGrid(kept_of=8))
    assert Target.from_bits(3, (4, 2, 2)).levels == (2.0, 4.0)


@pytest.mark.parametrize("sparsity", [1.2, 1, -0.1, float("nan")])
def test_sparsity_outside_0_to_1_is_refused(sparsity):
    with pytest.raises(RequestError, match=rf"sparsity {sparsity:g} is outside \[0, 1\)"):
        Target.from_sparsity(sparsity)
    with pytest.raises(RequestError, match=rf"prune ratio {sparsity:g} is outside"):
        Target.from_prune_ratio(sparsity)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("5:3", "M is one of 4, 8, 16, 32"),
        ("9:8", "keeps 9 of 8"),
        ("0:8", "keeps 0 of 8"),
        ("nan:8", "keeps nan of 8"),
        ("3", "not of the form 3:8"),
        ("3:8.5", "not of the form 3:8"),
        ("a:8", "not of the form 3:8"),
    ],
)
def test_patterns_that_are_none_are_refused(pattern, message):
    with pytest.raises(RequestError, match=message):
        Target.from_nm(pattern)


@pytest.mark.parametrize(
    ("bits", "choices", "message"),
    [
        (3, (1, 4), "bit choice 1 is outside 2..8"),
        (3, (2, 9), "bit choice 9 is outside 2..8"),
        (3, (), "empty list of bit choices"),
        (1.5, (2, 3, 4), "average of 1.5 bits is outside the choices 2, 3, 4: ask for 2 to 4"),
        (5, (2, 3, 4), "average of 5 bits is outside"),
        (float("nan"), (2, 3, 4), "average of nan bits"),
    ],
)
def test_bits_outside_the_choices_are_refused(bits, choices, message):
    with pytest.raises(RequestError, match=message):
        Target.from_bits(bits, choices)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 0.6}, "below low 0.6: raise the target or lower low"),
        ({"high": 0.2}, "above high 0.2: lower the target or raise high"),
        ({"low": 0.4, "high": 0.3}, "low 0.4 is above high 0.3"),
        ({"low": -0.1}, r"low -0.1 is outside \[0, 1\]"),
        ({"high": 1.1}, r"high 1.1 is outside \[0, 1\]"),
        ({"solver": "optimal"}, "needs a grid"),
        ({"solver": "optimum"}, "did you mean 'optimal'"),
        ({"granularity": "layer"}, "unknown granularity 'layer'"),
        ({"pins": {"x": 1.2}}, "x is set to 1.2, outside"),
        ({"pins": {"x": 0.1}, "low": 0.2}, "x is set to 0.1, outside"),
    ],
)
def test_options_that_contradict_are_refused(options, message):
    with pytest.raises(RequestError, match=message):
        Target.from_sparsity(0.5, **options)


def test_a_grid_knows_its_levels():
    assert Target.from_nm("3:8").levels[0] == 1 / 8  # a block is not emptied unasked
    assert Target.from_nm("3:8", low=0.0).levels[0] == 0
    assert Target.from_nm("0.5:8").levels[0] == 0  # else it could not be met
    assert Target.from_nm("3:8", low=0.2, high=0.5).levels == (2 / 8, 3 / 8, 4 / 8)
    with pytest.raises(RequestError, match="off the grid"):
        Target.from_nm("3:8", pins={"x": 0.3})
    with pytest.raises(RequestError, match=r"no value of the grid .* lies in \[low 0.3, high 0.36\]"):
        Target.from_nm("2.5:8", low=0.3, high=0.36)
    with pytest.raises(RequestError, match=r"outside what the grid allows between them: 0.25 to 0.5"):
        Target.from_nm("1.8:8", low=0.2, high=0.5)


def test_unit_and_grid_have_to_match():
    with pytest.raises(RequestError, match="needs bit choices"):
        Target(Unit.BITS, 3.0)
    with pytest.raises(RequestError, match="for density, not for width"):
        Target(Unit.WIDTH, 0.5, grid=KeptOfGrid(kept_of=8))
    with pytest.raises(RequestError, match="N:2 is not supported"):
        Target(Unit.DENSITY, 0.5, grid=KeptOfGrid(kept_of=2))


@pytest.mark.parametrize("target", [Target.from_nm("0.0001:32"), Target.from_sparsity(0.999999)])
def test_a_target_that_rounds_to_nothing_kept_is_refused(target, make_report):
    for chosen in (target, replace(target, low=0.0)):
        with pytest.raises(RequestError, match=r"21 of 21 linears would keep nothing, .* ask for more$"):
            allocate(make_report([0.1, 0.2, 0.3]), "uniform", chosen)


def test_some_linears_of_a_grid_are_emptied_only_where_that_is_allowed(make_report):
    target = Target.from_nm("0.5:8")
    report = make_report([0.1, 0.2, 0.3])
    with pytest.raises(RequestError, match=r"linears would keep nothing, .* or allow it with --low 0"):
        allocate(report, "uniform", target)
    assert allocate(report, "uniform", replace(target, low=0.0)).achieved <= target.value + 1e-9
