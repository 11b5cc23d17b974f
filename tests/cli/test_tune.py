"""`tune` and `--allocator auto`: what is tried, what is written, and what is refused."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from owl_compress.backends.wanda import Wanda
from owl_compress.documents.plan import Plan
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.tuning import TuningDocument

TEXT = ("--calib", "text.txt", "--samples", "4", "--seq-len", "32")
LITTLE = (*TEXT, "--damage-samples", "2", "--damage-len", "16")
TUNE = ("tune", "model", *LITTLE, "--sparsity", "0.6")
FEW = (*TUNE, "--candidates", "uniform")
"""Equal shares and five slopes over depth."""

Command = Callable[..., Any]


@pytest.fixture
def measured(here: Path, done: Command) -> Path:
    """A sensitivity profile of the tiny model by block."""
    levels = ("--levels", "0.2,0.4,0.8")
    done("sensitivity", "model", *LITTLE, *levels, "-o", "sensitivity.json", "--quiet")
    return here / "sensitivity.json"


def test_the_plan_is_written_and_carried_out(here: Path, done: Command) -> None:
    outcome = done(*FEW, "-o", "plan.json")
    assert "trying 6 then 2 plans: at most 1,024 tokens through the model" in outcome.err
    assert "wrote plan.json and plan.tuning.json" in outcome.err
    title, heading, *rows = outcome.out.splitlines()
    assert title == "Plans tried for model with wanda"
    assert heading.split("  ")[0] == "candidate"
    assert [row for row in rows if row.endswith("  taken")] == [rows[1]]
    assert "equal shares: the same for every linear" in rows
    plan, tried = Plan.read("plan.json"), TuningDocument.read("plan.tuning.json")
    assert plan.allocator.name == "auto"
    assert plan.allocator.parameters["chosen"] == tried.chosen.allocator
    assert tried.plan == plan.fingerprint
    assert {one.name for one in tried.candidates} >= {"uniform", "linear-depth, lam 0.2"}
    done("compress", "model", "--plan", "plan.json", *TEXT, "-o", "OUT", "--quiet")
    done("verify", "OUT")
    assert "**auto**" in Path("OUT/README.md").read_text()
    assert done("show", "plan.tuning.json").out == outcome.out
    done("report", "plan.json", "plan.tuning.json", "-o", "page.html")
    assert "What was tried" in Path("page.html").read_text()


def test_json_is_both_files(here: Path, done: Command) -> None:
    found = done(*FEW, "-o", "plan.json", "--json").json
    assert found["plan"] == json.loads(Path("plan.json").read_text())
    assert found["tuning"] == json.loads(Path("plan.tuning.json").read_text())


def test_a_dry_run_shows_candidates_and_cost_and_tries_nothing(
    here: Path, done: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Wanda, "compress_block_", None)
    outcome = done(*TUNE, "--dry-run")
    assert (
        "owl              20  metric lod@5, lod@7, lod@10, lod@3; lam 0.08, 0.1, 0.05, 0.2, 0.02"
        in outcome.out
    )
    assert (
        "; without sensitivity, which --profile brings in, or a --max-cost that covers measuring one"
        in outcome.out
    )
    found = done(*TUNE, "--dry-run", "--json").json
    assert [one["plans"] for one in found["rounds"]] == [33, 11, 4]
    assert f"at most {found['forward_tokens']:,.0f} tokens" in outcome.out
    run = ("run", "model", "--allocator", "auto", *LITTLE, "--sparsity", "0.6", "--dry-run")
    assert done(*run, "--json").json == found


def test_a_profile_brings_its_allocator_in(done: Command, measured: Path) -> None:
    done(*TUNE, "--candidates", "sensitivity", "--profile", "sensitivity.json", "-o", "plan.json", "--quiet")
    tried = TuningDocument.read("plan.tuning.json")
    (one,) = (one for one in tried.candidates if one.allocator == "sensitivity")
    assert one.damage


class TestRun:
    RUN = (
        "run", "model", "--allocator", "auto", "--candidates", "owl", "--max-cost", "2500", *LITTLE,
        "--sparsity", "0.6",
    )  # fmt: skip

    def test_the_recipe_does_it_again(self, here: Path, done: Command) -> None:
        done(*self.RUN, "-o", "OUT", "--quiet")
        assert Recipe.read("OUT/recipe.yaml").candidates == ("owl",)
        done("run", "OUT/recipe.yaml", "-o", "AGAIN", "--quiet")
        for name in ("model.safetensors", "plan.json", "tuning.json", "report.json", "recipe.yaml"):
            assert Path("OUT", name).read_bytes() == Path("AGAIN", name).read_bytes(), name
        assert TuningDocument.read("OUT/tuning.json").plan == Plan.read("OUT/plan.json").fingerprint
        notes = json.loads(Path("OUT/result.json").read_text())["notes"]
        assert any(note.startswith("allocator auto took ") for note in notes)
        done("run", "OUT/recipe.yaml", "-o", "OUT", "--overwrite", "--quiet")

    def test_a_profile_lies_in_the_folder_and_the_recipe_names_it(
        self, done: Command, measured: Path
    ) -> None:
        profile = ("--candidates", "sensitivity", "--profile", "sensitivity.json")
        done(*self.RUN, *profile, "-o", "OUT", "--quiet")
        assert Path("OUT/sensitivity.json").read_bytes() == measured.read_bytes()
        measured.unlink()
        done("run", "OUT/recipe.yaml", "-o", "AGAIN", "--quiet")
        assert Path("OUT/plan.json").read_bytes() == Path("AGAIN/plan.json").read_bytes()


class TestInterrupted:
    def test_nothing_is_left(self, refused: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        compress, blocks = Wanda.compress_block_, []

        def later_is_interrupted(self: Wanda, task: Any) -> Any:
            blocks.append(task)
            if len(blocks) == 8:
                signal.raise_signal(signal.SIGINT)
            return compress(self, task)

        monkeypatch.setattr(Wanda, "compress_block_", later_is_interrupted)
        assert refused(*FEW, "-o", "plan.json").startswith("interrupted: nothing was written")

    @pytest.mark.parametrize("number", [1, 2])
    def test_disk_full_leaves_neither_file(
        self, refused: Command, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        from owl_compress.documents import disk

        fill, filled = disk._fill_file_, []

        def full(temporary: Path, content: bytes) -> None:
            filled.append(temporary)
            if len(filled) == number:
                raise OSError(28, "No space left on device")
            fill(temporary, content)

        monkeypatch.setattr(disk, "_fill_file_", full)
        assert refused(*FEW, "-o", "plan.json").startswith("disk full while writing plan")


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--candidates", "owll"), "unknown candidate 'owll' of --allocator auto: did you mean 'owl'?"),
            (("--candidates", "auto"), "unknown candidate 'auto'"),
            (("--candidates", ""), "unknown candidate ''"),
            (("--max-cost", "100"), "max-cost 100 pays for no trial: equal shares and one other plan take"),
            (("--max-cost", "100", "--candidates", "sensitivity"), "max-cost 1 is below"),
            (("--max-cost", "much"), "max-cost: is a number of forward tokens"),
            (("--damage-samples", "90"), "630 windows of 16 tokens to judge plans on, 7 for each"),
            (("--damage-samples", "35"), "text.txt has too little text beside the windows"),
            (("--damage-len", "200"), "--damage-len"),
            (("--backend", "rtn"), "backend 'rtn' carries out budgets in bits, these are in density"),
            (("--backend", "nowhere"), "unknown backend 'nowhere'"),
            (("--bits", "3"), "name exactly one budget"),
            (("--profile", "missing.json"), "missing.json"),
            (
                ("--profile", "sensitivity.json", "--backend", "magnitude"),
                "the profile is of backend 'wanda'",
            ),
            (("--profile", "sensitivity.json", "--part", "linear"), "part says how a profile is measured"),
            (("--low", "0.5"), "target density 0.4 is below low 0.5"),
            (("-o", "sensitivity.json"), "sensitivity.json"),
            (("-o", "nowhere/plan.json"), "make its folder nowhere first"),
        ],
    )
    def test_in_one_line(
        self, profile: Path, refused: Command, options: tuple[str, ...], message: str
    ) -> None:
        out = () if "-o" in options else ("-o", "plan.json")
        assert message in refused(*TUNE, *options, *out)

    def test_without_output(self, here: Path, refused: Command) -> None:
        assert "name the plan file, or add --dry-run" in refused(*TUNE)

    @pytest.mark.parametrize(
        ("command", "message"),
        [
            (("allocate", "report.json", "--allocator", "auto"), "allocator 'auto' tries plans on the model"),
            (("run", "model", "--candidates", "owl"), "candidates are tried by --allocator auto"),
            (
                ("run", "model", "--allocator", "auto", "--lam", "0.1"),
                "lam is one of the options that allocator",
            ),
            (("run", "model", "--allocator", "auto", "--solver", "optimal"), "drop --solver"),
            (("run", "model", "--allocator", "auto", "--backend", "gptqmodel"), "budgets in bits"),
        ],
    )
    def test_what_is_of_other_allocators(
        self, report: Path, refused: Command, command: tuple[str, ...], message: str
    ) -> None:
        text = LITTLE if command[0] == "run" else ()
        assert message in refused(*command, *text, "--sparsity", "0.6", "-o", "OUT.json")

    def test_a_tuning_that_is_none(self, here: Path, refused: Command) -> None:
        Path("plan.tuning.json").write_text('{"schema": "owl-compress/report/1"}')
        assert "plan.tuning.json" in refused(*TUNE, "-o", "plan.json")
