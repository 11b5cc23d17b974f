"""Parts of a model, of every kind; and levels that can be meant."""

from collections.abc import Callable
from typing import Any

import pytest

from owl_compress.documents.sensitivity import PartKind
from owl_compress.documents.units import KeptOfGrid, Unit
from owl_compress.errors import RequestError
from owl_compress.importance.levels import checked_levels, usual_levels
from owl_compress.importance.parts import check_kind, find_parts, usual_kind
from owl_compress.models.structure import find_structure


@pytest.mark.parametrize("kind", PartKind)
@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "unknown"])
def test_every_linear_is_in_one_part_and_every_part_in_one_block(
    kind: PartKind, name: str, make_model: Callable[[str], Any]
) -> None:
    structure = find_structure(make_model(name))
    parts = find_parts(structure, kind)
    taken = [linear.name for part in parts for linear in part.linears]
    assert sorted(taken) == sorted(linear.name for linear in structure.linears)
    assert all(linear.name.startswith(f"{part.block}.") for part in parts for linear in part.linears)
    assert len({part.name for part in parts}) == len(parts)


def test_parts_of_a_llama_by_kind(make_model: Callable[[str], Any]) -> None:
    structure = find_structure(make_model("llama"))
    first = {
        kind: [part.name.removeprefix("model.layers.0") for part in find_parts(structure, kind)[:4]]
        for kind in PartKind
    }
    assert first[PartKind.BLOCK][0] == ""
    assert first[PartKind.SUBLAYER][:2] == [" attention", " mlp"]
    assert first[PartKind.TIED] == [
        ".self_attn.q_proj+k_proj+v_proj",
        ".self_attn.o_proj",
        ".mlp.gate_proj+up_proj",
        ".mlp.down_proj",
    ]
    assert first[PartKind.LINEAR][0] == ".self_attn.q_proj"


def test_linears_that_are_not_named_are_in_no_part(make_model: Callable[[str], Any]) -> None:
    structure = find_structure(make_model("llama"))
    names = {linear.name for linear in structure.blocks[1].linears}
    assert [part.block for part in find_parts(structure, PartKind.BLOCK, names)] == [structure.blocks[1].name]


@pytest.mark.parametrize("kind", [PartKind.TIED, PartKind.ROLE, PartKind.LINEAR])
def test_widths_have_no_parts_below_a_sublayer(kind: PartKind) -> None:
    with pytest.raises(RequestError, match="as a whole; use sublayer or block"):
        check_kind(kind, Unit.WIDTH)
    check_kind(usual_kind(Unit.WIDTH), Unit.WIDTH)


@pytest.mark.parametrize(
    ("levels", "unit", "grid", "words"),
    [
        ((0.3,), Unit.DENSITY, None, "1 level to try"),
        ((0.3, 0.3, 1.0), Unit.DENSITY, None, "1 level to try"),
        ((), Unit.WIDTH, None, "0 levels to try"),
        ((0.3, 0.0), Unit.DENSITY, None, "level 0 is outside"),
        ((0.3, 1.5), Unit.WIDTH, None, r"level 1\.5 is outside"),
        ((0.3, float("nan")), Unit.DENSITY, None, "level nan is outside"),
        ((0.3, 0.5), Unit.DENSITY, KeptOfGrid(kept_of=8), r"level 0\.3 is no whole number of 8 weights"),
        ((2, 3.5), Unit.BITS, None, r"level 3\.5 is no number of bits"),
        ((1, 2), Unit.BITS, None, "level 1 is no number of bits"),
    ],
)
def test_levels_that_cannot_be_meant_are_refused(
    levels: tuple[float, ...], unit: Unit, grid: KeptOfGrid | None, words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        checked_levels(levels, unit, grid)


def test_levels_come_back_rising_and_once_without_the_part_as_it_is() -> None:
    assert checked_levels((0.5, 0.25, 1.0, 0.5), Unit.DENSITY) == (0.25, 0.5)
    assert checked_levels((4, 2), Unit.BITS) == (2.0, 4.0)
    assert checked_levels(None, Unit.DENSITY, KeptOfGrid(kept_of=4)) == (0.25, 0.5, 0.75)
    for unit in Unit:
        assert checked_levels(usual_levels(unit), unit) == usual_levels(unit)
