"""What is shown, and where: JSON alone on stdout, progress on stderr, nothing where nothing was asked for."""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.main import get_command

from owl_compress.allocators import ALLOCATORS
from owl_compress.backends import BACKENDS
from owl_compress.cli import console
from owl_compress.cli.application import application
from owl_compress.cli.console import BarProgress, LineProgress, Output
from owl_compress.documents.plan import Plan
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.result import Result
from owl_compress.progress import shown
from owl_compress.registry import Registry

COMMANDS = ("measure", "allocate", "compress", "eval", "verify", "run", "chart", "list", "demo")


def test_json_of_every_stage(done: Callable[..., Any], here: Path, text_options: tuple[str, ...]) -> None:
    measured = done("measure", "model", *text_options, "-o", "report.json", "--json").json
    assert measured == json.loads(Path("report.json").read_text())
    ImportanceReport.model_validate(measured)
    plan = done("allocate", "report.json", "--sparsity", "0.6", "-o", "plan.json", "--json").json
    assert plan == json.loads(Path("plan.json").read_text())
    Plan.model_validate(plan)
    result = done("compress", "model", "--plan", "plan.json", *text_options, "-o", "OUT", "--json").json
    assert result == json.loads(Path("OUT/result.json").read_text())
    Result.model_validate(result)
    record = done("eval", "OUT", "--data", "other.txt", "--seq-len", "32", "--json").json
    assert record.keys() >= {"perplexity", "tokens", "windows", "seq_len", "dtype", "data", "n_params"}
    assert (record["windows"], record["tokens"], record["seq_len"]) == (25, 25 * 31, 32)
    assert (record["data"], record["dtype"], record["n_params"]) == ("other.txt", "float32", 44448)
    verified = done("verify", "OUT", "--json").json
    assert (verified["ok"], verified["violations"]) == (True, [])


def test_json_of_a_run(done: Callable[..., Any], run_options: tuple[str, ...]) -> None:
    result = done(*run_options, "--data", "other.txt", "-o", "OUT", "--json").json
    assert result["evaluation"].keys() == {"dense", "compressed"}
    assert result["totals"].keys() == {
        "asked", "achieved", "n_weights", "bits_per_weight", "bytes_on_disk",
        "n_params_before", "n_params_after",
    }  # fmt: skip
    assert result["budgets"][0].keys() == {
        "name", "block", "unit", "asked", "achieved", "n_weights", "relative_error", "seconds",
    }  # fmt: skip
    assert len(result["budgets"]) == 3 * 7
    assert result["totals"]["bytes_on_disk"] == Path("OUT/model.safetensors").stat().st_size


def test_dry_run_shows_budgets_and_needs_and_writes_nothing(
    done: Callable[..., Any], here: Path, run_options: tuple[str, ...]
) -> None:
    before = sorted(here.rglob("*"))
    outcome = done(*run_options, "--dry-run")
    for words in (
        "model.layers.2",
        "sparsity 0.6 on average",
        "checkpoint",
        "173.6 KiB",
        "on the device",
        "between blocks",
    ):
        assert words in outcome.out
    answer = done(*run_options, "--dry-run", "-o", "OUT", "--json").json
    assert answer["plan"]["achieved"] == pytest.approx(0.4)
    assert answer["prediction"]["checkpoint_bytes"] == 4 * 44448
    assert answer["prediction"]["activation_bytes"] == 4 * 4 * 32 * 32  # float32, sequences, tokens, hidden
    assert sorted(here.rglob("*")) == before


def test_dry_run_of_a_stage_writes_nothing(
    done: Callable[..., Any], here: Path, plan: Path, text_options: tuple[str, ...]
) -> None:
    before = sorted(here.rglob("*"))
    done("allocate", "report.json", "--sparsity", "0.6", "--dry-run")
    shown = done("compress", "model", "--plan", "plan.json", *text_options, "--dry-run", "--json").json
    assert shown["plan"] == json.loads(plan.read_text())
    assert sorted(here.rglob("*")) == before


def test_dry_run_and_run_agree(done: Callable[..., Any], run_options: tuple[str, ...]) -> None:
    predicted = done(*run_options, "--dry-run", "--json").json
    result = done(*run_options, "-o", "OUT", "--json").json
    assert predicted["plan"] == json.loads(Path("OUT/plan.json").read_text())
    n_kept = sum(round(row["achieved"] * row["n_weights"]) for row in result["budgets"])
    assert predicted["prediction"]["n_weights_kept"] == n_kept
    header = result["totals"]["bytes_on_disk"] - predicted["prediction"]["checkpoint_bytes"]
    assert 0 < header < 5000


def test_a_drift_off_the_budget_is_told(
    done: Callable[..., Any], here: Path, report: Path, text_options: tuple[str, ...]
) -> None:
    budget = ("--nm", "3:8", "--owl-law", "published-special")
    shown = done("allocate", report, *budget, "-o", "plan.json").out
    plan = Plan.read(here / "plan.json")
    kept = [8 * block.value for block in plan.per_block]
    drift = sum(kept) / 3 / 8 - 0.375
    assert drift != 0
    assert f"a drift of {drift:+g} off 0.375" in " ".join(shown.split())
    done("compress", "model", "--plan", "plan.json", *text_options, "-o", "OUT", "--quiet")
    card = (here / "OUT" / "README.md").read_text(encoding="utf-8")
    assert f"with {sum(kept) / 3:g} of every 8 weights of the compressed linears" in card
    assert "(N:8), where 3 were asked for" in card
    assert "drift" not in done("allocate", report, "--nm", "3:8", "--dry-run").out


def test_quiet_is_silent(done: Callable[..., Any], run_options: tuple[str, ...]) -> None:
    outcome = done(*run_options, "-o", "OUT", "--quiet")
    assert (outcome.out, outcome.err) == ("", "")


def test_quiet_evaluation_is_a_number(done: Callable[..., Any]) -> None:
    outcome = done("eval", "model", "--data", "other.txt", "--seq-len", "32", "--quiet")
    assert 200 < float(outcome.out) < 300
    assert outcome.err == ""


def test_progress_is_plain_lines_where_stderr_is_no_terminal(
    done: Callable[..., Any], run_options: tuple[str, ...]
) -> None:
    lines = done(*run_options, "--data", "other.txt", "-o", "OUT").err.splitlines()
    assert lines[0] == "loading model"
    assert re.fullmatch(r"estimated peaks: measuring .* host; .*; writing .* host \+ .* disk", lines[1])
    assert [line.split(":")[0] for line in lines[1:-1]] == [
        "estimated peaks", "measuring blocks", "evaluating", "compressing blocks", "evaluating",
    ]  # fmt: skip
    assert re.fullmatch(r"measuring blocks: 3/3, \d+ s, 0 s left, host \d+\.\d GiB", lines[2])
    assert not any(character in line for line in lines for character in "\x1b\r█━")


def test_long_work_tells_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(console, "monotonic", lambda: float(next(clock)))
    assert list(LineProgress().track(range(10), 10, "walking")) == list(range(10))
    told = [line.split(",")[:3] for line in capsys.readouterr().err.splitlines()]
    assert told == [
        ["walking: 3/10", " 12 s", " 28 s left"], ["walking: 6/10", " 24 s", " 16 s left"],
        ["walking: 9/10", " 36 s", " 4 s left"], ["walking: 10/10", " 40 s", " 0 s left"],
    ]  # fmt: skip


def test_a_single_step_is_told_only_where_it_is_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seconds, told in ((1.0, ""), (30.0, "loading: 1/1, 30 s")):
        clock = iter((0.0, seconds))
        monkeypatch.setattr(console, "monotonic", lambda clock=clock: next(clock))
        assert shown(LineProgress(), "loading", lambda: "model") == "model"
        assert capsys.readouterr().err.startswith(told)
        assert bool(told) or capsys.readouterr().err == ""


def test_options_of_an_evaluation_are_about_its_text(done: Callable[..., Any]) -> None:
    text = done("eval", "--help").out
    assert "Calibration text" not in text
    panel = text.partition("Evaluation text")[2].partition("╰")[0]
    assert all(option in panel for option in ("--data", "--seq-len", "--bos", "--max-windows"))


@pytest.mark.parametrize("command", ["measure", "allocate", "compress", "run", "chart"])
def test_help_says_that_the_output_is_required(done: Callable[..., Any], command: str) -> None:
    text = " ".join(done(command, "--help").out.replace("│", " ").split())
    assert "equired" in text.partition("--out ")[2].partition("--json")[0]


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(
        console, "Console", lambda stderr: Console(stderr=stderr, force_terminal=True, width=120)
    )
    assert list(BarProgress().track(range(3), 3, "walking")) == [0, 1, 2]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert all(words in captured.err for words in ("walking", "3/3", "left", "host"))


def test_which_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(Output().progress, LineProgress)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert isinstance(Output().progress, BarProgress)
    assert not isinstance(Output(quiet=True).progress, BarProgress | LineProgress)


def test_our_warnings_are_shown_and_those_of_others_not(
    done: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, report: Path
) -> None:
    read = ImportanceReport.read

    def talkative(path: Path) -> ImportanceReport:
        logging.getLogger("transformers.anything").warning("for programmers")
        logging.getLogger("urllib3").warning("for programmers")
        logging.getLogger("owl_compress.anything").warning("for users")
        return read(path)

    monkeypatch.setattr(ImportanceReport, "read", talkative)
    outcome = done("allocate", report, "--sparsity", "0.5", "--dry-run", "--json")
    assert outcome.err == "owl-compress: for users\n"


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help(done: Callable[..., Any], command: str, flag: str) -> None:
    text = done(command, flag).out
    assert f"owl-compress {command}" in text
    assert "--json" in text


def test_overview_lists_every_command(cli: Callable[..., Any]) -> None:
    for outcome in (cli("--help"), cli("-h"), cli()):
        assert all(f" {command} " in outcome.out for command in COMMANDS)
        assert outcome.err == ""
    assert cli().code == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_and_argument_has_a_help_text(name: str) -> None:
    command = get_command(application([name, "--help"])).commands[name]  # type: ignore[attr-defined]
    for parameter in command.params:
        assert parameter.help, parameter.name
        assert parameter.help.endswith("."), parameter.name


@pytest.mark.parametrize(("option", "registry"), [("--allocator", ALLOCATORS), ("--backend", BACKENDS)])
def test_help_names_what_is_registered(done: Callable[..., Any], option: str, registry: Registry) -> None:
    text = " ".join(done("run", "--help").out.replace("│", " ").split())
    named = text.split(option)[1].split("[default")[0]
    assert all(name in named for name in registry.builtin)
