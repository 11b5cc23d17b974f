"""Structured removal by commands: smaller models that plain transformers runs, and compressions in a row."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from owl_compress import calibrate, load

WEIGHTS = "model.safetensors"
STRUCTURED = ("--backend", "structured", "--round-to", "8")
UNIFORM = ("--allocator", "uniform")
IDS = torch.arange(3, 60)[None]
STOCK_FILES = {
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS,
    "result.json", "plan.json", "report.json", "recipe.yaml", "README.md",
}  # fmt: skip


@pytest.fixture
def plainly(copied_modules: None) -> Callable[..., Any]:
    """A function that loads a folder through plain transformers, by default with its modelling file."""

    def from_folder(folder: str | Path, **options: Any) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, **({"trust_remote_code": True} | options)).eval()

    return from_folder


def weights(folder: str) -> bytes:
    return (Path(folder) / WEIGHTS).read_bytes()


def linears(folder: str) -> dict[str, Tensor]:
    found = load_file(Path(folder) / WEIGHTS).items()
    return {name.removesuffix(".weight"): t for name, t in found if ".layers." in name and t.ndim == 2}


def n_weights(folder: str, where: str = "") -> int:
    return sum(tensor.numel() for name, tensor in linears(folder).items() if where in name)


def json_of(folder: str, name: str) -> Any:
    return json.loads((Path(folder) / f"{name}.json").read_text())


def card_of(folder: str) -> str:
    return (Path(folder) / "README.md").read_text()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


def first_attention(model: Any, ids: Tensor) -> Tensor:
    found: list[Tensor] = []
    projection = model.model.layers[0].self_attn.o_proj
    projection.register_forward_hook(lambda _module, _inputs, output: found.append(output))
    with torch.no_grad():
        model(ids)
    return found[0]


def generate(model: Any, *, use_cache: bool) -> list[int]:
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    tokens: list[int] = model.generate(IDS[:, :6], use_cache=use_cache, **options)[0].tolist()
    return tokens


def as_its_card_says(folder: str) -> Any:
    """The model as the first lines of Python on the card load it, those for transformers."""
    lines, *_ = re.findall(r"```python\n(.*?)```", card_of(folder), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(lines.replace("path/to/this/folder", folder), names)
    return names["model"]


def test_a_run_leaves_a_smaller_model_that_generates_through_plain_transformers(
    done: Callable[..., Any], prune: tuple[str, ...], plainly: Callable[..., Any]
) -> None:
    result = done(*prune, "--data", "other.txt", "-o", "OUT", "--json").json
    assert {path.name for path in Path("OUT").iterdir()} == STOCK_FILES | {"modeling_narrow.py"}
    assert n_weights("OUT") <= 0.6 * n_weights("model")
    model = plainly("OUT")
    assert torch.equal(logits(model), logits(load("OUT").model))
    assert torch.equal(logits(model), logits(as_its_card_says("OUT")))
    assert generate(model, use_cache=True) == generate(model, use_cache=False)
    record = done("eval", "OUT", "--data", "other.txt", "--seq-len", "32", "--json", "--quiet").json
    assert record == result["evaluation"]["compressed"]
    assert record["n_params"] == sum(parameter.numel() for parameter in model.parameters())


def test_without_its_modelling_file_it_is_nothing_else(
    done: Callable[..., Any], prune: tuple[str, ...], plainly: Callable[..., Any]
) -> None:
    done(*prune, "-o", "OUT")
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        plainly("OUT", trust_remote_code=False)


def test_three_stages_and_one_run_give_the_same_bytes(
    done: Callable[..., Any], text_options: tuple[str, ...], prune: tuple[str, ...], report: Path
) -> None:
    done("allocate", report, "--prune-ratio", "0.4", "-o", "plan.json", "--quiet")
    done("compress", "model", "--plan", "plan.json", *text_options, *STRUCTURED, "-o", "STAGES", "--quiet")
    done(*prune, "-o", "RUN")
    done("run", "STAGES/recipe.yaml", "-o", "AGAIN", "--quiet")
    for name in (WEIGHTS, "config.json", "modeling_narrow.py", "plan.json"):
        assert len({(Path(folder) / name).read_bytes() for folder in ("STAGES", "RUN", "AGAIN")}) == 1, name


def test_a_plan_edited_by_hand_is_carried_out(
    done: Callable[..., Any], text_options: tuple[str, ...], report: Path, edit_json: Callable[..., None]
) -> None:
    done("allocate", report, *UNIFORM, "--prune-ratio", "0.4", "-o", "plan.json", "--quiet")
    values = {"model.layers.0": 0.9, "model.layers.1": 0.6, "model.layers.2": 0.3}

    def trade(plan: Any) -> None:
        for budget in plan["budgets"]:
            budget["value"] = values[budget["block"]]

    edit_json(Path("plan.json"), trade)
    done("compress", "model", "--plan", "plan.json", *text_options, *STRUCTURED, "-o", "OUT", "--quiet")
    shares = [n_weights("OUT", f"{block}.") / n_weights("model", f"{block}.") for block in values]
    assert shares == pytest.approx(list(values.values()), abs=0.1)
    assert sum(shares) <= 1.8
    before, after = linears("model"), linears("OUT")
    for row in json_of("OUT", "result")["budgets"]:
        assert row["asked"] == values[row["block"]]
        assert row["achieved"] == pytest.approx(after[row["name"]].numel() / before[row["name"]].numel())


@pytest.mark.parametrize(
    "options",
    [
        ("--repair",),
        ("--importance", "taylor", "--taylor-variant", "vector", "--gradient-samples", "2"),
        ("--importance", "random", "--seed", "3"),
        ("--parts", "mlp", "--importance", "magnitude", "--round-to", "4"),
        ("--protect-first", "1", "--protect-last", "1", "--allow-empty"),
        ("--uniform-width",),
    ],
    ids=" ".join,
)
def test_the_recipe_makes_the_same_bytes(
    done: Callable[..., Any], prune: tuple[str, ...], options: tuple[str, ...]
) -> None:
    done(*prune, *options, "-o", "ONE")
    done("run", "ONE/recipe.yaml", "-o", "TWO", "--quiet")
    for path in Path("ONE").iterdir():
        if path.name != "result.json":  # which holds durations
            assert path.read_bytes() == (Path("TWO") / path.name).read_bytes(), path.name


def test_importance_decides_what_stays(done: Callable[..., Any], prune: tuple[str, ...]) -> None:
    kept = set()
    for importance in ("wanda", "taylor", "magnitude", "random"):
        done(*prune, *UNIFORM, "--importance", importance, "-o", importance)
        assert json_of(importance, "result")["backend"]["parameters"]["importance"] == importance
        assert f"importance = {importance}" in card_of(importance)
        assert n_weights(importance) == n_weights("wanda")
        kept.add(weights(importance))
    assert len(kept) == 4
    assert json_of("magnitude", "result")["calibration"] is None
    assert json_of("taylor", "result")["calibration"]["sequences"] == 4


@pytest.mark.parametrize(("free", "importance"), [(2**40, "taylor"), (2**10, "wanda")])
def test_auto_says_which_importance_ran_and_the_recipe_holds_it(
    done: Callable[..., Any],
    prune: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    importance: str,
) -> None:
    monkeypatch.setattr("owl_compress.compression.gradient_memory.free_host_bytes", lambda: free)
    gradients = ("--gradient-samples", "2")  # of no use to wanda, and so not in its recipe
    shown = done(*prune[:-1], "--importance", "auto", *gradients, "--strict", "-o", "AUTO")
    assert re.search(rf"importance\W+{importance}", shown.out)
    record = json_of("AUTO", "result")
    assert record["backend"]["parameters"]["importance"] == importance
    (note,) = (note for note in record["notes"] if note.startswith(f"importance auto ran as {importance}"))
    assert f"importance = {importance}" in card_of("AUTO")
    assert note in card_of("AUTO")
    assert record["fallbacks"] == []
    named = ("--importance", importance, *(gradients if importance == "taylor" else ()))
    done(*prune, *named, "--strict", "-o", "NAMED")
    monkeypatch.setattr("owl_compress.compression.gradient_memory.free_host_bytes", lambda: 2**50 - free)
    done("run", "AUTO/recipe.yaml", "-o", "AGAIN", "--quiet")
    for folder in ("NAMED", "AGAIN"):
        assert weights(folder) == weights("AUTO")
        assert (Path(folder) / "recipe.yaml").read_bytes() == (Path("AUTO") / "recipe.yaml").read_bytes()


def test_auto_on_a_dry_run_says_which_importance_would_run(
    done: Callable[..., Any], prune: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for free, importance in ((2**40, "taylor"), (0, "wanda")):
        monkeypatch.setattr(
            "owl_compress.compression.gradient_memory.free_host_bytes", lambda free=free: free
        )
        shown = done(*prune[:-1], "--importance", "auto", "--dry-run")
        assert f"importance auto ran as {importance}" in shown.err


def test_a_dry_run_counts_what_gradients_need(done: Callable[..., Any], prune: tuple[str, ...]) -> None:
    def predicted(*options: str) -> dict[str, int]:
        prediction: dict[str, int] = done(*prune[:-1], *options, "--dry-run", "--json").json["prediction"]
        return prediction

    without = predicted("--importance", "wanda")
    few, more = (predicted("--importance", "taylor", "--gradient-samples", n) for n in ("2", "4"))
    assert without["activation_bytes"] < few["activation_bytes"] < more["activation_bytes"]
    assert without["working_bytes"] < few["working_bytes"] == more["working_bytes"]  # a batch at a time


def test_wanda_stays_the_default(
    done: Callable[..., Any], prune: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("owl_compress.compression.gradient_memory.free_host_bytes", lambda: 2**40)
    done(*prune, "-o", "OUT")
    assert json_of("OUT", "result")["backend"]["parameters"]["importance"] == "wanda"


def test_by_magnitude_the_channels_of_largest_norm_stay(
    done: Callable[..., Any], prune: tuple[str, ...]
) -> None:
    done(*prune, *UNIFORM, "--importance", "magnitude", "--parts", "mlp", "-o", "OUT")
    before, after = linears("model"), linears("OUT")
    for block in range(3):
        gate, up, down = (f"model.layers.{block}.mlp.{name}_proj" for name in ("gate", "up", "down"))
        squares = before[gate].square().sum(1) + before[up].square().sum(1) + before[down].square().sum(0)
        kept = squares.topk(32).indices.sort().values  # 0.6 * 64 = 38.4, in steps of 8; one block gets 40
        if after[gate].shape[0] == 40:
            kept = squares.topk(40).indices.sort().values
        assert torch.equal(after[gate], before[gate][kept])
        assert torch.equal(after[up], before[up][kept])
        assert torch.equal(after[down], before[down][:, kept])
    assert n_weights("OUT", ".mlp.") <= 0.6 * n_weights("model", ".mlp.")


def test_repair_changes_output_projections_alone_and_for_the_better(
    done: Callable[..., Any], prune: tuple[str, ...]
) -> None:
    for out, repair in (("PLAIN", ()), ("REPAIRED", ("--repair",))):
        done(*prune, *UNIFORM, "--importance", "magnitude", *repair, "-o", out)
    plain, repaired = linears("PLAIN"), linears("REPAIRED")
    changed = {name for name in plain if not torch.equal(plain[name], repaired[name])}
    assert changed == {name for name in plain if name.endswith(("o_proj", "down_proj"))}
    # Block 0 reads the same in all three: what its attention puts out is nearer to the dense one's.
    ids = calibrate(load("model"), "text.txt", samples=4, seq_len=32).ids
    dense, without, after = (
        first_attention(load(name).model, ids) for name in ("model", "PLAIN", "REPAIRED")
    )
    assert (after - dense).square().sum() < 0.9 * (without - dense).square().sum()


@pytest.mark.parametrize(
    ("options", "stays"),
    [
        (("--parts", "mlp"), ".self_attn."),
        (("--parts", "attention"), ".mlp."),
        (("--protect-first", "1"), ".layers.0."),
        (("--protect-last", "2"), r".layers.[12]."),
        (("--skip", "*.1.mlp.*"), ".layers.1.mlp."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_left_out_stays_as_it_is(
    done: Callable[..., Any],
    prune: tuple[str, ...],
    plainly: Callable[..., Any],
    options: tuple[str, ...],
    stays: str,
) -> None:
    done(*prune, *options, "-o", "OUT")
    before, after = linears("model"), linears("OUT")
    kept = {name for name in before if re.search(stays.replace(".", r"\."), name)}
    assert kept
    assert all(torch.equal(before[name], after[name]) for name in kept)
    counted = before.keys() - kept
    assert sum(after[name].numel() for name in counted) <= 0.6 * sum(before[name].numel() for name in counted)
    assert {row["name"] for row in json_of("OUT", "result")["budgets"]} == counted
    assert torch.isfinite(logits(plainly("OUT"))).all()


def test_one_width_for_all_blocks_is_a_stock_checkpoint(
    done: Callable[..., Any], prune: tuple[str, ...], plainly: Callable[..., Any]
) -> None:
    done(*prune, "--uniform-width", "-o", "OUT")
    assert {path.name for path in Path("OUT").iterdir()} == STOCK_FILES
    config = json_of("OUT", "config")
    assert not config.keys() & {"auto_map", "owl_compress_widths", "per_layer_config"}
    after = linears("OUT")
    for block in range(3):
        heads = after[f"model.layers.{block}.self_attn.q_proj"].shape[0] // config["head_dim"]
        assert heads == config["num_attention_heads"] < 4
        assert after[f"model.layers.{block}.mlp.up_proj"].shape[0] == config["intermediate_size"] < 64
    model = plainly("OUT", trust_remote_code=False)
    assert type(model).__module__.startswith("transformers.models.")
    assert torch.equal(logits(model), logits(as_its_card_says("OUT")))
    assert generate(model, use_cache=True) == generate(model, use_cache=False)
    done(*("run", "OUT", *prune[2:]), "-o", "AGAIN")  # and it can be narrowed like any other


def test_what_is_smaller_is_stated_and_true(done: Callable[..., Any], prune: tuple[str, ...]) -> None:
    footprint = done(*prune, "-o", "OUT", "--json").json["footprint"]
    for folder, which in (("model", "before"), ("OUT", "after")):
        found = linears(folder)
        rows = {
            letter: [t.shape[0] for n, t in found.items() if n.endswith(f"{letter}_proj")] for letter in "qkv"
        }
        assert footprint[which] == {
            "n_params": sum(tensor.numel() for tensor in load_file(f"{folder}/{WEIGHTS}").values()),
            "kv_cache_bytes_per_token": 4 * sum(rows["k"] + rows["v"]),
            "flops_per_token_blocks": 2 * n_weights(folder),
            "flops_per_token_head": 2 * 259 * 32,
            "flops_per_token_attention": 4 * 128 * sum(rows["q"]),
            "context_len": 128,
        }  # fmt: skip
        assert all(f"{number:,}" in card_of("OUT") for number in footprint[which].values() if number > 128)
    before, after = footprint["before"], footprint["after"]
    assert all(after[key] < before[key] for key in before.keys() - {"flops_per_token_head", "context_len"})
    totals = json_of("OUT", "result")["totals"]
    assert (totals["n_params_before"], totals["n_params_after"]) == (before["n_params"], after["n_params"])
    assert totals["bytes_on_disk"] == (Path("OUT") / WEIGHTS).stat().st_size
    assert "## What is smaller" in card_of("OUT")


def test_dry_run_predicts_and_writes_nothing(
    here: Path, done: Callable[..., Any], prune: tuple[str, ...]
) -> None:
    before = sorted(here.rglob("*"))
    answer = done(*prune, "--dry-run", "--json").json
    assert sorted(here.rglob("*")) == before
    assert answer["plan"]["unit"] == "width"
    done(*prune, "-o", "OUT")
    size = (Path("OUT") / WEIGHTS).stat().st_size
    assert answer["prediction"]["checkpoint_bytes"] == pytest.approx(size, rel=0.1)
