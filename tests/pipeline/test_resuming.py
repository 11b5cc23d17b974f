"""A run that was cut off goes on to the same checkpoint, and nothing else is taken for it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from owl_compress.backends.structured import Structured
from owl_compress.checkpoints.tensors import tensor_files, tensor_from_checkpoint
from owl_compress.compression.driver import WalkOptions, compress_with_
from owl_compress.compression.journal import Journal
from owl_compress.documents import notes
from owl_compress.documents.plan import Plan
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.result import MethodRecord
from owl_compress.documents.temporary import locked
from owl_compress.errors import RequestError
from owl_compress.importance.estimator import outline
from owl_compress.pipeline.execution import execute, run
from owl_compress.pipeline.session import Session

OPTIONS = {
    "model": "model", "calib": "text.txt", "samples": 4, "seq_len": 32, "data": "other.txt",
    "allocator": "owl", "backend": "wanda", "sparsity": 0.6,
}  # fmt: skip
WIDTHS = {
    "allocator": "uniform", "backend": "structured", "sparsity": None, "prune_ratio": 0.4, "round_to": 8,
}  # fmt: skip
GPTQ = {"backend": "gptq", "sparsity": None, "bits": 3, "bit_choices": "2,3,4", "group_size": 8}


def ran(out: str, *, resume: bool = False, overwrite: bool = False, **options: Any) -> Any:
    given = {name: value for name, value in {**OPTIONS, **options}.items() if value is not None}
    return run(Recipe.from_options(given), out, resume=resume, overwrite=overwrite)


def equal_widths(model: Any, share: float) -> Plan:
    """The same share of every linear."""
    report = outline(model)
    budgets = [
        {"name": one.name, "block": block.name, "n_weights": one.n_weights, "value": share}
        for block in report.blocks
        for one in block.linears
    ]
    content = {"unit": "width", "target": share, "grid": None, "low": 0.0, "high": 1.0, "report": "none"}
    return Plan.model_validate({**content, "allocator": {"name": "uniform"}, "budgets": budgets})


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor_from_checkpoint(folder, name) for name in tensor_files(folder)}


def check_same(one: Path, other: Path) -> None:
    expected, found = tensors_of(one), tensors_of(other)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs until so many blocks are done, then ends as with Ctrl-C; gives what is said of it."""

    def run_until(n_blocks: int, **options: Any) -> str:
        note = Journal.note

        def noted(journal: Journal, *arguments: Any) -> Any:
            if journal.n_finished == n_blocks:
                raise KeyboardInterrupt
            return note(journal, *arguments)

        monkeypatch.setattr(Journal, "note", noted)
        with pytest.raises(KeyboardInterrupt) as ended:
            ran("out", resume=True, **options)
        monkeypatch.setattr(Journal, "note", note)
        return str(ended.value)

    return run_until


@pytest.mark.parametrize("offload", ["host", "disk"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"backend": "sparsegpt", "allocator": "uniform", "sparsity": None, "nm": "2:4"},
        {"statistics": "dense"},
        {"allocator": "uniform", "scope": "model"},
        WIDTHS,
        GPTQ,
    ],
    ids=["wanda", "sparsegpt", "dense-statistics", "model-wide", "structured", "gptq"],
)
def test_a_run_that_goes_on_ends_in_the_same_bits(
    here: Path, cut_off: Callable[..., str], options: dict[str, Any], offload: str
) -> None:
    if options is GPTQ:
        pytest.importorskip("compressed_tensors")
    whole = ran("whole", **options)
    cut_off(2, offload=offload, **options)
    assert not (here / "out").exists()
    resumed = ran("out", resume=True, offload=offload, **options)
    check_same(here / "whole", here / "out")
    assert resumed.plan == whole.plan
    assert resumed.result.evaluation == whole.result.evaluation
    assert [row.achieved for row in resumed.result.budgets] == [row.achieved for row in whole.result.budgets]
    assert any("2 blocks were done before" in note for note in resumed.result.notes)
    assert not (here / "out.unfinished").exists()


@pytest.mark.parametrize(
    ("options", "form"),
    [
        ({}, "narrow"),
        ({"allocator": "owl", "repair": True, "samples": 3}, "narrow"),
        ({"uniform_width": True}, "stock"),
        ({"importance": "taylor", "allow_empty": True, "prune_ratio": 0.8}, "narrow"),
    ],
    ids=["survey", "repair-of-what-was-measured", "uniform", "gradients-and-empty-parts"],
)
def test_blocks_that_lost_heads_and_channels_are_gone_on_with(
    here: Path, cut_off: Callable[..., str], options: dict[str, Any], form: str
) -> None:
    whole = ran("whole", **WIDTHS | options)
    cut_off(2, **WIDTHS | options)
    resumed = ran("out", resume=True, **WIDTHS | options)
    check_same(here / "whole", here / "out")
    assert resumed.plan == whole.plan
    assert resumed.result.evaluation == whole.result.evaluation
    assert resumed.result.footprint == whole.result.footprint
    assert [row.achieved for row in resumed.result.budgets] == [row.achieved for row in whole.result.budgets]
    assert (here / "out/config.json").read_bytes() == (here / "whole/config.json").read_bytes()
    assert (here / "out/modeling_narrow.py").exists() == (form == "narrow")


@pytest.mark.parametrize("name", ["opt", "gpt2", "bloom", "falcon_alibi"])
def test_a_narrowed_block_of_any_family_is_put_back_as_it_was(
    name: str, tmp_path: Path, make_model: Callable[[str], Any], make_windows: Callable[..., Any]
) -> None:
    windows, backend = make_windows(2, 16), Structured(round_to=4)
    first, second = make_model(name), make_model(name)
    plan = equal_widths(first, 0.5)
    compress_with_(first, plan, backend, windows, WalkOptions(journal=Journal(tmp_path)))
    compress_with_(second, plan, backend, windows, WalkOptions(journal=(again := Journal(tmp_path))))
    assert again.n_restored == again.n_finished > 0
    assert second.state_dict().keys() == first.state_dict().keys()
    assert all(torch.equal(value, first.state_dict()[key]) for key, value in second.state_dict().items())
    with torch.no_grad():
        expected, found = (model(input_ids=windows.ids).logits for model in (first, second))
    assert torch.equal(found, expected)


def test_what_a_backend_left_to_memory_is_compared(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.settle(MethodRecord(name="structured", parameters={"importance": "taylor", "round_to": 8}))
    journal.settle(MethodRecord(name="structured", parameters={"importance": "taylor", "round_to": 8}))
    with pytest.raises(RequestError, match=r"left to choose importance by the memory .* taylor and is wanda"):
        journal.settle(MethodRecord(name="structured", parameters={"importance": "wanda", "round_to": 8}))


PROFILED = {"allocator": "sensitivity", "damage_samples": 2, "damage_len": 16, "levels": "0.2,0.4,0.6"}


@pytest.mark.parametrize(
    ("options", "step_of"),
    [
        ({"statistics": "sequential"}, "measured"),
        ({"statistics": "dense"}, "measured"),
        ({"statistics": "dense", "allocator": "uniform", "data": None}, "seen"),
        (PROFILED, "sensitivity"),
    ],
    ids=["report", "report and statistics", "statistics", "profile"],
)
def test_what_is_measured_on_the_way_goes_on_too(
    here: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], step_of: str
) -> None:
    whole = ran("whole", **options)
    step, in_place = [0], notes.put_in_place

    def counted(path: Path) -> Any:
        step[0] += 1
        if step[0] == 3:
            raise KeyboardInterrupt
        return in_place(path)

    with monkeypatch.context() as patched:
        patched.setattr(notes, "put_in_place", counted)
        kept = f"what was measured so far is kept in {here / 'out.unfinished'}; --resume goes on with it"
        with pytest.raises(KeyboardInterrupt, match=re.escape(kept)):
            ran("out", resume=True, **options)
    assert len([*(here / "out.unfinished" / step_of).glob("*.json")]) == 2
    resumed = ran("out", resume=True, **options)
    assert (resumed.report, resumed.profile, resumed.plan) == (whole.report, whole.profile, whole.plan)
    check_same(here / "whole", here / "out")


def test_what_was_measured_is_not_measured_again(
    here: Path, cut_off: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(1)
    monkeypatch.delattr("owl_compress.pipeline.reports.measure_with_statistics")
    monkeypatch.delattr("owl_compress.compression.driver.gather_dense")
    ran("out", resume=True)
    assert (here / "out/report.json").exists()


def test_blocks_on_other_inputs_are_not_gone_on_with(
    here: Path, cut_off: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(2)
    monkeypatch.setattr("owl_compress.backends.wanda._DENSE_FROM", 0.5)  # as another version might have it
    with pytest.raises(
        RequestError, match=r"statistics differs: dense in the unfinished run .* sequential now"
    ):
        ran("out", resume=True)


def test_the_interruption_says_what_is_kept(here: Path, cut_off: Callable[..., str]) -> None:
    kept = f"2 of 3 blocks are done and kept in {here / 'out.unfinished'}; --resume goes on with them"
    assert cut_off(2) == f"interrupted: {kept}"
    told: list[str] = []
    execute(Session.open(Recipe.from_options(OPTIONS), announce=told.append), here / "out", resume=True)
    assert told[0].startswith(
        f"going on with {here / 'out.unfinished'}, where 2 of 3 blocks are done; a time"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0.7}, r"--sparsity differs: 0\.6 in the unfinished run in .*out\.unfinished, 0\.7 now"),
        ({"batch_size": 2}, r"--batch-size differs: absent .*, 2 now"),
        ({"samples": 3}, r"--samples differs"),
        ({"lam": 0.02}, r"--lam differs"),
    ],
)
def test_another_request_is_refused_by_what_differs(
    here: Path, cut_off: Callable[..., str], options: dict[str, Any], message: str
) -> None:
    cut_off(1)
    with pytest.raises(RequestError, match=message):
        ran("out", resume=True, **options)
    assert (here / "out.unfinished/head.json").exists()


def test_another_text_under_the_same_name_is_refused(here: Path, cut_off: Callable[..., str]) -> None:
    cut_off(1)
    (here / "text.txt").write_text("something else entirely, " * 200)
    with pytest.raises(RequestError, match=r"text of the calibration \(token ids\) differs"):
        ran("out", resume=True)


def test_another_text_of_damage_under_the_same_name_is_refused(
    here: Path, cut_off: Callable[..., str]
) -> None:
    (here / "damage.txt").write_text((here / "text.txt").read_text())
    options = {
        "allocator": "sensitivity", "damage_data": "damage.txt", "damage_samples": 2, "damage_len": 16,
        "levels": "0.3,0.6", "part": "block",
    }  # fmt: skip
    cut_off(0, **options)
    (here / "damage.txt").write_text((here / "other.txt").read_text())
    with pytest.raises(RequestError, match="text of the damage differs"):
        ran("out", resume=True, **options)


def test_other_weights_under_the_same_name_are_refused(here: Path, cut_off: Callable[..., str]) -> None:
    cut_off(1)
    os.utime(here / "model/model.safetensors", ns=(1, 1))
    with pytest.raises(RequestError, match=r"file model\.safetensors of the model differs: .* bytes of "):
        ran("out", resume=True)


def test_another_version_is_refused(here: Path, cut_off: Callable[..., str]) -> None:
    cut_off(1)
    head = here / "out.unfinished/head.json"
    content = json.loads(head.read_text())
    content["depends_on"]["version of torch"] = "1.0"
    head.write_text(json.dumps(content))
    with pytest.raises(RequestError, match=r"version of torch differs: 1\.0 in the unfinished run"):
        ran("out", resume=True)


def test_another_plan_is_refused(here: Path, cut_off: Callable[..., str]) -> None:
    ran("first", allocator="uniform")
    ran("second", allocator="uniform", sparsity=0.5)
    given = {"allocator": None, "sparsity": None}
    cut_off(1, plan="first/plan.json", **given)
    with pytest.raises(RequestError, match=r"the plan differs: "):
        ran("out", resume=True, plan="second/plan.json", **given)


def test_an_unfinished_run_is_neither_ignored_nor_lost(here: Path, cut_off: Callable[..., str]) -> None:
    cut_off(1)
    with pytest.raises(
        RequestError, match=r"an unfinished run lies in .*: go on with --resume, or start over"
    ):
        ran("out")
    ran("out", overwrite=True)
    assert (here / "out/result.json").exists()
    assert not (here / "out.unfinished").exists()


def test_what_is_not_ours_stays(here: Path) -> None:
    notes = here / "out.unfinished/notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    with pytest.raises(RequestError, match=r"was not written by owl-compress, .*: move it elsewhere"):
        ran("out", overwrite=True)
    with pytest.raises(RequestError, match=r"lacks head\.json, .*: remove it, or name another output"):
        ran("out", resume=True)
    assert notes.read_text() == "mine"


def test_one_process_at_a_time_makes_an_output(here: Path, cut_off: Callable[..., str]) -> None:
    cut_off(1)
    with locked(here / "out.unfinished") as is_ours:
        assert is_ours
        with pytest.raises(RequestError, match="another process is making out: wait for it"):
            ran("out", resume=True)


def test_a_finished_run_is_handed_back(here: Path) -> None:
    first = ran("out", resume=True)
    before = (here / "out/result.json").stat().st_mtime_ns
    again = ran("out", resume=True)
    assert again.result == first.result
    assert (here / "out/result.json").stat().st_mtime_ns == before
    with pytest.raises(RequestError, match=r"out is finished, with --sparsity 0\.6, and 0\.7 is asked for"):
        ran("out", resume=True, sparsity=0.7)


def test_a_finished_run_is_known_by_options_as_they_are_typed(here: Path) -> None:
    options = {"backend": "gptq", "sparsity": None, "bits": 3, "bit_choices": "3", "group_size": "8"}
    first = ran("out", resume=True, **options)
    assert ran("out", resume=True, **options).result == first.result
    with pytest.raises(RequestError, match="with --group-size 8, and 16 is asked for"):
        ran("out", resume=True, **{**options, "group_size": "16"})


@pytest.mark.parametrize("name", ["model.layers.0.safetensors", "model.layers.0.json", "backend"])
def test_what_was_kept_and_is_broken_is_told(here: Path, cut_off: Callable[..., str], name: str) -> None:
    cut_off(2)
    file = here / "out.unfinished/blocks" / name
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(RequestError, match=rf"{name}"):
        ran("out", resume=True)
    assert not (here / "out").exists()


def test_a_disk_that_is_full_from_the_start_leaves_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("owl_compress.pipeline.unfinished.put_in_place", full)
        with pytest.raises(RequestError, match="disk full"):
            ran("out", resume=True)
    assert not (here / "out.unfinished").exists()
    ran("out")


def test_a_full_disk_in_the_middle_of_a_block_leaves_the_finished_ones(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: Any, path: Path, **options: Any) -> None:
        if "layers.1" in next(iter(tensors)):
            path.write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        save_file(tensors, path, **options)

    monkeypatch.setattr("owl_compress.compression.journal.save_file", full)
    with pytest.raises(RequestError, match=r"disk full .*1 of 3 blocks are done"):
        ran("out", resume=True)
    monkeypatch.setattr("owl_compress.compression.journal.save_file", save_file)
    assert not list((here / "out.unfinished/blocks").glob("*partial"))
    ran("whole")
    ran("out", resume=True)
    check_same(here / "whole", here / "out")


_KILLED = """
import os, signal, sys
from owl_compress.compression import journal
from owl_compress.documents.recipe import Recipe
from owl_compress.pipeline.execution import run

step, stop = [0], int(sys.argv[1])
in_place = journal.put_in_place

def counted(path):
    step[0] += 1
    if step[0] == stop:
        os.kill(os.getpid(), signal.SIGKILL)
    return in_place(path)

journal.put_in_place = counted
run(Recipe.from_options(eval(sys.argv[2])), "out", resume=True)
"""


def test_a_killed_run_goes_on_to_the_same_bits(here: Path) -> None:
    ran("whole")
    for stop in (2, 4):
        child = subprocess.run(
            [sys.executable, "-c", _KILLED, str(stop), repr(OPTIONS | {"offload": "disk"})],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert child.returncode == -9, child.stderr
        assert not (here / "out").exists()
    ran("out", resume=True, offload="disk")
    check_same(here / "whole", here / "out")
    assert sorted(path.name for path in here.iterdir() if "out" in path.name) == ["out"]
