"""`sensitivity`: the profile that is written, added to, allocated from, and refused."""

import json
import re
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from owl_compress.backends.wanda import Wanda
from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.importance.damage import Divergence

TEXT = ("--calib", "text.txt", "--samples", "2", "--seq-len", "32")
SHORT = (*TEXT, "--damage-samples", "2", "--damage-len", "32")
"""Little text, so that there is room beside it."""


@pytest.fixture
def measure(done: Callable[..., Any], here: Path) -> Callable[..., SensitivityProfile]:
    """A function that writes a profile of the tiny model and reads it again."""

    def run(out: str, *options: str) -> SensitivityProfile:
        done("sensitivity", "model", *SHORT, *options, "-o", out, "--quiet")
        return SensitivityProfile.read(here / out)

    return run


class TestWhatIsWritten:
    def test_shares_are_kept_and_come_in_order(self, measure: Callable[..., SensitivityProfile]) -> None:
        profile = measure("s.json", "--levels", "0.5,0.25")
        assert [part.name for part in profile.parts] == [f"model.layers.{index}" for index in range(3)]
        for part in profile.parts:
            assert part.levels == (0.25, 0.5, 1.0)
            assert part.damage[0] > part.damage[1] > part.damage[2] == 0
        assert (profile.backend.name, profile.measure, profile.grid) == ("wanda", "kl", None)

    def test_n_of_m_sets_the_grid(self, measure: Callable[..., SensitivityProfile]) -> None:
        profile = measure("s.json", "--levels", "2:8,6:8")
        assert profile.grid is not None
        assert profile.grid.kept_of == 8
        assert {part.levels for part in profile.parts} == {(0.25, 0.75, 1.0)}

    def test_parts_are_those_asked_for(self, measure: Callable[..., SensitivityProfile]) -> None:
        options = ("--backend", "rtn", "--group-size", "16", "--levels", "2,4")
        profile = measure("s.json", *options, "--skip", "model.layers.[12]", "--measure", "output-error")
        assert [part.kind for part in profile.parts] == ["tied"] * 4
        assert {part.block for part in profile.parts} == {"model.layers.0"}
        assert {part.levels for part in profile.parts} == {(2.0, 4.0)}
        assert profile.positions is None

    def test_the_same_command_gives_the_same_bytes(
        self, measure: Callable[..., SensitivityProfile], here: Path
    ) -> None:
        for out in ("one.json", "two.json"):
            measure(out, "--levels", "0.25,0.5")
        assert Path("one.json").read_bytes() == Path("two.json").read_bytes()

    def test_cost_is_told_first_and_the_table_last(self, done: Callable[..., Any], here: Path) -> None:
        told = done("sensitivity", "model", *SHORT, "--levels", "0.25,0.5", "-o", "s.json")
        assert "6 trials, as much as 448 tokens through the model" in told.err
        title, heading, *rows = told.out.splitlines()
        assert title == "Damage (kl) of model by wanda, block by block"
        assert heading.split() == ["part", "weights", "0.25", "0.5"]
        assert len([row for row in rows if row.split()[1:2] == ["9,216"]]) == 3

    def test_json_is_the_file(self, done: Callable[..., Any], here: Path) -> None:
        found = done("sensitivity", "model", *SHORT, "--levels", "0.25,0.5", "-o", "s.json", "--json").json
        assert found == json.loads(Path("s.json").read_text())


class TestExtending:
    def test_only_what_is_missing_is_measured(
        self, measure: Callable[..., SensitivityProfile], done: Callable[..., Any], here: Path
    ) -> None:
        before = measure("s.json", "--levels", "0.25,0.5")
        told = done(
            "sensitivity", "model", "--calib", "text.txt", "--extend", "s.json", "--levels", "0.75",
            "-o", "s.json",
        )  # fmt: skip
        assert "3 trials" in told.err
        whole = measure("whole.json", "--levels", "0.25,0.5,0.75")
        extended = SensitivityProfile.read("s.json")
        assert extended.parts == whole.parts
        assert extended.forward_tokens > before.forward_tokens

    def test_model_and_text_may_be_named_from_elsewhere(
        self, measure: Callable[..., SensitivityProfile], done: Callable[..., Any], here: Path
    ) -> None:
        measure("s.json", "--levels", "0.25,0.5")
        options = ("--calib", str(here / "text.txt"), "--extend", "s.json", "--levels", "0.25,0.75")
        told = done("sensitivity", str(here / "model"), *options, "-o", "s.json")
        assert "3 trials" in told.err

    def test_parts_are_added_where_they_belong(self, measure: Callable[..., SensitivityProfile]) -> None:
        measure("s.json", "--levels", "0.25,0.5", "--skip", "model.layers.0")
        extended = measure("s.json", "--levels", "0.25,0.5", "--extend", "s.json")
        assert [part.name for part in extended.parts] == [f"model.layers.{index}" for index in range(3)]

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            (
                ("--backend", "magnitude"),
                "differs in its backend or its options (wanda {'scope': 'row'}, now magnit",
            ),
            (("--scope", "linear"), "differs in its backend or its options"),
            (("--measure", "loss"), "differs in its measure (kl, now loss)"),
            (("--positions", "7"), "differs in its number of positions (54, now 6)"),
            (("--levels", "2:8,3:8"), "differs in its N:M grid"),
            (("--part", "sublayer"), "is by block, not by sublayer"),
            (("--seed", "1"), "differs in its calibration windows"),
        ],
    )
    def test_of_something_else_is_refused(
        self, measure: Callable[..., SensitivityProfile], refused: Callable[..., str],
        options: tuple[str, ...], named: str,
    ) -> None:  # fmt: skip
        measure("s.json", "--levels", "0.25,0.5")
        words = ("sensitivity", "model", "--calib", "text.txt", "--extend", "s.json", "-o", "t.json")
        assert named in refused(*words, *options)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "named"),
        [
            (("--levels", "0.3"), "1 level to try: give at least 2"),
            (("--levels", "1.5,0.2"), "level 1.5 is outside (0, 1]"),
            (("--levels", "30%,0.2"), "level '30%' is no level"),
            (("--levels", "2:8,2:4"), "levels 2:8,2:4 are of another M than each other"),
            (("--levels", "2:8,0.5"), "levels 2:8,0.5 are N:M in part"),
            (("--levels", "1:7,2:7"), "N:7 is not supported"),
            (("--levels", "2.5:8,3:8"), "level 2.5:8 keeps no whole number of weights"),
            (("--scope", "model"), "divides the budget by itself: use --scope row or linear"),
            (("--backend", "structured", "--uniform-width"), "drop --uniform-width"),
            (
                ("--backend", "structured", "--round-to", "64", "--levels", "0.3,0.6"),
                "level 0.3 of model.layers.0 ",
            ),
            (("--levels", "9:8,2:8"), "level 1.125 is outside (0, 1]"),
            (
                ("--levels", "1,9", "--backend", "rtn"),
                "is no number of bits: give a whole number from 2 to 8",
            ),
            (("--levels", "2:8,3:8", "--backend", "rtn"), "are N:M, and the backend counts bits"),
            (("--part", "tied", "--backend", "structured"), "--part tied: attention and feed-forward lose"),
            (("--part", "layer"), "part: "),
            (("--measure", "mse"), "measure: "),
            (("--max-cost", "few"), "max-cost: is a number of forward tokens above 0"),
            (("--max-cost", "10"), "max-cost 10 is below 448 forward tokens, the least"),
            (("--damage-len", "4096"), "set --damage-len 128 or less"),
            (("--backend", "gptqmodel"), "measure a profile with 'gptq' or 'rtn'"),
            (("--skip", "nothing.*"), "nothing.*"),
            (("--sparsity", "0.5"), "unknown option --sparsity"),
            (("--set", "*=0.5"), "unknown option --set"),
        ],
    )
    def test_what_cannot_be_meant(
        self, refused: Callable[..., str], here: Path, options: tuple[str, ...], named: str
    ) -> None:
        base = SHORT if "--damage-len" not in options else TEXT
        assert named in refused("sensitivity", "model", *base, *options, "-o", "s.json")

    def test_too_little_text_beside_the_statistics(self, refused: Callable[..., str], here: Path) -> None:
        words = ("--calib", "text.txt", "--samples", "30", "--seq-len", "128", "-o", "s.json")
        assert "too little text beside" in refused("sensitivity", "model", *words)

    def test_an_output_that_is_something_else(self, refused: Callable[..., str], report: Path) -> None:
        assert "holds a report" in refused("sensitivity", "model", *SHORT, "-o", report)


def test_a_dry_run_tells_what_would_be_tried_and_what_it_takes(
    measure: Callable[..., SensitivityProfile], done: Callable[..., Any], here: Path
) -> None:
    asked = ("sensitivity", "model", *SHORT, "--levels", "0.25,0.5", "--dry-run")
    told = done(*asked, "--json").json
    profile = measure("s.json", "--levels", "0.25,0.5")
    assert (told["part"], told["parts"], told["trials"]) == ("block", 3, 6)
    assert told["forward_tokens"] == profile.forward_tokens
    assert "3 parts, block by block, at 0.25, 0.5: 6 trials" in done(*asked).out
    assert not Path("OUT").exists()


def test_only_the_text_that_is_needed_is_read(done: Callable[..., Any], here: Path) -> None:
    options = ("--damage-data", "text.txt", "--damage-samples", "2", "--damage-len", "32")
    done("sensitivity", "model", "--backend", "magnitude", *options, "--levels", "0.2,0.6", "-o", "s.json")
    assert SensitivityProfile.read("s.json").statistics is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--nm", "0.5:8"), "0.5:8 is below 1:8, the least that is measured"),
        (("--sparsity", "0.5", "--scope", "model"), "use --scope row or linear"),
        (("--backend", "structured", "--prune-ratio", "0.3", "--uniform-width"), "drop --uniform-width"),
    ],
)
def test_a_run_is_refused_before_a_profile_is_measured(
    refused: Callable[..., str], here: Path, monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...], named: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("owl_compress.pipeline.profiling.Subject.profiled", None)
    told = refused("run", "model", "--allocator", "sensitivity", *options, *TEXT, "-o", "OUT")
    assert named in told


def test_predictions_that_overflow_are_told(
    refused: Callable[..., str], here: Path, tiny_llama: LlamaForCausalLM
) -> None:
    with torch.no_grad():
        tiny_llama.lm_head.weight.fill_(3e38)
    tiny_llama.save_pretrained(here / "model")
    told = refused("sensitivity", "model", *SHORT, "--levels", "0.25,0.5", "-o", "s.json")
    assert "the predictions hold NaN" in told


def test_max_cost_takes_windows_first_and_then_levels(
    measure: Callable[..., SensitivityProfile], done: Callable[..., Any], here: Path
) -> None:
    def run(cost: str) -> SensitivityProfile:
        done(
            "sensitivity", "model", *TEXT, "--damage-len", "32", "--max-cost", cost, "-o", "s.json", "--quiet"
        )
        return SensitivityProfile.read("s.json")

    full, fewer, least = run("1M"), run("1.5k"), run("700")
    assert [one.damage_text.sequences for one in (full, fewer, least)] == [4, 2, 2]
    assert len(full.parts[0].levels) == len(fewer.parts[0].levels) == 8
    assert len(least.parts[0].levels) < 8
    assert least.parts[0].levels[0] == full.parts[0].levels[0]
    assert full.forward_tokens > 1_500 >= fewer.forward_tokens > 700 >= least.forward_tokens


def test_plans_of_every_budget_come_from_one_profile(
    measure: Callable[..., SensitivityProfile], done: Callable[..., Any], here: Path
) -> None:
    profile = measure("s.json", "--levels", "0.1,0.3,0.5,0.7")
    for sparsity in ("0.4", "0.8"):
        done("allocate", "s.json", "--sparsity", sparsity, "-o", "plan.json", "--quiet")
        plan = json.loads(Path("plan.json").read_text())
        assert plan["report"] == profile.fingerprint
        done("compress", "model", "--plan", "plan.json", *TEXT, "-o", "OUT", "--overwrite", "--quiet")
        found = json.loads(Path("OUT/result.json").read_text())
        assert found["totals"]["achieved"] == pytest.approx(1 - float(sparsity), abs=1e-3)
        assert "sensitivity" not in found


def test_interrupted_nothing_is_left(
    refused: Callable[..., str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compress, blocks = Wanda.compress_block_, []

    def fourth_is_interrupted(self: Wanda, task: Any) -> Any:
        blocks.append(task)
        if len(blocks) == 4:
            raise KeyboardInterrupt
        return compress(self, task)

    monkeypatch.setattr(Wanda, "compress_block_", fourth_is_interrupted)
    words = ("sensitivity", "model", *SHORT, "--levels", "0.25,0.5", "-o", "s.json")
    assert refused(*words).startswith("interrupted: nothing was written that looks finished")


def test_a_damage_that_is_no_number_names_part_and_level(
    refused: Callable[..., str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Divergence, "damages", lambda *given: [nan] * len(given[-1]))
    words = ("sensitivity", "model", *SHORT, "--levels", "0.25,0.5", "-o", "s.json")
    assert "the damage of model.layers.0 at level 0.25 is nan" in refused(*words)


def test_a_part_that_no_level_changes_is_named(
    refused: Callable[..., str], here: Path, tiny_llama: LlamaForCausalLM
) -> None:
    with torch.no_grad():
        for weight in tiny_llama.model.layers[1].parameters():
            weight.zero_()
    tiny_llama.save_pretrained(here / "model")
    words = ("sensitivity", "model", *SHORT, "--levels", "0.25,0.5", "-o", "s.json")
    assert "no level changes model.layers.1" in refused(*words)


class TestRun:
    ASKED = ("run", "model", *SHORT, "--nm", "3:8", "--levels", "1:8,3:8,5:8")

    def test_a_dry_run_measures_and_shows_the_plan(self, done: Callable[..., Any], here: Path) -> None:
        told = done(*self.ASKED, "--allocator", "sensitivity", "--dry-run")
        assert told.out.startswith("Plan by sensitivity: 3:8 kept on average")
        assert "9 trials, as much as" in told.err
        assert not Path("OUT").exists()

    def test_damage_is_in_the_table_and_the_profile_in_the_folder(
        self, done: Callable[..., Any], here: Path
    ) -> None:
        told = done(*self.ASKED, "--allocator", "sensitivity", "-o", "OUT")
        (line,) = [line for line in told.out.splitlines() if line.startswith("damage ")]
        assert "nats, the parts alone sum to" in line
        result = json.loads(Path("OUT/result.json").read_text())
        assert result["sensitivity"]["carried_out"] in {"plan", "uniform"}
        (tried,) = [line for line in told.out.splitlines() if line.startswith("tried before, on text held")]
        shown = re.search(r"([\d.e+-]+) nats, equal shares ([\d.e+-]+)$", tried.rstrip())
        assert shown is not None
        told_of = [result["sensitivity"][name] for name in ("trial_damage", "uniform_damage")]
        assert [float(one) for one in shown.groups()] == pytest.approx(told_of, rel=1e-2)
        done(
            "run", "model", *TEXT, "--nm", "3:8", "--profile", "OUT/sensitivity.json", "-o", "TWO", "--quiet"
        )
        assert Path("TWO/sensitivity.json").read_bytes() == Path("OUT/sensitivity.json").read_bytes()
        assert Path("TWO/plan.json").read_bytes() == Path("OUT/plan.json").read_bytes()
        done("compress", "model", "--plan", "OUT/plan.json", *TEXT, "-o", "THREE", "--quiet")
        weights = [Path(out, "model.safetensors").read_bytes() for out in ("OUT", "TWO", "THREE")]
        assert weights[0] == weights[1] == weights[2]
        done(*self.ASKED, "--allocator", "sensitivity", "-o", "OUT", "--overwrite", "--quiet")

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            (("--profile", "none.json"), "none.json"),
            (("--profile", "text.txt"), "text.txt"),
            (("--allocator", "owl", "--profile", "s.json"), "allocator 'owl' reads none"),
            (("--allocator", "uniform", "--levels", "2:8,4:8"), "allocator 'uniform' reads none"),
        ],
    )
    def test_refusals(
        self, refused: Callable[..., str], here: Path, options: tuple[str, ...], named: str
    ) -> None:
        assert named in refused("run", "model", *TEXT, "--nm", "3:8", *options, "-o", "OUT")
