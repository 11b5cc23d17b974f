"""Grids: every list is an axis, cases add combinations, and what cannot be meant is refused with its line."""

from pathlib import Path
from typing import Any

import pytest

from owl_compress.documents.grid import LISTS, Grid, GridNames
from owl_compress.errors import RequestError

NAMES = GridNames(methods=("lam", "metric", "group_size"), settings=("data", "tasks"))


def cells(text: str, tmp_path: Path) -> list[dict[str, Any]]:
    return [cell.options for cell in grid(text, tmp_path).cells]


def grid(text: str, tmp_path: Path) -> Grid:
    path = tmp_path / "grid.yaml"
    path.write_text(text, encoding="utf-8")
    return Grid.read(path, NAMES)


def refusal(text: str, tmp_path: Path) -> str:
    with pytest.raises(RequestError) as caught:
        grid(text, tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{tmp_path}/")


def test_every_list_is_an_axis_and_the_first_is_the_outermost(tmp_path: Path) -> None:
    found = cells("model: m\nsparsity: [0.5, 0.6]\nallocator: [uniform, owl]\nseed: [0, 1]\n", tmp_path)
    assert [(one["sparsity"], one["allocator"], one["seed"]) for one in found] == [
        (s, a, seed) for s in (0.5, 0.6) for a in ("uniform", "owl") for seed in (0, 1)
    ]
    assert all(one["model"] == "m" for one in found)


def test_several_budgets_are_one_axis(tmp_path: Path) -> None:
    found = cells("model: m\nsparsity: [0.5, 0.6]\nnm: 3:8\nallocator: [uniform, owl]\n", tmp_path)
    budgets = [(one.get("sparsity"), one.get("nm")) for one in found]
    assert budgets == [(0.5, None)] * 2 + [(0.6, None)] * 2 + [(None, "3:8")] * 2


def test_a_case_adds_to_the_grid_and_is_crossed_with_the_axes_that_it_does_not_name(tmp_path: Path) -> None:
    text = """
model: m
backend: wanda
sparsity: [0.5, 0.6]
seed: [0, 1]
cases:
  - {backend: gptq, bits: 3, seed: 7}
  - {sparsity: 0.8, lam: [0.1, 0.2]}
"""
    found = grid(text, tmp_path).cells
    assert [one.case for one in found] == [0] * 4 + [1] + [2] * 4
    assert found[4].options == {"model": "m", "backend": "gptq", "bits": 3, "seed": 7}
    assert [(one.options["seed"], one.options["lam"]) for one in found[5:]] == [
        (0, 0.1), (0, 0.2), (1, 0.1), (1, 0.2),
    ]  # fmt: skip


def test_a_grid_without_a_budget_is_what_its_cases_share(tmp_path: Path) -> None:
    text = "model: m\nallocator: [uniform, owl]\ncases: [{nm: 4:8}, {bits: 3, backend: gptq}]\n"
    found = cells(text, tmp_path)
    assert [(one["allocator"], one.get("nm"), one.get("bits")) for one in found] == [
        ("uniform", "4:8", None), ("owl", "4:8", None), ("uniform", None, 3), ("owl", None, 3),
    ]  # fmt: skip


def test_a_plan_takes_the_place_of_budget_and_allocator(tmp_path: Path) -> None:
    text = "model: m\nsparsity: 0.5\nallocator: [owl]\ncases: [{plan: [a.json, b.json]}]\n"
    found = cells(text, tmp_path)
    assert found[1:] == [{"model": "m", "plan": "a.json"}, {"model": "m", "plan": "b.json"}]


def test_lists_by_nature_are_one_value_and_a_list_of_them_is_an_axis(tmp_path: Path) -> None:
    assert {"candidates", "set", "skip", "parts", "bit_choices", "levels", "tasks", "task_file"} == LISTS
    one = cells("model: m\nbits: 3\nbit-choices: [2, 3, 4]\nskip: [a, b]\n", tmp_path)
    assert [(cell["bit_choices"], cell["skip"]) for cell in one] == [([2, 3, 4], ["a", "b"])]
    several = cells("model: m\nbits: 3\nbit-choices: [[2, 3, 4], [2, 4]]\nset: [{a: 0.5}, {}]\n", tmp_path)
    assert [(cell["bit_choices"], cell["set"]) for cell in several] == [
        ([2, 3, 4], {"a": 0.5}), ([2, 3, 4], {}), ([2, 4], {"a": 0.5}), ([2, 4], {}),
    ]  # fmt: skip


def test_what_is_said_once_for_all_is_no_axis(tmp_path: Path) -> None:
    found = grid("model: m\nsparsity: 0.5\ndata: [a.txt, b.txt]\ntasks: boolq\n", tmp_path)
    assert found.settings == {"data": ["a.txt", "b.txt"], "tasks": "boolq"}
    assert [one.options for one in found.cells] == [{"model": "m", "sparsity": 0.5}]


def test_nothing_in_an_axis_leaves_the_option_out(tmp_path: Path) -> None:
    assert cells("model: m\nsparsity: 0.5\nlow: [null, 0.2]\n", tmp_path) == [
        {"model": "m", "sparsity": 0.5}, {"model": "m", "sparsity": 0.5, "low": 0.2},
    ]  # fmt: skip


def test_budgets_that_are_nothing_leave_cells_without_one(tmp_path: Path) -> None:
    assert cells("model: m\nsparsity: null\n", tmp_path) == [{"model": "m"}]
    assert cells("model: m\nsparsity: [null]\nnm: null\n", tmp_path) == [{"model": "m"}]
    assert cells("model: m\nsparsity: null\nnm: 2:4\n", tmp_path) == [{"model": "m", "nm": "2:4"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: m\nspasity: 0.5\n", "grid.yaml: line 2: unknown key 'spasity': did you mean 'sparsity'?"),
        ("model: m\ncases:\n  - nm: 3:8\n    seeed: 1\n", "grid.yaml: line 4: unknown key 'seeed': did you"),
        ("model: m\nsparsity: []\n", "grid.yaml: line 2: sparsity has no values, which leaves no cell"),
        ("model: m\nsparsity: [0.5, 0.6, 0.5]\n", "grid.yaml: line 2: sparsity has 0.5 twice"),
        ("model: m\nsparsity: [[0.5]]\n", "grid.yaml: line 2: sparsity takes single values, not [0.5]"),
        ("model: m\nbit-choices: [2, [3]]\n", "grid.yaml: line 2: bit-choices is a list by nature"),
        ("model: m\ncases: []\n", "grid.yaml: line 2: cases has to be a list of at least one case"),
        ("model: m\ncases: [{nm: 3:8}, 5]\n", "grid.yaml: line 2: case 2 is 5: write options"),
        ("model: m\ncases:\n  - {tasks: boolq}\n", "grid.yaml: line 3: tasks is said once for all cells"),
        ("model: m\nbit-choices: 2\nbit_choices: 3\n", "grid.yaml: line 3: bit-choices is given twice"),
        ("trust-remote-code: true\n", "grid.yaml: line 1: trust-remote-code is no part of a grid"),
        ("- model\n", "grid.yaml is no grid: expected lines"),
        ("", "grid.yaml is no grid: expected lines"),
        ("model: [a\n", "grid.yaml is not YAML: line 2, column 1: while parsing a flow sequence, expected"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    assert refusal(text, tmp_path).startswith(message)


def test_more_cells_than_anybody_has_time_for_are_refused(tmp_path: Path) -> None:
    seeds = list(range(101))
    assert "has 10,201 cells" in refusal(f"model: m\nseed: {seeds}\nsamples: {seeds}\n", tmp_path)


def test_a_long_list_is_looked_through_in_no_time() -> None:
    with pytest.raises(RequestError, match="has 100,000 cells"):
        Grid.of({"model": "m", "sparsity": 0.5, "seed": list(range(100_000))}, NAMES)
