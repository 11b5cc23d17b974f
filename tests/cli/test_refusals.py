"""Requests that cannot be satisfied: one line with the remedy, exit code 2, and no trace left."""

import json
import pickle
import shutil
from collections.abc import Callable
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from owl_compress.documents.report import ImportanceReport

BUDGET = ("--sparsity", "0.5")
SHORT = ("--samples", "4", "--seq-len", "32")
RUN = ("run", "model", "--calib", "text.txt", *SHORT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # the model
        (("run", "./nomodel", "--calib", "text.txt", *BUDGET), "'./nomodel' does not exist: name a folder"),
        (("run", "nomodel", "--calib", "text.txt", *BUDGET), "'nomodel': no such folder, and the hub"),
        (("run", "someone/something", "--calib", "text.txt", *BUDGET), "check the spelling, or name a local"),
        (("run", "text.txt", "--calib", "text.txt", *BUDGET), "'text.txt' is a file: name its folder"),
        # the text
        ((*RUN[:2], "--calib", "model/model.safetensors", *BUDGET), "is not a text file (it holds NUL"),
        ((*RUN[:2], "--calib", "txt.txt", *BUDGET), "no file txt.txt: did you mean 'text.txt'?"),
        ((*RUN[:2], "--calib", "wikitxt", *BUDGET), "did you mean 'wikitext2'?"),
        ((*RUN[:2], "--calib", "wikitext2", *BUDGET), "use 'builtin', which needs no network"),
        ((*RUN[:2], *BUDGET), "cannot load 'c4' from the Hugging Face hub"),  # no silent fallback
        ((*RUN[:2], "--calib", "hundred.txt", *SHORT, *BUDGET), "101 tokens and 4 windows of 32 need 128"),
        ((*RUN, "--samples", "500", *BUDGET), "500 windows of 32 need 16000: give more text, or --samples"),
        ((*RUN, "--seq-len", "129", *BUDGET), "over the model's maximum of 128: set --seq-len 128 or less"),
        ((*RUN, "--seq-len", "1", *BUDGET), "sequence length 1 is below 2"),
        ((*RUN, "--samples", "0", *BUDGET), "samples: has to be above 0 (got 0)"),
        ((*RUN, "--batch-size", "0", *BUDGET), "batch-size: has to be above 0 (got 0)"),
        ((*RUN, "--sampling", "last", *BUDGET), "sampling: has to be 'first' or 'random' (got 'last')"),
        ((*RUN, "--data", "nothing.txt", *BUDGET), "there is no file nothing.txt"),
        # the budget
        ((*RUN, "--sparsity", "1.2"), "sparsity: is the share removed, at least 0 and below 1; 0.7 rem"),
        ((*RUN, "--sparsity", "1"), "at least 0 and below 1; 0.7 removes 70 % (got 1.0)"),
        ((*RUN, "--sparsity", "70"), "0.7 removes 70 % (got 70.0)"),
        ((*RUN, "--sparsity", "-0.1"), "(got -0.1)"),
        ((*RUN, "--sparsity", "nan"), "sparsity: has to be a finite number (got nan)"),
        ((*RUN, "--sparsity", "half"), "--sparsity cannot be 'half'"),
        ((*RUN[:2], "--calib", "", *BUDGET), "'' names no text: give a file"),
        (("run", "~nosuchuser/x", "--calib", "text.txt", *BUDGET), "nobody knows where '~nosuchuser' is"),
        (RUN, "budget of sparsity, nm, prune-ratio, bits, size, speedup, latency; this has none"),
        ((*RUN, *BUDGET, "--nm", "2:4"), "this has sparsity and nm"),
        ((*RUN, "--nm", "5:4"), "nm: keeps N of M weights, so N is above 0 and at most M (got '5:4')"),
        ((*RUN, "--nm", "3:7"), "'3:7' has M 7: M is one of 4, 8, 16, 32"),
        ((*RUN, "--nm", "half"), "such as 3:8 or 2.5:8 (got 'half')"),
        ((*RUN, "--bits", "9", "--backend", "rtn"), "9 bits is outside the choices 2, 3, 4"),
        # the allocator
        ((*RUN, *BUDGET, "--allocator", "owk"), "unknown allocator 'owk': did you mean 'owl'?"),
        ((*RUN, *BUDGET, "--metric", "lodd@5"), "unknown metric 'lodd@5': did you mean 'lod@5'?"),
        ((*RUN, *BUDGET, "--metric", "lod@none"), "metric 'lod@none' has parameter 'none': give a positive"),
        ((*RUN, *BUDGET, "--lam", "1.5"), "lam 1.5 is outside [0, 1]"),
        ((*RUN, *BUDGET, "--lam", "-0.1"), "lam -0.1 is outside [0, 1]"),
        ((*RUN, "--sparsity", "0.9", "--lam", "0.5"), "outside [0, 1]: use lam 0."),
        ((*RUN, *BUDGET, "--allocator", "uniform", "--lam", "0.1"), "'uniform' takes no lam; it takes no"),
        ((*RUN, *BUDGET, "--low", "0.9"), "target density 0.5 is below low 0.9: raise the target or"),
        ((*RUN, *BUDGET, "--set", "model.layers.0"), "set: takes NAME=VALUE, not 'model.layers.0'"),
        ((*RUN, *BUDGET, "--set", "nothing=0.5"), "--set 'nothing' matches no block or linear"),
        ((*RUN, *BUDGET, "--skip", "nothing"), "--skip 'nothing' matches no block or linear"),
        ((*RUN, *BUDGET, "--granularity", "row"), "has to be 'block' or 'linear' (got 'row')"),
        ((*RUN, *BUDGET, "--solver", "optimal"), "solver 'optimal' needs a grid"),
        # the backend
        ((*RUN, *BUDGET, "--backend", "wonda"), "unknown backend 'wonda': did you mean 'wanda'?"),
        ((*RUN, "--bits", "3"), "in bits: use --backend 'autoround' or 'gptq' or 'gptqmodel' or 'rtn'"),
        ((*RUN, *BUDGET, "--backend", "rtn"), "use --backend 'magnitude' or 'sparsegpt' or 'wanda'"),
        ((*RUN, *BUDGET, "--scope", "rows"), "backend 'wanda': unknown scope 'rows': did you mean 'row'?"),
        ((*RUN, "--nm", "2:4", "--scope", "model"), "use --scope row or linear, or a plan without a grid"),
        # the machine
        ((*RUN, *BUDGET, "--device", "gpu"), "unknown device 'gpu'"),
        ((*RUN, *BUDGET, "--dtype", "int8"), "dtype: has to be 'auto', 'bfloat16', 'float16' or"),
        # recipes
        (("run", "nothing.yaml"), "cannot read nothing.yaml: No such file or directory"),
    ],
)  # fmt: skip
def test_run_is_refused(
    here: Path, refused: Callable[..., str], arguments: tuple[str, ...], message: str
) -> None:
    (here / "hundred.txt").write_text("x" * 100)
    assert message in refused(*arguments, "-o", "OUT")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "model", *BUDGET), "missing option --out / -o: name the folder to write, or add --dry-run"),
        ((*RUN, *BUDGET, "-o", "text.txt"), "output folder text.txt is a file: name a folder"),
        ((*RUN, *BUDGET, "-o", "model"), "model exists and is not empty: name a new one or remove it"),
        ((*RUN, *BUDGET, "-o", "text.txt/OUT"), "cannot make output folder text.txt/OUT"),
        ((*RUN, *BUDGET, "-o", "OUT", "--frobnicate"), "unknown option --frobnicate: "),
        (("measure", "model", "--calib", "text.txt"), "missing option --out / -o: File to write"),
        (("measure", "model", "--calib", "text.txt", "-o", "no/report.json"), "make its folder no first"),
        (("measure", "model", "--calib", "text.txt", "-o", "model"), "output file model is a folder: name a"),
        (("measure", "model", "--metric", "nothing", "-o", "r.json"), "unknown metric 'nothing': known:"),
        (("allocate", "report.json", *BUDGET), "missing option --out / -o: name the plan file, or add --d"),
        (("allocate", "nothing.json", *BUDGET, "-o", "plan.json"), "cannot read nothing.json: No such file"),
        (("allocate", "text.txt", *BUDGET, "-o", "plan.json"), "text.txt is not whole JSON"),
        (("compress", "model", "-o", "OUT"), "missing option --plan: The plan that `allocate` wrote (see"),
        (("compress", "model", "--plan", "no.json", "-o", "OUT"), "cannot read no.json: No such file or"),
        (("eval", "model", "--data", "other.txt", "--max-windows", "0"), "set --max-windows to at least 1"),
        (("eval", "model", "--data", "other.txt", "--bos", "always"), "unknown bos 'always'"),
        (("eval", "model", "--data", "other.txt", "--dtype", "float33"), "did you mean 'float32'?"),
        (("demo", "-o", "model"), "output folder model exists and is not empty"),
    ],
)  # fmt: skip
def test_other_commands_are_refused(
    refused: Callable[..., str], arguments: tuple[str, ...], message: str
) -> None:
    assert message in refused(*arguments)


def test_unknown_command(cli: Callable[..., Any]) -> None:
    outcome = cli("mesure")
    assert (outcome.code, outcome.out) == (2, "")
    assert (
        outcome.err
        == "owl-compress: unknown command 'mesure': did you mean 'measure'? (see owl-compress --help)\n"
    )


def test_cuda_asked_for_and_absent(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = refused(*RUN, *BUDGET, "--device", "cuda", "-o", "OUT")
    assert message.startswith("device 'cuda' is asked for but torch")
    assert message.endswith("use --device cpu or auto")


def save_other_model(folder: Path, tokenizer: PreTrainedTokenizerFast, **changes: int) -> None:
    """A Llama like that of the tests, with some sizes changed."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **sizes | changes)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_plan_of_another_model(
    here: Path, refused: Callable[..., str], plan: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    save_other_model(here / "wider", tokenizer, num_hidden_layers=3, intermediate_size=96)
    save_other_model(here / "shallower", tokenizer, num_key_value_heads=2)
    save_other_model(here / "deeper", tokenizer, num_key_value_heads=2, num_hidden_layers=4)
    for model, problem in (
        ("wider", "model.layers.0.self_attn.k_proj has 1024 weights in the model and 512 in the plan"),
        ("shallower", "plan names linear 'model.layers.2.self_attn.q_proj', which the model does not have"),
        ("deeper", "plan has no budget for linear 'model.layers.3.mlp.down_proj'"),
    ):
        message = refused("compress", model, "--plan", plan, "--calib", "text.txt", *SHORT, "-o", "OUT")
        assert message.startswith(problem)
        assert "allocate it from this model's own report" in message


def rename(content: Any) -> None:
    content["budgets"][3]["name"] += "x"


def overspend(content: Any) -> None:
    content["budgets"][3]["value"] = 0.99


def leave_bounds(content: Any) -> None:
    content["budgets"][3]["value"] = 1.5


def drop_one(content: Any) -> None:
    del content["budgets"][3]


def repeat_one(content: Any) -> None:
    content["budgets"].append(content["budgets"][3])


def add_key(content: Any) -> None:
    content["budget"] = 1


def be_newer(content: Any) -> None:
    content["schema"] = "owl-compress/plan/7"


def be_in_bits(content: Any) -> None:
    content |= {"unit": "bits", "target": 4.0, "low": 2.0, "high": 8.0}
    for budget in content["budgets"]:
        budget["value"] = 4.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, "plan names linear 'model.layers.0.self_attn.o_projx', which the model does not have"),
        (overspend, "budget exceeded: the budgets average 0.4"),
        (leave_bounds, "model.layers.0.self_attn.o_proj has 1.5, outside [low 0.0, high 1.0]"),
        (drop_one, "plan has no budget for linear 'model.layers.0.self_attn.o_proj'"),
        (repeat_one, "a linear is listed twice"),
        (add_key, "budget: is not known here (got 1)"),
        (be_newer, "newer than owl-compress/plan/1 which this version reads: upgrade owl-compress"),
        (be_in_bits, "backend 'wanda' carries out budgets in density, these are in bits: use --backend"),
    ],
)  # fmt: skip
def test_plan_broken_by_hand(
    refused: Callable[..., str],
    plan: Path,
    edit_json: Callable[..., None],
    change: Callable[[Any], None],
    message: str,
) -> None:
    edit_json(plan, change)
    assert message in refused("compress", "model", "--plan", plan, "--calib", "text.txt", *SHORT, "-o", "OUT")


def test_truncated_files(refused: Callable[..., str], report: Path, plan: Path) -> None:
    for path in (report, plan):
        path.write_text(path.read_text()[:-100])
    remedy = "is not whole JSON"
    assert remedy in refused("allocate", report, *BUDGET, "-o", "new.json")
    assert remedy in refused("compress", "model", "--plan", plan, "--calib", "text.txt", *SHORT, "-o", "OUT")


def test_files_of_the_wrong_kind(refused: Callable[..., str], report: Path, plan: Path) -> None:
    assert "neither a report nor a sensitivity profile" in refused(
        "allocate", plan, *BUDGET, "-o", "new.json"
    )
    assert "this is another kind of file" in refused("compress", "model", "--plan", report, "-o", "OUT")


def test_metric_that_the_report_lacks(refused: Callable[..., str], report: Path) -> None:
    message = refused("allocate", report, *BUDGET, "--metric", "lod@4", "-o", "new.json")
    assert "the report has no metric 'lod@4' for model.layers.0" in message
    assert "measure again with --metric lod@4" in message
    message = refused("allocate", report, *BUDGET, "--metric", "lod5", "-o", "new.json")
    assert "did you mean 'lod@5'? (what measure --metric can add: owl-compress list metrics)" in message


def test_group_that_does_not_divide_the_inputs(
    here: Path, refused: Callable[..., str], tokenizer: PreTrainedTokenizerFast
) -> None:
    save_other_model(here / "odd", tokenizer, intermediate_size=66)
    message = refused("run", "odd", "--calib", "text.txt", *SHORT, "--nm", "2:4", "-o", "OUT")
    assert "model.layers.0.mlp.down_proj" in message
    assert "66 inputs" in message
    assert "choose another M" in message


def cut_short(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def scribble(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"\x07" * 4000)


def lose_a_tensor(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def pickle_it(model: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    (model / "model.safetensors").unlink()


def poison(name: str, value: float) -> Callable[[Path], None]:
    """A change that puts `value` into the tensor `name`."""

    def change(model: Path) -> None:
        tensors = load_file(model / "model.safetensors")
        tensors[name].view(-1)[3] = value
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut_short, "model.safetensors is corrupt or truncated"),
        (scribble, "model.safetensors is corrupt or truncated"),
        (lose_a_tensor, "tensor 'model.layers.1.mlp.up_proj.weight' is missing from the file"),
        (pickle_it, "only pickled ones, which can run code while they load: convert them, or pass --allow"),
        (poison("model.layers.1.mlp.up_proj.weight", nan), "layers.1.mlp.up_proj.weight holds NaN or Inf"),
        (poison("model.layers.2.input_layernorm.weight", inf), "layers.2.input_layernorm.weight holds NaN"),
        (poison("lm_head.weight", nan), "lm_head.weight holds NaN or Inf: the checkpoint is broken"),
        (shutil.rmtree, "no such folder"),
        (lambda model: (model / "config.json").unlink(), "has no config.json, so it is no checkpoint"),
        (lambda model: (model / "config.json").write_text("{"), "not whole JSON"),
    ],
)  # fmt: skip
def test_broken_checkpoint(
    here: Path, refused: Callable[..., str], change: Callable[[Path], Any], message: str
) -> None:
    change(here / "model")
    assert message in refused(*RUN, *BUDGET, "-o", "OUT")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ({"sparsity": 0.5, "sparsty": 0.5}, "unknown key 'sparsty': did you mean 'sparsity'?"),
        ({"sparsity": 0.5, "seqlen": 5}, "unknown key 'seqlen': did you mean 'seq-len'?"),
        ({}, "name exactly one budget"),
        ({"sparsity": "lots"}, "sparsity: has to be a number"),
    ],
)
def test_bad_recipe(here: Path, refused: Callable[..., str], lines: dict[str, Any], message: str) -> None:
    content = {"model": "model", "allocator": "owl", "backend": "wanda", "calib": "text.txt"} | lines
    (here / "recipe.yaml").write_text(json.dumps(content))
    refusal = refused("run", "recipe.yaml", "-o", "OUT")
    assert refusal.startswith("recipe.yaml: ")
    assert message in refusal


def test_strict_refuses_a_fallback(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    from owl_compress.backends import solver

    def fails_once(matrix: torch.Tensor, **options: Any) -> Any:
        monkeypatch.setattr(torch.linalg, "cholesky_ex", original)
        return original(matrix, **options)[0], torch.tensor(1)

    original = torch.linalg.cholesky_ex
    monkeypatch.setattr(solver.torch.linalg, "cholesky_ex", fails_once)
    message = refused(*RUN, *BUDGET, "--backend", "sparsegpt", "--strict", "-o", "OUT")
    assert message.startswith("--strict: ")
    assert "model.layers.0.self_attn" in message


def test_anything_else_is_a_defect_and_says_so(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(ImportanceReport, "read", fail)
    outcome = cli("allocate", "report.json", *BUDGET, "--dry-run")
    assert (outcome.code, outcome.out) == (1, "")
    assert "KeyError: 'a bug'" in outcome.err
    assert outcome.err.splitlines()[-1] == (
        "owl-compress: this is a defect of ours; please report the lines above"
    )
