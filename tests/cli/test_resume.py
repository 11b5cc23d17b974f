"""`--resume` of commands that write a file: cut off anywhere, they go on to the same file, bit by bit."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from owl_compress.documents import notes
from owl_compress.documents.temporary import locked
from owl_compress.errors import RequestError
from owl_compress.pipeline.unfinished import kept_until_written
from owl_compress.walk import kept_states
from owl_compress.walk.ranks import Ranks

Command = Callable[..., Any]

TEXT = ("--calib", "text.txt", "--samples", "2", "--seq-len", "32", "--device", "cpu")
DAMAGE = ("--damage-samples", "2", "--damage-len", "16")
MEASURE = ("measure", "model", *TEXT)
PROFILE = ("sensitivity", "model", *TEXT, *DAMAGE, "--backend", "wanda", "--levels", "0.3,0.6")
REFINE = ("refine", "model", "--plan", "bad.json", *TEXT, *DAMAGE, "--backend", "wanda")
EVOLVE = (*REFINE, "--method", "evo", "--generations", "2", "--offspring", "4")
COMMANDS = {
    "measure": MEASURE,
    "measure-from-a-file": (*MEASURE, "--activations", "disk"),
    "measure-by-gram": (*MEASURE, "--metric", "reconstruction_error"),
    "sensitivity": PROFILE,
    "sensitivity-of-widths": (
        "sensitivity", "model", *TEXT, *DAMAGE, "--backend", "structured", "--round-to", "8",
        "--measure", "output-error", "--levels", "0.4,0.7", "--part", "block",
    ),
    "refine": (*REFINE, "--max-cost", "2k"),
    "refine-on-dense-statistics": (*REFINE, "--statistics", "dense", "--max-cost", "2k"),
    "refine-by-evolution": EVOLVE,
}  # fmt: skip


@pytest.fixture(autouse=True)
def states_are_always_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_states, "SHARE_OF_TIME", float("inf"))


@pytest.fixture
def cut_off(cli: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command with --resume until it is about to take its so-manieth note, then ends it."""

    def run(after: int, *arguments: str) -> Any:
        step, in_place = [0], notes.put_in_place

        def counted(path: Path) -> Any:
            if path.name != "backend.json":  # says what is made, and is nothing of it
                if step[0] == after:
                    raise KeyboardInterrupt
                step[0] += 1
            return in_place(path)

        with monkeypatch.context() as patched:
            patched.setattr(notes, "put_in_place", counted)
            return cli(*arguments, "--resume", "--quiet")

    return run


def left_over(here: Path) -> set[str]:
    return {path.name for path in here.iterdir() if "unfinished" in path.name or path.name.startswith(".")}


@pytest.mark.parametrize(
    ("name", "n_notes"),
    [
        *((name, 2 if "refine" in name else 1) for name in COMMANDS if "dense" not in name),
        *(pytest.param(name, 1, marks=pytest.mark.slow) for name in COMMANDS if "refine" in name),
    ],
)
def test_cut_off_after_every_few_notes_it_ends_in_the_same_file(
    name: str, n_notes: int, here: Path, done: Command, bad: Path, cut_off: Command
) -> None:
    command = COMMANDS[name]
    whole = done(*command, "-o", "whole.json", "--json", "--quiet").json
    attempts = 0
    while (outcome := cut_off(n_notes, *command, "-o", "out.json")).code:
        assert outcome.err.endswith(
            f"what was measured so far is kept in {here / 'out.json.unfinished'}; --resume goes on with it\n"
        )
        assert not (here / "out.json").exists()
        attempts += 1
    assert attempts >= 2
    assert (here / "out.json").read_bytes() == (here / "whole.json").read_bytes()
    assert left_over(here) == set()
    if name.startswith("refine"):  # what it cost, and what was tried, is the same, too
        cut_off(attempts * n_notes // 2, *command, "-o", "again.json")
        assert done(*command, "-o", "again.json", "--resume", "--json").json == whole


def test_blocks_whose_outcome_is_kept_are_not_run_again(
    here: Path, done: Command, cut_off: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(2, *MEASURE, "-o", "out.json")
    assert (here / "out.json.unfinished/states.safetensors").exists()
    run, original = list[int](), LlamaDecoderLayer.forward

    def noted(self: Any, *given: Any, **named: Any) -> Any:
        if given[0].shape[1] > 1:  # the walk has a look at how a block is called, with one token
            run.append(self.self_attn.layer_idx)
        return original(self, *given, **named)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", noted)
    monkeypatch.setattr("owl_compress.importance.estimator.settled_structure", lambda _, found, *__: found)
    told = done(*MEASURE, "-o", "out.json", "--resume").err
    assert f"loading model, to go on with what is kept in {here / 'out.json.unfinished'}\n" in told
    assert run == [2, 2]  # two sequences


@pytest.mark.parametrize(
    ("command", "changes", "message"),
    [
        (MEASURE, ("--samples", "3"), "text of the calibration (token ids) differs: "),
        (MEASURE, ("--metric", "reconstruction_error"), "--metric differs: "),
        (MEASURE, ("--batch-size", "2"), "--batch-size differs: 1 in the unfinished"),
        (PROFILE, ("--measure", "loss"), "--measure differs: absent in the unfinished"),
        (PROFILE, ("--levels", "0.3,0.7"), "--levels differs: "),
        (PROFILE, ("--damage-samples", "3"), "--damage-samples differs: 2 in "),
        (REFINE, ("--pairs", "1"), "--pairs differs: 3 in "),
        (REFINE, ("--max-cost", "3k"), "--max-cost differs: absent in "),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_another_request_is_refused_by_what_differs(
    here: Path, bad: Path, cut_off: Command, refused: Command,
    command: tuple[str, ...], changes: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    cut_off(1, *command, "-o", "out.json")
    told = refused(*command, *changes, "-o", "out.json", "--resume")
    assert message in told
    assert told.endswith("now; give what was given then, or remove out.json.unfinished to start over")


def test_another_plan_model_or_text_is_refused(
    here: Path, bad: Path, cut_off: Command, refused: Command, edit_json: Callable[..., None]
) -> None:
    cut_off(1, *REFINE, "-o", "out.json")
    edit_json(bad, lambda plan: plan["allocator"].update(name="other"))
    assert "the plan differs: " in refused(*REFINE, "-o", "out.json", "--resume")
    cut_off(1, *PROFILE, "-o", "profile.json")
    (here / "text.txt").write_text(" ".join(map(str, range(1000))))
    assert "text of the calibration (token ids) differs" in refused(
        *PROFILE, "-o", "profile.json", "--resume"
    )
    os.utime(here / "model/model.safetensors", ns=(1, 1))
    assert "file model.safetensors of the model differs" in refused(
        *PROFILE, "-o", "profile.json", "--resume"
    )


def test_what_was_begun_is_neither_ignored_nor_lost(here: Path, cut_off: Command, refused: Command) -> None:
    cut_off(1, *MEASURE, "-o", "out.json")
    begun = "what was begun of out.json lies in "
    assert refused(*MEASURE, "-o", "out.json").startswith(begun)
    with locked(here / "out.json.unfinished") as is_ours:
        assert is_ours
        for resume in ((), ("--resume",)):
            told = refused(*MEASURE, "-o", "out.json", *resume)
            assert told == "another process is making out.json: wait for it, or name another output"


def test_a_full_disk_leaves_what_was_measured(
    here: Path, done: Command, cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Any, path: Path, **__: Any) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(kept_states, "save_file", full)
        outcome = cli(*MEASURE, "-o", "out.json", "--resume", "--quiet")
    folder = here / "out.json.unfinished"
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert "disk full while writing " in outcome.err
    assert f"(what was measured so far is kept in {folder}; --resume goes on with it)" in outcome.err
    assert {path.name for path in folder.iterdir()} == {"head.json", "model.layers.0.json"}
    done(*MEASURE, "-o", "out.json", "--resume")
    done(*MEASURE, "-o", "whole.json")
    assert (here / "out.json").read_bytes() == (here / "whole.json").read_bytes()


def test_what_is_done_goes_at_once(here: Path, done: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("owl_compress.pipeline.unfinished.shutil.rmtree", lambda *_, **__: None)
        done(*MEASURE, "-o", "out.json", "--resume")
    (left,) = left_over(here)  # as if the process had been killed before it was gone
    number = left.split("-")[1].partition(".")[0]
    (here / left).rename(here / left.replace(f"-{number}.", "-99999999."))  # no process has that number
    done(*MEASURE, "-o", "out.json", "--resume")
    assert left_over(here) == set()


def test_several_processes_do_not_resume(here: Path) -> None:
    out = here / "out.json"
    with (
        pytest.raises(RequestError, match="--resume is for one process: start it without torchrun"),
        kept_until_written(out, resume=True, ranks=Ranks(1, 2)),
    ):
        pass
    assert not out.with_name("out.json.unfinished").exists()


def test_what_was_kept_and_is_broken_is_told(
    here: Path, done: Command, cut_off: Command, refused: Command
) -> None:
    cut_off(2, *MEASURE, "-o", "out.json")
    kept = here / "out.json.unfinished"
    for name in ("model.layers.0.json", "states.safetensors"):
        whole = (kept / name).read_bytes()
        (kept / name).write_bytes(whole[:-20])
        assert name in refused(*MEASURE, "-o", "out.json", "--resume")
        (kept / name).write_bytes(whole)
    head = (kept / "head.json").read_text()
    (kept / "head.json").write_text(head[:-20])
    told = refused(*MEASURE, "-o", "out.json", "--resume")
    assert "head.json is not whole JSON" in told
    assert "remove out.json.unfinished to start over" in told
    assert "goes on with it" not in told
    (kept / "head.json").unlink()
    assert "lacks head.json, which says what it is of: remove" in refused(
        *MEASURE, "-o", "out.json", "--resume"
    )
    (kept / "head.json").write_text(head)
    (kept / "model.layers.0.json").unlink()
    assert "what was measured of model.layers.0 is gone" in refused(*MEASURE, "-o", "out.json", "--resume")
    (kept / "states.safetensors").unlink()
    done(*MEASURE, "-o", "out.json", "--resume")
    done(*MEASURE, "-o", "whole.json")
    assert (here / "out.json").read_bytes() == (here / "whole.json").read_bytes()


@pytest.mark.parametrize(
    ("command", "changes", "message"),
    [
        (MEASURE, ("--samples", "3"), "out.json is finished, and the calibration text differs: "),
        (MEASURE, ("--metric", "reconstruction_error"), "out.json is finished, and --metric differs: "),
        (PROFILE, ("--levels", "0.3,0.7"), "out.json is finished, and --levels differs: [0.3] there, [0.3, "),
        (PROFILE, ("--measure", "loss"), "out.json is finished, and --measure differs: kl there, loss now"),
        (PROFILE, ("--backend", "magnitude"), "the profile is of backend 'wanda', not of 'magnitude'"),
        (PROFILE, ("--positions", "8"), "out.json is finished, and --positions differs: 26 there, 8 now"),
        (PROFILE, ("--skip", "*.q_proj"), "what is measured (--skip, --parts) differs: with model.layers.0."),
        (PROFILE, ("--damage-samples", "3"), "out.json is finished, and the damage text differs: "),
        (REFINE, ("--pairs", "1"), "out.json is finished, and --pairs differs: 3 there, 1 now; name another"),
        (REFINE, ("--positions", "8"), "out.json is finished, and --positions differs: 256 there, 8 now"),
        (REFINE, ("--max-cost", "9k"), "out.json is finished, and --max-cost differs: None there, 9000.0 "),
        (REFINE, ("--scope", "linear"), "out.json is finished, and --scope differs: row there, linear now"),
        (REFINE, ("--statistics", "sequential"), "out.json is finished, and --statistics differs: dense"),
        (REFINE, ("--samples", "3"), "out.json is finished, and the statistics text differs: "),
        (REFINE, ("--damage-len", "17"), "out.json is finished, and the choosing text differs: "),
        (EVOLVE, ("--offspring", "5"), "out.json is finished, and --offspring differs: 4 there, 5 now"),
        (EVOLVE, ("--generations", "3"), "out.json is finished, and --generations differs: 2 there, 3 now"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_what_is_finished_is_not_done_again(
    here: Path, done: Command, bad: Path, refused: Command,
    command: tuple[str, ...], changes: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    first = done(*command, "-o", "out.json", "--resume", "--json").json
    before = (here / "out.json").stat().st_mtime_ns
    again = done(*command, "-o", "out.json", "--resume", "--json")
    assert again.err.endswith("out.json is finished already\n")
    assert again.json == (first if "plan" not in first else {"plan": first["plan"]})
    assert (here / "out.json").stat().st_mtime_ns == before
    assert message in refused(*command, *changes, "-o", "out.json", "--resume")


def test_a_plan_as_it_came_is_told_from_a_refined_one(here: Path, done: Command, bad: Path) -> None:
    (here / "out.json").write_text(bad.read_text())
    told = done(*REFINE, "-o", "out.json", "--resume").err
    assert "out.json is finished already: it is the plan as it came, which does not say how" in told


def test_a_profile_that_is_extended_in_place_goes_on(here: Path, done: Command, cut_off: Command) -> None:
    done(*PROFILE, "-o", "out.json")
    done(*PROFILE[:-2], "--levels", "0.3,0.45,0.8", "--extend", "out.json", "-o", "whole.json")
    more = (*PROFILE[:-2], "--levels", "0.3,0.45,0.8", "--extend", "out.json", "-o", "out.json")
    while cut_off(1, *more).code:
        assert [*json.loads((here / "out.json").read_text())["parts"][0]["levels"]] == [0.3, 0.6, 1.0]
    assert (here / "out.json").read_bytes() == (here / "whole.json").read_bytes()


_KILLED = """
import os, signal, sys
from owl_compress.documents import notes
from owl_compress.cli import main

last, step, in_place = int(sys.argv.pop(1)), [0], notes.put_in_place

def counted(path):
    step[0] += 1
    if step[0] == last:
        path.with_name(".half.partial").write_bytes(b"half of it")
        os.kill(os.getpid(), signal.SIGKILL)
    return in_place(path)

notes.put_in_place = counted
main()
"""


@pytest.mark.parametrize(
    "name", ["measure", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sensitivity", "refine"))]
)
def test_a_killed_one_goes_on_to_the_same_file(name: str, here: Path, done: Command, bad: Path) -> None:
    command = COMMANDS[name]
    child = subprocess.run(
        [sys.executable, "-c", _KILLED, "2", *command, "-o", "out.json", "--resume"],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert child.returncode == -9, child.stderr
    assert not (here / "out.json").exists()
    done(*command, "-o", "out.json", "--resume")
    done(*command, "-o", "whole.json")
    assert (here / "out.json").read_bytes() == (here / "whole.json").read_bytes()
    assert left_over(here) == set()
