"""Cells of a grid: options count where they have a meaning, names tell cells apart, groups spend the same."""

from pathlib import Path
from typing import Any

import pytest

from owl_compress.documents.grid import Grid
from owl_compress.errors import RequestError
from owl_compress.pipeline.comparison.cells import Cell, cells_of, grid_names
from owl_compress.pipeline.comparison.measures import Measures

BASE = {"model": "model", "calib": "text.txt", "samples": 4, "seq-len": 32, "device": "cpu"}


def cells(**content: Any) -> tuple[Cell, ...]:
    given = BASE | {name.replace("_", "-"): value for name, value in content.items()}
    return cells_of(Grid.of(given, grid_names()), Path())


def names(**content: Any) -> list[str]:
    return [cell.name for cell in cells(**content)]


def test_the_dense_model_comes_first_and_once_for_each_way_of_evaluating_it() -> None:
    found = cells(sparsity=[0.5, 0.6], allocator="uniform", max_windows=[1, 2])
    assert [(cell.name, cell.is_dense) for cell in found] == [
        ("dense max-windows=1", True), ("dense max-windows=2", True),
        ("sparsity=0.5 max-windows=1", False), ("sparsity=0.5 max-windows=2", False),
        ("sparsity=0.6 max-windows=1", False), ("sparsity=0.6 max-windows=2", False),
    ]  # fmt: skip


def test_cells_of_a_model_stand_together_behind_it() -> None:
    found = names(sparsity=0.5, allocator=["uniform", "owl"], model=["a", "b"])
    assert found == ["dense a", "a uniform", "a owl", "dense b", "b uniform", "b owl"]


def test_a_refused_cell_does_not_lengthen_the_names_of_the_others() -> None:
    found = cells(sparsity=[0.5, 1.5], allocator=["uniform", "owl"], data="other.txt")
    assert [cell.name for cell in found if cell.request is not None] == [
        "dense", "sparsity=0.5 uniform", "sparsity=0.5 owl",
    ]  # fmt: skip
    assert [cell.name for cell in found if cell.request is None] == [
        "sparsity=1.5 uniform", "sparsity=1.5 owl",
    ]  # fmt: skip
    assert {cell.group for cell in found} == {"dense", "wanda sparsity=0.5", "wanda sparsity=1.5"}


def test_an_option_counts_in_the_cells_that_have_it() -> None:
    found = names(sparsity=0.5, allocator=["uniform", "owl"], lam=[0.05, 0.08])
    assert found == ["dense", "uniform", "owl lam=0.05", "owl lam=0.08"]
    bits = cells(cases=[{"nm": "4:8"}, {"bits": 3, "backend": "rtn"}], bit_choices=[[2, 3, 4]], group_size=8)
    assert [cell.refusal for cell in bits] == [None] * 3
    damage = cells(sparsity=0.5, allocator=["uniform", "sensitivity"], damage_samples=2)
    assert [cell.refusal for cell in damage] == [None] * 3


def test_an_option_that_no_method_of_the_grid_has_is_refused() -> None:
    found = cells(sparsity=[0.5, 0.6], allocator="uniform", lam=0.1)
    assert {cell.refusal for cell in found} == {"allocator 'uniform' takes no lam; it takes no options"}


def test_an_impossible_cell_has_its_reason_and_the_others_none() -> None:
    dense, fits, does_not = cells(sparsity=0.5, allocator="uniform", backend=["wanda", "gptq"])
    assert dense.request
    assert fits.request
    assert does_not.request is None
    assert does_not.refusal is not None
    assert does_not.refusal.startswith("backend 'gptq' carries out budgets in bits, these are in density")
    assert does_not.name == "gptq"


def test_a_group_is_all_but_the_allocator_its_options_and_the_seed() -> None:
    found = cells(
        sparsity=[0.5, 0.6], allocator=["uniform", "owl"], lam=[0.05, 0.1], seed=[0, 1], low=[None, 0.1],
        samples=[2, 4], scope=["row", "linear"],
    )  # fmt: skip
    groups = {cell.group for cell in found if not cell.is_dense}
    assert groups == {
        f"wanda sparsity={share} scope={scope} samples={samples}"
        for share in (0.5, 0.6) for scope in ("row", "linear") for samples in (2, 4)
    }  # fmt: skip


def test_the_same_cell_twice_is_refused() -> None:
    with pytest.raises(
        RequestError, match="the same cell is there twice, in the grid itself and in case 1: "
    ):
        cells(sparsity=[0.5, 0.6], allocator="uniform", cases=[{"sparsity": 0.6}])
    with pytest.raises(RequestError, match="the same cell is there twice, in case 1 and in case 2: "):
        cells(allocator="uniform", cases=[{"nm": "4:8"}, {"nm": "4:8", "seed": 0}])


def test_paths_are_seen_from_the_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    grid = Grid.of(BASE | {"calib": "./text.txt", "data": ["./a.txt", "b.txt"], "nm": "4:8"}, grid_names())
    (tmp_path / "deep").mkdir()
    request = cells_of(grid, tmp_path / "deep")[-1].request
    assert request is not None
    assert request.recipe.calib == "deep/text.txt"
    measures = Measures.of(grid.settings, tmp_path / "deep", "grid.yaml")
    assert measures.texts == {"./a.txt": "deep/a.txt", "b.txt": "b.txt"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": ["a", "a"]}, "grid.yaml: data has 'a' twice"),
        ({"data": [["a"]]}, r"grid.yaml: data names texts, one or a list of them, not \['a'\]"),
        ({"data": "a", "prompt_len": 0}, "grid.yaml: compare: prompt-len 0 must be at least 1"),
    ],
)
def test_what_is_measured_is_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=f"^{message}"):
        Measures.of(settings, Path(), "grid.yaml")
