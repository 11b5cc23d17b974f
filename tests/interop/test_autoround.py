"""The package AutoRound for real, carrying out the backend autoround: tuned, stored, loaded elsewhere."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from owl_compress.cli import _exit_code

pytestmark = [
    pytest.mark.interop,
    # What the package warns about is none of ours here.
    pytest.mark.filterwarnings("ignore"),
]

LENGTH, N_WINDOWS, STEPS = 64, 8, 20
TUNING = ("--iters", str(STEPS), "--step-windows", "4", "--group-size", "32")
WORDS = ("run", "model", "--backend", "autoround", "--calib", "text.txt", "--samples", str(N_WINDOWS))


@pytest.fixture
def run(here: Path, tokenizer: Any) -> Callable[..., Any]:
    """A function that runs the whole line on a small Llama, and reads the result in the folder OUT."""
    pytest.importorskip("auto_round", reason="needs the extra autoround: make interop")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(here / "model")
    tokenizer.save_pretrained(here / "model")

    def line(*more: str, out: str = "OUT", backend: tuple[str, ...] = TUNING) -> Any:
        assert _exit_code([*WORDS, "--seq-len", str(LENGTH), "--quiet", "-o", out, *backend, *more]) == 0
        return json.loads(Path(out, "result.json").read_text())

    return line


def test_every_linear_has_its_width_and_transformers_loads_the_codes(run: Callable[..., Any]) -> None:
    mixed = ("--allocator", "linear-depth", "--bits", "3", "--bit-choices", "2,3,4", "--lam", "1")
    result = run(*mixed, "--data", "text.txt", "--max-windows", "4")
    assert {row["asked"] for row in result["budgets"]} == {2, 3, 4}
    for row in result["budgets"]:
        assert row["achieved"] == row["asked"]
        assert 0 < row["relative_error"] < {2: 0.5, 3: 0.1, 4: 0.02}[row["asked"]]
    assert _exit_code(["verify", "OUT", "--quiet"]) == 0
    loaded = AutoModelForCausalLM.from_pretrained("OUT")
    ids = AutoTokenizer.from_pretrained("model")(Path("text.txt").read_text(), return_tensors="pt")
    with torch.no_grad():
        logits = loaded(ids["input_ids"][:, :LENGTH]).logits
    assert bool(logits.isfinite().all())
    for row in result["budgets"]:
        weight = loaded.get_submodule(row["name"]).weight.reshape(-1, 32)
        assert max(len(set(group.tolist())) for group in weight) <= 2 ** row["asked"]


def test_the_same_seed_gives_the_same_codes(run: Callable[..., Any]) -> None:
    same = ("--allocator", "uniform", "--bits", "3")
    for out, seed in (("A", "1"), ("B", "1"), ("C", "2")):
        # The windows are the same for every seed: the first ones.
        run(*same, "--sampling", "first", "--seed", seed, "--step-windows", "2", out=out)
    first, again, other = (Path(out, "model.safetensors").read_bytes() for out in "ABC")
    assert first == again
    assert first != other


def test_a_block_comes_nearer_to_the_dense_one_than_by_rounding_to_nearest(run: Callable[..., Any]) -> None:
    run("--allocator", "uniform", "--bits", "2")
    nearest = ("--backend", "rtn", "--group-size", "32")
    run("--allocator", "uniform", "--bits", "2", out="NEAREST", backend=nearest)
    text = AutoTokenizer.from_pretrained("model")(Path("text.txt").read_text(), return_tensors="pt")
    ids = text["input_ids"][:, : LENGTH * N_WINDOWS].reshape(N_WINDOWS, LENGTH)
    dense, tuned, rounded = (_hidden(folder, ids) for folder in ("model", "OUT", "NEAREST"))
    assert (tuned - dense).square().mean() < 0.8 * (rounded - dense).square().mean()


def _hidden(folder: str, ids: torch.Tensor) -> torch.Tensor:
    """What the last block puts out, normalised, [windows, tokens, hidden]."""
    with torch.no_grad():
        out = AutoModelForCausalLM.from_pretrained(folder)(ids, output_hidden_states=True)
    found: torch.Tensor = out.hidden_states[-1]
    return found


def test_it_is_what_the_package_gives_by_itself(run: Callable[..., Any]) -> None:
    import auto_round

    result = run("--allocator", "uniform", "--bits", "3", "--sampling", "first", "--seed", "3")
    ids = AutoTokenizer.from_pretrained("model")(Path("text.txt").read_text())["input_ids"]
    windows = [torch.tensor([ids[at : at + LENGTH]]) for at in range(0, LENGTH * N_WINDOWS, LENGTH)]
    examples = [{"input_ids": window, "attention_mask": torch.ones_like(window)} for window in windows]
    alone, _ = auto_round.AutoRound(
        AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32),
        AutoTokenizer.from_pretrained("model"), bits=3, group_size=32, sym=True, iters=STEPS, batch_size=4,
        seed=3, nsamples=N_WINDOWS, seqlen=LENGTH, dataset=examples, device_map="cpu", amp=False,
        scale_dtype="float32", low_cpu_mem_usage=False,
    ).quantize()  # fmt: skip
    ours = AutoModelForCausalLM.from_pretrained("OUT")
    with torch.no_grad():
        ours(torch.zeros(1, 2, dtype=torch.long))  # compressed-tensors unpacks on the first pass
    for row in result["budgets"]:
        name = row["name"]
        assert torch.equal(ours.get_submodule(name).weight, alone.get_submodule(name).weight)
