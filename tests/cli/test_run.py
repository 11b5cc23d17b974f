"""The whole line by commands: the same checkpoint on every way to it, with all that belongs to it."""

import json
from collections.abc import Callable
from math import floor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import owl_compress

WEIGHTS = "model.safetensors"


def weights(folder: str | Path) -> bytes:
    return (Path(folder) / WEIGHTS).read_bytes()


def budgets(plan: Path | str) -> dict[str, float]:
    return {row["name"]: row["value"] for row in json.loads(Path(plan).read_text())["budgets"]}


def kept(folder: str | Path) -> dict[str, tuple[int, int]]:
    """Non-zero and all weights of every linear, counted from the file."""
    tensors = load_file(Path(folder) / WEIGHTS)
    return {
        name.removesuffix(".weight"): (int(torch.count_nonzero(tensor)), tensor.numel())
        for name, tensor in tensors.items()
        if ".layers." in name and tensor.ndim == 2
    }


def test_run_leaves_a_whole_folder(
    here: Path, done: Callable[..., Any], run_options: tuple[str, ...]
) -> None:
    outcome = done(*run_options, "--data", "other.txt", "-o", "OUT")
    assert {path.name for path in (here / "OUT").iterdir()} == {
        WEIGHTS, "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "result.json", "plan.json", "report.json", "recipe.yaml", "README.md",
    }  # fmt: skip
    assert not [path for path in here.iterdir() if path.name.startswith(".")]
    assert {path.stat().st_mode & 0o777 for path in (here / "OUT").iterdir()} == {0o644}
    assert "model.layers.2" in outcome.out
    assert "perplexity after" in outcome.out
    assert outcome.err.splitlines()[-1] == "wrote OUT"


def test_checkpoint_loads_plainly_and_keeps_exactly_what_the_plan_says(
    here: Path, done: Callable[..., Any], run_options: tuple[str, ...]
) -> None:
    done(*run_options, "-o", "OUT", "--quiet")
    model = AutoModelForCausalLM.from_pretrained(here / "OUT")
    ids = AutoTokenizer.from_pretrained(here / "OUT")("an owl", return_tensors="pt")["input_ids"]
    assert torch.isfinite(model(ids).logits).all()
    plan = budgets(here / "OUT" / "plan.json")
    counts = kept(here / "OUT")
    assert counts.keys() == plan.keys()
    assert {name: count for name, (count, _) in counts.items()} == {
        name: floor(plan[name] * numel) for name, (_, numel) in counts.items()
    }
    assert sum(count for count, _ in counts.values()) <= 0.4 * sum(numel for _, numel in counts.values())
    saved, loaded = load_file(here / "OUT" / WEIGHTS), model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())


def test_what_is_no_linear_stays(here: Path, done: Callable[..., Any], run_options: tuple[str, ...]) -> None:
    done(*run_options, "-o", "OUT", "--quiet")
    before, after = load_file(here / "model" / WEIGHTS), load_file(here / "OUT" / WEIGHTS)
    assert before.keys() == after.keys()
    others = [name for name in before if ".layers." not in name or before[name].ndim == 1]
    assert len(others) > 3
    assert all(torch.equal(before[name], after[name]) for name in others)


@pytest.mark.parametrize("backend", ["magnitude", "wanda", "sparsegpt"])
def test_three_stages_and_one_run_give_the_same_bytes(
    here: Path, done: Callable[..., Any], text_options: tuple[str, ...], backend: str
) -> None:
    done("measure", "model", *text_options, "-o", "report.json")
    done("allocate", "report.json", "--sparsity", "0.6", "-o", "plan.json")
    done("compress", "model", "--plan", "plan.json", *text_options, "--backend", backend, "-o", "STAGES")
    done("run", "model", *text_options, "--sparsity", "0.6", "--backend", backend, "-o", "RUN")
    assert weights("STAGES") == weights("RUN")
    assert Path("report.json").read_bytes() == Path("RUN/report.json").read_bytes()
    assert Path("plan.json").read_bytes() == Path("RUN/plan.json").read_bytes()
    assert Path("STAGES/plan.json").read_bytes() == Path("RUN/plan.json").read_bytes()
    assert not Path("STAGES/report.json").exists()


def test_two_runs_are_identical_byte_by_byte(done: Callable[..., Any], run_options: tuple[str, ...]) -> None:
    for out in ("ONE", "TWO"):
        done(*run_options, "-o", out, "--quiet")
    for path in Path("ONE").iterdir():
        if path.name != "result.json":  # which holds durations
            assert path.read_bytes() == (Path("TWO") / path.name).read_bytes(), path.name


def test_an_unreadable_past_is_told_once(
    here: Path, cli: Callable[..., Any], run_options: tuple[str, ...]
) -> None:
    (here / "model" / "result.json").write_text("{")
    outcome = cli(*run_options, "-o", "OUT", "--quiet")
    assert outcome.code == 0
    assert outcome.err.count("what was done to the model before is not known") == 1
    assert json.loads(Path("OUT/result.json").read_text())["earlier"] == []


def test_earlier_steps_are_found_for_what_was_compressed_in_memory(
    done: Callable[..., Any], run_options: tuple[str, ...]
) -> None:
    done(*run_options, "-o", "OUT", "--quiet")
    loaded = owl_compress.load("OUT")
    plan = owl_compress.Plan.read("OUT/plan.json")
    result = owl_compress.compress_(loaded.model, plan, "magnitude")
    assert result.earlier == ()
    saved = owl_compress.save(loaded, result, plan, "AGAIN")
    assert [step.backend for step in saved.earlier] == ["wanda"]


def test_another_seed_is_another_checkpoint(done: Callable[..., Any], run_options: tuple[str, ...]) -> None:
    done(*run_options, "-o", "ONE", "--quiet")
    done(*run_options, "--seed", "1", "-o", "TWO", "--quiet")
    assert weights("ONE") != weights("TWO")


def test_recipe_of_a_run_makes_it_again(done: Callable[..., Any], run_options: tuple[str, ...]) -> None:
    done(
        *run_options, "--lam", "0.05", "--metric", "lod@3", "--set", "model.layers.0.mlp.*=0.5",
        "--skip", "model.layers.1.self_attn.o_proj", "--low", "0.1", "--data", "other.txt", "-o", "ONE",
    )  # fmt: skip
    done("run", "ONE/recipe.yaml", "-o", "TWO")
    assert weights("ONE") == weights("TWO")
    assert Path("ONE/recipe.yaml").read_bytes() == Path("TWO/recipe.yaml").read_bytes()
    assert Path("ONE/README.md").read_bytes() == Path("TWO/README.md").read_bytes()


def test_recipe_of_a_carried_out_plan_finds_its_plan(
    done: Callable[..., Any], plan: Path, text_options: tuple[str, ...]
) -> None:
    done("compress", "model", "--plan", "plan.json", *text_options, "-o", "ONE")
    plan.unlink()
    done("run", "ONE/recipe.yaml", "-o", "TWO")
    assert weights("ONE") == weights("TWO")


def test_options_win_over_the_recipe(done: Callable[..., Any], run_options: tuple[str, ...]) -> None:
    done(*run_options, "-o", "ONE", "--quiet")
    again = done("run", "ONE/recipe.yaml", "--sparsity", "0.3", "-o", "TWO", "--json").json
    assert again["totals"]["asked"] == pytest.approx(0.7)
    assert "sparsity: 0.3" in Path("TWO/recipe.yaml").read_text()


def test_a_plan_edited_by_hand_is_carried_out(
    done: Callable[..., Any], plan: Path, text_options: tuple[str, ...], edit_json: Callable[..., None]
) -> None:
    def edit(content: Any) -> None:
        content["budgets"][0]["value"] = 0.25

    edit_json(plan, edit)
    name = next(iter(budgets(plan)))
    done("compress", "model", "--plan", plan, *text_options, "-o", "OUT", "--quiet")
    count, numel = kept("OUT")[name]
    assert count == floor(0.25 * numel)


def test_sparsity_zero_keeps_everything(here: Path, done: Callable[..., Any]) -> None:
    done(
        "run",
        "model",
        "--calib",
        "text.txt",
        "--samples",
        "4",
        "--seq-len",
        "32",
        "--sparsity",
        "0",
        "-o",
        "OUT",
    )
    before, after = load_file(here / "model" / WEIGHTS), load_file(here / "OUT" / WEIGHTS)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_uniform_magnitude_needs_no_text(done: Callable[..., Any]) -> None:
    outcome = done(
        "run",
        "model",
        "--allocator",
        "uniform",
        "--backend",
        "magnitude",
        "--sparsity",
        "0.5",
        "-o",
        "OUT",
        "--json",
    )
    assert outcome.json["calibration"] is None
    assert not Path("OUT/report.json").exists()  # nothing was measured
    assert {count / numel for count, numel in kept("OUT").values()} == {0.5}


def test_pins_and_skips(done: Callable[..., Any], run_options: tuple[str, ...]) -> None:
    done(
        *run_options, "--set", "model.layers.0=0.5", "--set", "model.layers.1.mlp.up_proj=0.75",
        "--skip", "model.layers.2.self_attn.*", "-o", "OUT",
    )  # fmt: skip
    counts = kept("OUT")
    for name, (count, numel) in counts.items():
        if name.startswith("model.layers.0"):
            assert count == numel / 2
        elif name == "model.layers.1.mlp.up_proj":
            assert count == 0.75 * numel
        elif name.startswith("model.layers.2.self_attn"):
            assert count == numel
    counted = [counts[name] for name in counts if not name.startswith("model.layers.2.self_attn")]
    assert sum(count for count, _ in counted) <= 0.4 * sum(numel for _, numel in counted)


@pytest.mark.parametrize("scope", ["row", "linear", "model"])
def test_scope_is_heeded(done: Callable[..., Any], run_options: tuple[str, ...], scope: str) -> None:
    done(*run_options, "--allocator", "uniform", "--scope", scope, "-o", "OUT", "--quiet")
    tensors = load_file(Path("OUT") / WEIGHTS)
    rows = torch.count_nonzero(tensors["model.layers.1.mlp.up_proj.weight"], dim=1)
    uneven_rows = int(rows.max() - rows.min()) > 1
    uneven_linears = len({round(count / numel, 2) for count, numel in kept("OUT").values()}) > 1
    assert (uneven_rows, uneven_linears) == {
        "row": (False, False), "linear": (True, False), "model": (True, True)
    }[scope]  # fmt: skip


def test_n_of_m_masks(done: Callable[..., Any], text_options: tuple[str, ...]) -> None:
    done("run", "model", *text_options, "--allocator", "uniform", "--nm", "2:4", "-o", "OUT", "--quiet")
    for name, tensor in load_file(Path("OUT") / WEIGHTS).items():
        if name.endswith("_proj.weight"):
            assert set(torch.count_nonzero(tensor.reshape(-1, 4), dim=1).tolist()) == {2}
    assert done("verify", "OUT", "--json").json == done("verify", "OUT", "--json").json


def test_every_allocator_runs(done: Callable[..., Any], text_options: tuple[str, ...], profile: Path) -> None:
    from owl_compress.allocators import ALLOCATORS

    ranked_by = {getattr(ALLOCATORS.load(name), "metric", "lod@5") for name in ALLOCATORS.names()}
    asked = [word for metric in sorted(ranked_by) for word in ("--metric", metric)]
    done("measure", "model", *text_options, *asked, "-o", "ranked.json", "--quiet")
    for name in ALLOCATORS.names():
        source = profile if ALLOCATORS.load(name).reads_damage else "ranked.json"
        plan = done("allocate", source, "--allocator", name, "--sparsity", "0.5", "--dry-run", "--json").json
        assert plan["allocator"]["name"] == name
        assert plan["achieved"] == pytest.approx(0.5)


def test_eval_reads_our_folder_like_any_other(done: Callable[..., Any], run_options: tuple[str, ...]) -> None:
    result = done(*run_options, "--data", "other.txt", "-o", "OUT", "--json").json
    for folder, which in (("model", "dense"), ("OUT", "compressed")):
        record = done("eval", folder, "--data", "other.txt", "--seq-len", "32", "--json").json
        assert record == result["evaluation"][which]


@pytest.mark.parametrize("start", ["ONE", "elsewhere"])
def test_a_recipe_runs_from_its_own_folder_and_from_elsewhere(
    done: Callable[..., Any],
    here: Path,
    run_options: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    start: str,
) -> None:
    done(*run_options, "-o", "ONE", "--quiet")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / start)
    done("run", "recipe.yaml" if start == "ONE" else "../ONE/recipe.yaml", "-o", "../TWO", "--quiet")
    assert weights(here / "ONE") == weights(here / "TWO")
    assert (here / "ONE/recipe.yaml").read_bytes() == (here / "TWO/recipe.yaml").read_bytes()


def test_less_than_half_of_a_model_is_compressed_only_where_that_is_asked_for(
    here: Path, refused: Callable[..., str], done: Callable[..., Any], tokenizer: Any
) -> None:
    sizes = {
        "vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "moe_intermediate_size": 32,
        "num_experts": 8, "num_experts_per_tok": 2,
    }  # fmt: skip
    AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_moe", **sizes)).save_pretrained("mixture")
    tokenizer.save_pretrained("mixture")
    asked = ("run", "mixture", "--sparsity", "0.5", "--allocator", "uniform", "--backend", "magnitude")
    message = refused(*asked, "-o", "OUT")
    assert message.startswith("only 11.01 % of the weights in the blocks can get a budget")
    assert "--partial" in message
    done(*asked, "--partial", "-o", "OUT")
    matrices = kept("OUT")  # experts and routers too, which the file holds one by one
    attention = sum(total for name, (_, total) in matrices.items() if "self_attn" in name)
    gone = sum(total - left for left, total in matrices.values())
    whole = sum(total for _, total in matrices.values())
    assert gone == attention / 2
    card = " ".join((here / "OUT" / "README.md").read_text().split())
    assert f"which hold {100 * attention / whole:.2f} % of the weights in its transformer blocks" in card
    assert f"{100 * gone / whole:.3f} % of all of these are gone" in card
    assert "No budget reaches `mlp.experts.gate_up_proj" in card
