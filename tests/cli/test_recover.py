"""Recovery by command: better on the text, and exactly as compressed as before."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import owl_compress
from owl_compress.documents.temporary import locked
from owl_compress.models.adapters import peft_kept_quiet
from owl_compress.pipeline.recovery_request import RecoveryOptions
from owl_compress.recovery import training

MODEL = "model"
WEIGHTS = "model.safetensors"
CALIBRATION = ("--calib", "text.txt", "--samples", "4", "--seq-len", "32", "--quiet")
COMPRESSIONS = {
    "sparse": ("--backend", "wanda", "--sparsity", "0.6"),
    "nm": ("--backend", "magnitude", "--nm", "3:8"),
    "narrow": ("--backend", "structured", "--prune-ratio", "0.3", "--round-to", "8"),
    "quantized": ("--backend", "rtn", "--bits", "4", "--group-size", "16", "--format", "dense"),
}
METHODS = {
    "lora": ("--method", "lora", "--rank", "4"),
    "merged": ("--method", "lora", "--merge", "--rank", "4"),
    "masked": ("--method", "masked", "--learning-rate", "0.003"),
    "bias": ("--method", "bias", "--learning-rate", "0.01"),
}
TRAINING = (
    "--data",
    "text.txt",
    "--seq-len",
    "32",
    "--steps",
    "12",
    "--accumulate",
    "4",
    "--max-windows",
    "4",
)
GOOD = [
    (compression, method)
    for compression in COMPRESSIONS
    for method in METHODS
    if compression != "quantized" or method in {"lora", "bias"}
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny model lies compressed, in each way that was asked for so far."""
    return tmp_path_factory.mktemp("compressed")


@pytest.fixture
def compressed(here: Path, made: Path, done: Callable[..., Any]) -> Callable[[str], Path]:
    """A function that compresses the tiny model in one of the ways above, or copies what it made before."""

    def compress(kind: str) -> Path:
        if not (made / kind).exists():
            done("run", MODEL, *COMPRESSIONS[kind], *CALIBRATION, "-o", kind)
            shutil.copytree(here / kind, made / kind)
        elif not (here / kind).exists():
            shutil.copytree(made / kind, here / kind)
        return here / kind

    return compress


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def zeros(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor == 0
        for name, tensor in load_file(folder / WEIGHTS).items()
        if ".layers." in name and tensor.ndim == 2
    }


@pytest.mark.parametrize(("compression", "method"), GOOD)
def test_a_model_becomes_better_and_stays_as_compressed_as_it_was(
    here: Path, compressed: Callable[[str], Path], done: Callable[..., Any], compression: str, method: str
) -> None:
    before = compressed(compression)
    outcome = done("recover", before, *TRAINING, *METHODS[method], "-o", "OUT2", "--json")
    record = outcome.json
    assert record["after"]["perplexity"] < record["before"]["perplexity"]
    assert record["losses"][-1] < record["losses"][0]
    old, new = zeros(before), zeros(here / "OUT2")
    assert all(torch.equal(old[name] & new[name], old[name]) for name in old)
    assert done("verify", "OUT2", "--json").json["ok"]
    assert {path.name for path in here.iterdir() if "unfinished" in path.name or path.name[0] == "."} == set()


@pytest.mark.parametrize("method", METHODS)
def test_what_is_written_is_what_was_evaluated(
    here: Path, compressed: Callable[[str], Path], done: Callable[..., Any], method: str
) -> None:
    compressed("sparse")
    held_out = ("--held-out", "other.txt")
    record = done(
        "recover", "sparse", *TRAINING[:-2], *held_out, *METHODS[method], "-o", "OUT2", "--json"
    ).json
    found = done("eval", "OUT2", "--data", "other.txt", "--seq-len", "32", "--json").json
    assert found["perplexity"] == pytest.approx(record["after"]["perplexity"], rel=1e-6)
    assert found["windows"] == record["after"]["windows"]


def test_an_adapter_lies_beside_weights_that_are_the_same_to_the_bit(
    here: Path, compressed: Callable[[str], Path], done: Callable[..., Any]
) -> None:
    from peft import PeftModel

    compressed("sparse")
    done("recover", "sparse", *TRAINING, *METHODS["lora"], "-o", "OUT2")
    assert (here / "OUT2" / WEIGHTS).read_bytes() == (here / "sparse" / WEIGHTS).read_bytes()
    config = json.loads((here / "OUT2" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    plain: Any = AutoModelForCausalLM.from_pretrained(here / "OUT2")
    ids = torch.arange(20, 40)[None]
    without = plain(ids).logits
    with peft_kept_quiet():
        adapted = PeftModel.from_pretrained(plain, here / "OUT2" / "adapter")
    assert torch.allclose(owl_compress.load(here / "OUT2").model(ids).logits, adapted(ids).logits, atol=1e-5)
    assert not torch.allclose(without, adapted(ids).logits, atol=1e-3)


def test_all_linears_of_all_blocks_get_an_adapter(
    here: Path, compressed: Callable[[str], Path], done: Callable[..., Any]
) -> None:
    compressed("narrow")
    done("recover", "narrow", *TRAINING, *METHODS["lora"], "-o", "OUT2")
    names = load_file(here / "OUT2" / "adapter" / "adapter_model.safetensors")
    on = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in names}
    linears = {row["name"] for row in json.loads((here / "narrow" / "plan.json").read_text())["budgets"]}
    assert on == linears


@pytest.mark.parametrize("method", ["merged", "bias", "lora"])
def test_a_recovery_that_was_ended_comes_to_the_same_when_it_is_resumed(
    here: Path,
    compressed: Callable[[str], Path],
    done: Callable[..., Any],
    cli: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    compressed("sparse")
    asked = ("recover", "sparse", *TRAINING, *METHODS[method])
    whole = done(*asked, "-o", "whole", "--json").json
    update = training._Work.update

    def interrupted(work: Any, step: int) -> None:
        if step == 7:
            raise KeyboardInterrupt
        update(work, step)

    with monkeypatch.context() as patched:
        patched.setattr(training._Work, "update", interrupted)
        assert cli(*asked, "-o", "OUT2").code == 2
    assert not (here / "OUT2").exists()
    assert (here / "OUT2.unfinished/state.safetensors").is_file()
    refused = cli(*asked, "-o", "OUT2")
    assert (refused.code, "an unfinished recovery lies in " in refused.err) == (2, True)
    both = cli(*asked, "-o", "OUT2", "--resume", "--overwrite")
    assert "--resume goes on and --overwrite starts over: give one of them" in both.err
    with locked(here / "OUT2.unfinished"):
        living = cli(*asked, "-o", "OUT2", "--resume")
    assert (living.code, "another process is making OUT2: wait for it" in living.err) == (2, True)
    (here / "OUT2.unfinished/.state.partial").write_bytes(b"half of it")  # of a process that was killed
    resumed = done(*asked, "-o", "OUT2", "--resume", "--json").json
    assert resumed["losses"] == whole["losses"]
    assert resumed["after"] == whole["after"]
    files = [WEIGHTS, *(("adapter/adapter_model.safetensors",) if method == "lora" else ())]
    for name in files:
        assert (here / "OUT2" / name).read_bytes() == (here / "whole" / name).read_bytes()
    assert not (here / "OUT2.unfinished").exists()
    (here / "OUT2.unfinished").mkdir()  # of one that was killed between the two
    again = cli(*asked, "-o", "OUT2", "--resume")
    assert (again.code, "OUT2 is finished already" in again.err, "wrote" in again.err) == (0, True, False)
    assert not (here / "OUT2.unfinished").exists()


def test_a_recovery_that_was_ended_is_started_over(
    here: Path, compressed: Callable[[str], Path], done: Callable[..., Any], cli: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    compressed("sparse")
    asked = ("recover", "sparse", *TRAINING, "--method", "bias", "-o", "OUT2")
    with monkeypatch.context() as patched:
        patched.setattr(training, "_SAVES", 1)
        patched.setattr("owl_compress.pipeline.recovering._write", interrupt)
        assert cli(*asked).code == 2
    assert (here / "OUT2.unfinished/state.safetensors").exists()
    done(*asked, "--seed", "1", "--overwrite")
    assert not (here / "OUT2.unfinished").exists()


def test_what_another_command_began_is_neither_taken_for_a_recovery_nor_lost(
    here: Path, compressed: Callable[[str], Path], done: Callable[..., Any], cli: Callable[..., Any]
) -> None:
    compressed("sparse")
    kept = here / "OUT2.unfinished/blocks/model.layers.0.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    asked = ("recover", "sparse", *TRAINING, "--method", "bias", "-o", "OUT2")
    for options, told in [
        ((), "not begun by recover"),
        (("--resume",), "not begun by recover"),
        (("--overwrite",), "was not written by owl-compress"),
    ]:
        outcome = cli(*asked, *options)
        assert (outcome.code, told in outcome.err) == (2, True), outcome.err
        assert kept.exists()
    (here / "OUT2.unfinished/head.json").write_text("{}")
    done(*asked, "--overwrite")
    assert not (here / "OUT2.unfinished").exists()


def test_what_differs_from_what_is_finished_is_named(
    here: Path, compressed: Callable[[str], Path], done: Callable[..., Any], cli: Callable[..., Any]
) -> None:
    compressed("sparse")
    asked = ("recover", "sparse", *TRAINING, "--method", "bias", "-o", "OUT2", "--resume")
    done(*asked)
    assert "OUT2 is finished already" in cli(*asked).err
    for changed, told in [
        (("--method", "masked"), "with --method bias, and masked is asked for"),
        (("--seed", "1"), "with --seed 0, and 1 is asked for"),
        (("--steps", "13"), "and 13 is asked for"),
        (("--data", "other.txt"), "and other.txt is asked for"),
        (("--held-out", "other.txt"), "with --held-out text.txt, and other.txt is asked for"),
        (("--bos", "never"), "and never is asked for"),
    ]:
        outcome = cli(*asked, *changed)
        assert (outcome.code, told in outcome.err) == (2, True), outcome.err


def test_what_differs_from_what_is_resumed_is_named(
    here: Path,
    compressed: Callable[[str], Path],
    cli: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compressed("sparse")

    def interrupted(work: Any, step: int) -> None:
        raise KeyboardInterrupt

    update = training._Work.update
    with monkeypatch.context() as patched:
        patched.setattr(
            training._Work,
            "update",
            lambda work, step: update(work, step) if step < 3 else interrupted(work, step),
        )
        assert cli("recover", "sparse", *TRAINING, "--method", "bias", "-o", "OUT2").code == 2
    for changed, name in [
        (("--method", "masked"), "method"),
        (("--method", "bias", "--seed", "1"), "seed"),
        (("--method", "bias", "--steps", "13"), "steps"),
        (("--method", "bias", "--data", "other.txt"), "text"),
        (("--method", "bias", "--loss", "distill"), "loss"),
    ]:
        outcome = cli("recover", "sparse", *TRAINING, *changed, "-o", "OUT2", "--resume")
        assert outcome.code == 2, outcome.err
        assert f"--resume: {name} differs: " in outcome.err


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_state(
    here: Path, compressed: Callable[[str], Path], cli: Callable[..., Any], done: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    compressed("sparse")
    gradient = training._Work.gradient
    monkeypatch.setattr(
        training._Work,
        "gradient",
        lambda work, model, step: float("nan") if step == 5 and work.plan.learning_rate > 0.1
        else gradient(work, model, step),
    )  # fmt: skip
    asked = ("recover", "sparse", *TRAINING, "--method", "bias", "-o", "OUT2")
    outcome = cli(*asked, "--learning-rate", "0.5")
    assert outcome.code == 2
    last = outcome.err.splitlines()[-1]
    assert "step 6 of 12" in last
    assert "--resume" in last
    assert not (here / "OUT2").exists()
    done(*asked, "--learning-rate", "0.001", "--resume")
    assert (here / "OUT2").exists()


def cut_off(compressed: Callable[[str], Path], cli: Callable[..., Any], monkeypatch: Any) -> tuple[Any, Any]:
    """A recovery that was interrupted in its third step: its command, and what it told."""
    compressed("sparse")
    command = ("recover", "sparse", *TRAINING, "--method", "bias", "-o", "OUT2", "--quiet")
    usual = training._Work.update
    with monkeypatch.context() as patch:
        patch.setattr(
            training._Work, "update", lambda work, step: interrupt() if step == 3 else usual(work, step)
        )
        return command, cli(*command)


def test_who_interrupts_is_told_how_to_go_on(
    compressed: Callable[[str], Path], cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, outcome = cut_off(compressed, cli, monkeypatch)
    assert outcome.code == 2
    assert "OUT2.unfinished: go on with --resume" in outcome.err
    assert "run again" not in outcome.err


@pytest.mark.parametrize(
    "change",
    [{"step": -1}, {"step": 999}, {"step": "x"}, {"losses": "xxx"}, {"seconds": None}, {"settings": []}],
    ids=str,
)
def test_a_state_that_no_training_has_left_is_one_line(
    here: Path,
    compressed: Callable[[str], Path],
    cli: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
) -> None:
    command, _ = cut_off(compressed, cli, monkeypatch)
    path = here / "OUT2.unfinished/state.safetensors"
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        told = json.loads(file.metadata()["owl-compress"])
    save_file(tensors, path, metadata={"owl-compress": json.dumps(told | change)})
    outcome = cli(*command, "--resume")
    assert outcome.code == 2, outcome.err
    assert "is no unfinished recovery: start over with --overwrite" in outcome.err


@pytest.mark.parametrize("part", ["learned", "exp_avg"])
def test_a_state_with_other_tensors_is_one_line(
    here: Path,
    compressed: Callable[[str], Path],
    cli: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    part: str,
) -> None:
    command, _ = cut_off(compressed, cli, monkeypatch)
    path = here / "OUT2.unfinished/state.safetensors"
    tensors, name = load_file(path), f"{part}.model.norm.weight"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(tensors | {name: torch.zeros(3)}, path, metadata=metadata)
    assert "another shape or type of 'model.norm.weight'" in cli(*command, "--resume").err
    del tensors[name]
    save_file(tensors, path, metadata=metadata)
    outcome = cli(*command, "--resume")
    assert outcome.code == 2, outcome.err
    assert f"lacks '{name}'" in outcome.err


def test_a_learning_rate_that_is_far_too_high_is_one_line(
    here: Path, compressed: Callable[[str], Path], cli: Callable[..., Any]
) -> None:
    compressed("sparse")
    outcome = cli("recover", "sparse", *TRAINING, *METHODS["lora"], "-o", "OUT2", "--learning-rate", "1e38")
    assert outcome.code == 2
    assert "--learning-rate" in outcome.err.splitlines()[-1]
    assert not (here / "OUT2").exists()


def test_the_dense_model_teaches(
    here: Path, compressed: Callable[[str], Path], done: Callable[..., Any]
) -> None:
    compressed("sparse")
    named = done("recover", "sparse", *TRAINING, *METHODS["masked"], "--loss", "distill", "-o", "A", "--json")
    given = done(
        "recover", "sparse", *TRAINING, *METHODS["masked"], "--loss", "distill", "--teacher", MODEL,
        "-o", "B", "--json",
    )  # fmt: skip
    assert named.json["losses"] == given.json["losses"]
    assert named.json["losses"][-1] < named.json["losses"][0]
    assert named.json["teacher"]


def test_a_teacher_of_more_ids_is_refused(
    here: Path, compressed: Callable[[str], Path], cli: Callable[..., Any]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(compressed("sparse"))
    model.resize_token_embeddings(300)
    shutil.copytree(here / MODEL, here / "padded")
    model.save_pretrained(here / "padded")
    outcome = cli("recover", "sparse", *TRAINING, "--loss", "distill", "--teacher", "padded", "-o", "OUT2")
    assert outcome.code == 2, outcome.err
    assert "padded has 300 ids in its vocabulary and sparse 259" in outcome.err


def test_another_teacher_than_that_of_what_is_finished_is_named(
    here: Path, compressed: Callable[[str], Path], done: Callable[..., Any], cli: Callable[..., Any]
) -> None:
    compressed("sparse")
    shutil.copytree(here / MODEL, here / "other")
    asked = (
        "recover",
        "sparse",
        *TRAINING,
        "--method",
        "bias",
        "--loss",
        "distill",
        "-o",
        "OUT2",
        "--resume",
    )
    done(*asked, "--teacher", MODEL)
    done(*asked, "--teacher", here / MODEL)
    done(*asked)
    assert "and other is asked for" in cli(*asked, "--teacher", "other").err


def test_an_output_in_the_folder_that_is_read_is_refused(
    here: Path, compressed: Callable[[str], Path], cli: Callable[..., Any]
) -> None:
    before = sorted(compressed("sparse").iterdir())
    outcome = cli("recover", "sparse", *TRAINING, "-o", "sparse/adapter")
    assert outcome.code == 2, outcome.err
    assert "lies in sparse, which is read" in outcome.err
    assert sorted((here / "sparse").iterdir()) == before


def broken_report(folder: Path) -> None:
    (folder / "report.json").write_text("{")


def other_weights(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["model.layers.1.mlp.up_proj.weight"] += 1
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "told"), [(broken_report, "report.json"), (other_weights, "not as its plan says")]
)
def test_what_could_not_be_written_is_refused_before_the_training(
    here: Path,
    compressed: Callable[[str], Path],
    cli: Callable[..., Any],
    spoil: Callable[[Path], None],
    told: str,
) -> None:
    spoil(compressed("sparse"))
    outcome = cli("recover", "sparse", *TRAINING, "-o", "OUT2")
    assert outcome.code == 2, outcome.err
    assert told in outcome.err
    assert not (here / "OUT2.unfinished").exists()


def test_a_teacher_that_is_gone_is_named(
    here: Path, compressed: Callable[[str], Path], cli: Callable[..., Any]
) -> None:
    compressed("sparse")
    shutil.rmtree(here / MODEL)
    outcome = cli("recover", "sparse", *TRAINING, "--loss", "distill", "-o", "OUT2")
    assert outcome.code == 2
    assert MODEL in outcome.err.splitlines()[-1]
    assert "--against" not in outcome.err


def test_the_card_and_result_tell_of_it(
    here: Path, compressed: Callable[[str], Path], done: Callable[..., Any]
) -> None:
    compressed("sparse")
    done("recover", "sparse", *TRAINING, *METHODS["lora"], "-o", "OUT2")
    result = json.loads((here / "OUT2" / "result.json").read_text())
    (record,) = result["recoveries"]
    card = (here / "OUT2" / "README.md").read_text()
    assert "## Recovery" in card
    assert f"{record['after']['perplexity']:.3f}" in card
    assert 'PeftModel.from_pretrained(model, f"{folder}/adapter")' in card
    assert 'LoRARequest("adapter", 1, "path/to/this/folder/adapter")' in card
    assert "pretrained=path/to/this/folder,peft=path/to/this/folder/adapter" in card
    shown = done("show", "OUT2").out
    assert f"{record['before']['perplexity']:.3f}" in shown
    done("report", "OUT2", "-o", "page.html")
    assert "perplexity by recovery (lora" in (here / "page.html").read_text()
    n_bytes = sum(file.stat().st_size for file in (here / "OUT2").rglob("*.safetensors"))
    assert result["totals"]["bytes_on_disk"] == n_bytes
    assert (here / "OUT2" / "plan.json").read_text() == (here / "sparse" / "plan.json").read_text()


def test_the_recipe_still_makes_the_compression(
    here: Path, compressed: Callable[[str], Path], done: Callable[..., Any]
) -> None:
    compressed("sparse")
    (here / "below").mkdir()
    done("recover", "sparse", *TRAINING, *METHODS["bias"], "-o", "below/OUT2")
    done("run", "below/OUT2/recipe.yaml", "-o", "again", "--quiet")
    assert (here / "again" / WEIGHTS).read_bytes() == (here / "sparse" / WEIGHTS).read_bytes()


REFUSED = [
    (("--method", "lorra"), "lora"),
    (("--tokens", "many"), "tokens"),
    (("--tokens", "1k", "--steps", "3"), "--steps"),
    (("--steps", "0"), "steps"),
    (("--rank", "0"), "rank"),
    (("--rank", "9" * 23), "rank"),
    (("--rank", "4097"), "--rank 4097 is above "),
    (("--alpha", "inf"), "alpha"),
    (("--steps", "9" * 23), "steps"),
    (("--tokens", "9" * 23), "tokens"),
    (("--accumulate", "9" * 23), "accumulate"),
    (("--method", "bias", "--rank", "4"), "rank"),
    (("--teacher", "model"), "distill"),
    (("--loss", "distill", "--teacher", ""), "--teacher ''"),
    (("--loss", "kl"), "lm"),
    (("--learning-rate", "-1"), "learning-rate"),
    (("--learning-rate", "nan"), "learning-rate"),
    (("--warm-up", "1"), "warm-up"),
    (("--batch-size", "0"), "batch"),
    (("--accumulate", "0"), "accumulate"),
    (("--dtype", "float16"), "bfloat16"),
    (("--device", "gpu"), "cpu"),
    (("--data", "none.txt"), "none.txt"),
    (("--held-out", "none.txt"), "none.txt"),
    (("--seq-len", "4000"), "seq-len"),
    (("--batch-size", "9999"), "--batch-size"),
    (("--max-windows", "0"), "max-windows"),
    (("--method", ""), "lora"),
    (("--learning-rate", "inf"), "--learning-rate"),
]


@pytest.mark.parametrize(("given", "told"), REFUSED)
def test_a_bad_request_is_one_line_before_the_model_is_trained(
    here: Path, compressed: Callable[[str], Path], cli: Callable[..., Any], given: Any, told: str
) -> None:
    compressed("sparse")
    outcome = cli("recover", "sparse", "--data", "text.txt", "--seq-len", "32", *given, "-o", "OUT2")
    assert outcome.code == 2, outcome
    assert told in outcome.err.splitlines()[-1]
    assert not (here / "OUT2").exists()


def test_a_broken_configuration_is_named(
    here: Path, compressed: Callable[[str], Path], cli: Callable[..., Any]
) -> None:
    (compressed("sparse") / "config.json").write_text("{")
    outcome = cli("recover", "sparse", *TRAINING, "-o", "OUT2")
    assert outcome.code == 2
    assert "config.json" in outcome.err.splitlines()[-1]


def test_an_output_below_folders_that_are_missing_is_made_with_them(
    here: Path, compressed: Callable[[str], Path], done: Callable[..., Any]
) -> None:
    compressed("sparse")
    done("recover", "sparse", *TRAINING, *METHODS["bias"], "-o", "a/b/OUT2", "--resume")
    assert {path.name for path in (here / "a" / "b").iterdir()} == {"OUT2"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--backend", "rtn", "--bits", "4", "--group-size", "16"), "--format dense"),
        (COMPRESSIONS["quantized"], "bias"),
    ],
)
def test_codes_and_quantized_weights_are_refused_with_what_works(
    here: Path, done: Callable[..., Any], cli: Callable[..., Any], options: Any, told: str
) -> None:
    done("run", MODEL, *options, *CALIBRATION, "-o", "OUT")
    outcome = cli("recover", "OUT", *TRAINING, "--method", "masked", "-o", "OUT2")
    assert outcome.code == 2
    assert told in outcome.err.splitlines()[-1]


def test_a_model_that_was_not_compressed_is_refused(cli: Callable[..., Any]) -> None:
    outcome = cli("recover", MODEL, *TRAINING, "-o", "OUT2")
    assert outcome.code == 2
    assert "result.json" in outcome.err.splitlines()[-1]


def test_a_text_that_is_shorter_is_seen_again(
    here: Path, compressed: Callable[[str], Path], done: Callable[..., Any]
) -> None:
    compressed("sparse")
    record = done(
        "recover", "sparse", "--data", "other.txt", "--seq-len", "32", "--tokens", "3k", *METHODS["bias"],
        "-o", "OUT2", "--json",
    ).json  # fmt: skip
    assert record["tokens"] >= 3000
    assert record["text"]["sequences"] * 32 < 3000


@pytest.mark.parametrize("tokens", [64, "64"])
def test_tokens_may_be_a_number_in_python(tokens: Any) -> None:
    assert RecoveryOptions.of({"tokens": tokens}).tokens == "64"
