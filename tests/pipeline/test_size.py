"""A size that is asked for: never above it, as near below as plans allow, or refused in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from owl_compress.checkpoints.tensors import INDEX_NAME, bytes_on_disk
from owl_compress.documents.plan import Plan
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.result import Result
from owl_compress.errors import RequestError
from owl_compress.pipeline import prices
from owl_compress.pipeline.execution import make_plan, run
from owl_compress.pipeline.request import Request
from owl_compress.pipeline.session import Session
from owl_compress.pipeline.stages import load

MakeRecipe = Callable[..., Recipe]
CODES: dict[str, Any] = {"group_size": 16}
WIDE: dict[str, Any] = {"round_to": 8}


def on_disk(out: str = "OUT") -> int:
    assert not Path(out, INDEX_NAME).exists()
    return bytes_on_disk(out)


def predicted(plan: Plan) -> int:
    cost = plan.allocator.parameters["predicted_size_bytes"]
    assert isinstance(cost, int)
    return cost


def size_of(recipe: Recipe) -> int:
    """Bytes that a run writes which asks for an average."""
    run(recipe, f"OF_{abs(hash(recipe.to_yaml()))}")
    return on_disk(f"OF_{abs(hash(recipe.to_yaml()))}")


@pytest.mark.parametrize(
    ("backend", "allocator"), [("rtn", "uniform"), ("rtn", "owl"), ("gptq", "linear-depth")]
)
def test_codes_take_the_bytes_that_were_predicted_and_no_more_than_asked(
    here: Path, recipe: MakeRecipe, backend: str, allocator: str
) -> None:
    least, most = (size_of(recipe("rtn", bits=bits, allocator="uniform", **CODES)) for bits in (2, 4))
    asked = (2 * least + 3 * most) // 5
    done = run(recipe(backend, size=f"{asked}", allocator=allocator, **CODES), "OUT")
    assert predicted(done.plan) == on_disk() <= asked
    assert done.plan.allocator.parameters["asked_size_bytes"] == asked
    # One block more at one bit more would be too much; on this grid there is no smaller step.
    step = (most - least) // 6
    assert asked - on_disk() < 1.05 * step
    assert Result.read("OUT/result.json").totals.bytes_on_disk == on_disk()
    note = f"asked for at most {asked:,} bytes of weight files, got {on_disk():,}"
    assert note in done.result.notes
    assert note in Path("OUT/README.md").read_text()


@pytest.mark.parametrize(("bits", "group_size"), [(2, 16), (3, "none"), (4, 32)])
def test_a_limit_of_exactly_a_uniform_plan_gives_that_plan(
    here: Path, recipe: MakeRecipe, bits: int, group_size: object
) -> None:
    options = {"allocator": "uniform", "group_size": group_size}
    exact = size_of(recipe("rtn", bits=bits, **options))
    assert make_plan(Session.open(recipe("rtn", size=exact, **options)))[1].achieved == bits
    below = make_plan(Session.open(recipe("rtn", size=exact - 1, **options)))[1] if bits > 2 else None
    assert below is None or below.achieved < bits


@pytest.mark.parametrize(("allocator", "uniform_width"), [("owl", False), ("uniform", True)])
def test_narrower_models_stay_below_and_within_one_step(
    here: Path, recipe: MakeRecipe, allocator: str, uniform_width: bool
) -> None:
    shape = WIDE | {"uniform_width": True} if uniform_width else WIDE
    done = run(recipe("structured", size="150kB", allocator=allocator, **shape), "OUT")
    assert on_disk() <= predicted(done.plan) <= 150_000
    assert 150_000 - predicted(done.plan) < 8, "a plan in shares is as near as two weights"
    # eight channels of one feed-forward, or of all, are the steps
    assert predicted(done.plan) - on_disk() < 4 * 3 * 32 * 8 * (3 if uniform_width else 1) + 512


@pytest.mark.parametrize(("backend", "options"), [("rtn", CODES), ("structured", WIDE)])
def test_a_size_that_leaves_everything_is_met_by_the_largest_plan(
    here: Path, recipe: MakeRecipe, backend: str, options: dict[str, Any]
) -> None:
    _, plan = make_plan(Session.open(recipe(backend, size="1GB", **options)))
    assert plan.achieved == plan.high
    assert plan.allocator.parameters["asked_size_bytes"] == 1_000_000_000


@pytest.mark.parametrize(("backend", "options"), [("rtn", CODES), ("structured", WIDE)])
def test_the_smallest_size_there_is_is_named_and_can_be_met(
    here: Path, recipe: MakeRecipe, backend: str, options: dict[str, Any]
) -> None:
    with pytest.raises(RequestError, match="size 40,000 bytes cannot be met: the smallest") as caught:
        run(recipe(backend, size="40kB", allocator="uniform", **options), "OUT")
    assert "\n" not in str(caught.value)
    assert not Path("OUT").exists()
    least = int(str(caught.value).split("allow is ")[1].split(" bytes")[0].replace(",", ""))
    run(recipe(backend, size=least, allocator="uniform", **options), "OUT")
    assert on_disk() <= least


def test_the_recipe_beside_the_result_does_it_again(here: Path, recipe: MakeRecipe) -> None:
    first = run(recipe("rtn", size="0.1MB", **CODES), "ONE")
    assert Recipe.read("ONE/recipe.yaml").size == "0.1MB"
    again = run(Recipe.read("ONE/recipe.yaml"), "TWO")
    assert again.plan == first.plan
    assert Path("ONE/model.safetensors").read_bytes() == Path("TWO/model.safetensors").read_bytes()


def test_pins_and_skips_are_kept_and_counted(here: Path, recipe: MakeRecipe) -> None:
    pinned = {"set": {"model.layers.0": 4}, "skip": ["model.layers.2.mlp.down_proj"]}
    done = run(recipe("rtn", size="110kB", **CODES, **pinned), "OUT")
    assert predicted(done.plan) == on_disk() <= 110_000
    assert done.plan.value_of("model.layers.0.mlp.up_proj") == 4


def test_half_the_element_size_is_counted_so(here: Path, recipe: MakeRecipe) -> None:
    done = run(recipe("structured", size="75kB", dtype="bfloat16", **WIDE), "OUT")
    assert 70_000 < on_disk() <= predicted(done.plan) <= 75_000


def test_files_above_the_limit_are_never_left_behind(
    here: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prices.SizePrice, "of", lambda self, plan: 0)  # a prediction that is far too low
    with pytest.raises(RequestError, match=r"the weight files take .* and may take 80,000: nothing was"):
        run(recipe("rtn", size="80kB", **CODES), "OUT")
    assert not Path("OUT").exists()
    assert not [path for path in Path().iterdir() if path.name.startswith((".", "OUT"))]


def test_a_live_model_is_measured_by_its_own_tensors(here: Path, recipe: MakeRecipe) -> None:
    done = run(recipe("rtn", size="100kB", **CODES), None, load("model"))
    assert predicted(done.plan) <= 100_000


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        ("wanda", {"size": "1MB"}, "zeros are stored like other weights, so the size does not change: use"),
        ("rtn", {"size": "1MB", "format": "dense"}, "so the size does not change: drop --format"),
        ("rtn", {"size": "1MB", "bits": 3}, "name exactly one budget of sparsity"),
        ("gptqmodel", {"size": "1MB"}, "does not tell the size of its files beforehand"),
        ("rtn", {"size": "0"}, "size: is above 0 bytes"),
        ("rtn", {"size": "-3MB"}, "size: is a size such as 300MB"),
        ("rtn", {"size": "nan"}, "size: is a size such as 300MB"),
        ("rtn", {"size": float("nan")}, "size: is a size such as 300MB"),
        ("rtn", {"size": "inf"}, "size: is a size such as 300MB"),
        ("rtn", {"size": "300XB"}, "size: has no unit 'xb': write B, kB"),
        ("rtn", {"size": "9999999TB"}, "below 2^63"),
        ("rtn", {"size": ""}, "size: is a size such as"),
        ("rtn", {"size": "1MB", "phase": "decode"}, "phase goes with the budgets speedup and latency"),
        ("structured", {"size": "1MB", "bit_choices": "2,3"}, "bit-choices are for budgets in bits"),
        ("structured", {"speedup": 2}, "speedup needs the cost-table of this model"),
        ("structured", {"speedup": 0.5, "cost_table": "c"}, "speedup: is how many times as fast, at least 1"),
        ("structured", {"latency": "0", "cost_table": "c"}, "latency: is a time above 0"),
        ("structured", {"latency": "3 parsecs", "cost_table": "c"}, "latency: has no unit 'parsecs'"),
        ("structured", {"prune_ratio": 0.2, "cost_table": "c"}, "cost-table goes with the budgets speedup"),
    ],
)
def test_what_cannot_be_meant_is_told_in_one_line(
    recipe: MakeRecipe, backend: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError) as caught:
        Request.of(recipe(backend, **options))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
