"""Accuracy on tasks from the command line: eval, run, and what both refuse."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

pytestmark = pytest.mark.skipif(not find_spec("lm_eval"), reason="accuracy on tasks needs the extra 'eval'")

LINE = {"question": "One?", "choices": ["yes", "no"], "label": 0}
FILE = ("--task-file", "quiz.jsonl")


@pytest.fixture(autouse=True)
def quiz(here: Path) -> Path:
    """A file of four samples in the working folder."""
    path = here / "quiz.jsonl"
    path.write_text("".join(json.dumps({**LINE, "label": label}) + "\n" for label in (0, 1, 1, 1)))
    return path


def test_eval_answers_with_tasks_alone_where_no_text_is_named(done: Run, here: Path) -> None:
    answer = done("eval", "model", *FILE, "--log-samples", "log.jsonl", "--json").json
    assert list(answer) == ["tasks"]
    found = answer["tasks"]["quiz"]
    assert (found["metric"], found["samples"], found["shots"], found["chance"]) == ("acc", 4, 0, 0.5)
    assert found["value"] in {0.25, 0.75}
    assert found["stderr"] == 0.25
    assert len((here / "log.jsonl").read_text().splitlines()) == 4


def test_eval_takes_text_and_tasks_together(done: Run) -> None:
    text = ("--data", "other.txt", "--seq-len", "32")
    alone = done("eval", "model", *text, "--json").json
    both = done("eval", "model", *text, *FILE, "--limit", "2", "--json").json
    assert both.pop("tasks")["quiz"]["samples"] == 2
    assert both == alone
    perplexity, accuracy = done("eval", "model", *text, *FILE, "--quiet").out.split()
    assert float(perplexity) == pytest.approx(alone["perplexity"], abs=1e-4)
    assert accuracy in {"0.2500", "0.7500"}


def test_the_table_shows_the_error_and_what_guessing_comes_to(done: Run, here: Path) -> None:
    (here / "again.jsonl").write_text((here / "quiz.jsonl").read_text())
    out = done("eval", "model", *FILE, "--task-file", "again.jsonl", "--num-fewshot", "1").out
    title, heading, _, quiz, again, mean, note, *_ = out.splitlines()
    assert title == "Accuracy on tasks"
    assert heading.split() == ["task", "metric", "value", "acc_norm", "guessing", "samples", "shots"]
    assert quiz.split()[:2] == ["quiz", "acc"]
    assert quiz.split()[3:5] == ["±", "0.2500"]
    assert quiz.split()[-3:] == ["0.5000", "4", "1"]
    assert again.split()[1:] == quiz.split()[1:]
    assert mean.split()[0] == "mean"
    assert mean.split()[2:] == ["±", "0.1768"]  # 0.25 / sqrt(2)
    assert note == "± one standard error"


def test_run_scores_before_and_after_and_writes_it_down(
    done: Run, run_options: tuple[str, ...], here: Path
) -> None:
    outcome = done(*run_options, *FILE, "-o", "OUT")
    result = json.loads((here / "OUT" / "result.json").read_text())
    tasks = result["tasks"]
    for which, folder in (("dense", "model"), ("compressed", "OUT")):
        alone = done("eval", folder, *FILE, "--json").json
        assert alone["tasks"] == tasks[which]
    card = (here / "OUT" / "README.md").read_text()
    assert f"| `quiz` | acc | {tasks['dense']['quiz']['value']:.4f} ± 0.2500 |" in card
    assert "Scored by lm-eval, ± one standard error" in card
    assert "task-file: ./../quiz.jsonl" in (here / "OUT" / "recipe.yaml").read_text().replace(
        "task-file:\n- ../", "task-file: ./../"
    )
    assert "before" in outcome.out
    assert "guessing" in outcome.out


def test_the_recipe_of_a_run_with_tasks_runs_again(
    done: Run, run_options: tuple[str, ...], here: Path
) -> None:
    done(*run_options, *FILE, "--limit", "3", "-o", "OUT")
    done("run", "OUT/recipe.yaml", "-o", "AGAIN")
    first, second = (json.loads((here / name / "result.json").read_text()) for name in ("OUT", "AGAIN"))
    assert first["tasks"] == second["tasks"]
    assert first["tasks"]["dense"]["quiz"]["samples"] == 3


def test_a_result_without_tasks_says_nothing_of_them(
    done: Run, run_options: tuple[str, ...], here: Path
) -> None:
    done(*run_options, "-o", "OUT")
    assert "tasks" not in json.loads((here / "OUT" / "result.json").read_text())
    assert "task" not in (here / "OUT" / "recipe.yaml").read_text()


@pytest.mark.parametrize("method", ["prune", "bits"])
def test_every_kind_of_folder_is_scored(
    method: str, done: Run, prune: tuple[str, ...], text_options: tuple[str, ...], here: Path
) -> None:
    bits = ("run", "model", *text_options, "--backend", "rtn", "--bits", "4", "--group-size", "16", "--quiet")
    done(*{"prune": prune, "bits": bits}[method], *FILE, "-o", "OUT")
    kept = json.loads((here / "OUT" / "result.json").read_text())["tasks"]["compressed"]
    assert done("eval", "OUT", *FILE, "--json").json["tasks"] == kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tasks", ""), "unknown task ''"),
        (("--tasks", "bolq"), "unknown task 'bolq': did you mean 'boolq'?"),
        (("--tasks", "boolq"), "give samples of your own with --task-file FILE.jsonl"),
        ((*FILE, "--limit", "0"), "limit 0 is too few: it has to be 1 or more"),
        ((*FILE, "--num-fewshot", "4"), "--num-fewshot 4 is more than the 3 other samples of task 'quiz'"),
        ((*FILE, *FILE), "would both be task 'quiz': rename one, or drop it"),
        ((*FILE, "--batch-size", "0"), "batch"),
        ((*FILE, "--log-samples", "quiz.jsonl"), "quiz.jsonl"),
        ((*FILE, "--log-samples", "no/log.jsonl"), "make its folder no first"),
        (("--log-samples", "log.jsonl"), "--log-samples is of tasks: name some with --tasks, --task-file"),
        (("--limit", "3"), "--limit is of tasks: name some with --tasks, --task-file or --task-path"),
        (("--task-file", "none.jsonl"), "none.jsonl"),
        (("--task-path", "none"), "task path none does not exist"),
    ],
)
def test_eval_refuses_in_one_line(refused: Run, options: tuple[str, ...], message: str) -> None:
    assert message in refused("eval", "model", *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tasks", "bolq"), "unknown task 'bolq': did you mean 'boolq'?"),
        ((*FILE, "--limit", "0"), "limit: has to be above 0 (got 0)"),
        (("--num-fewshot", "1"), "num-fewshot is of tasks: name some with tasks, task-file or task-path"),
        ((*FILE, "--num-fewshot", "4"), "--num-fewshot 4 is more than the 3 other samples of task 'quiz'"),
    ],
)
def test_run_refuses_before_any_work(
    refused: Run, run_options: tuple[str, ...], options: tuple[str, ...], message: str
) -> None:
    assert message in refused(*run_options, *options, "-o", "OUT")


def test_a_line_that_is_no_sample_is_named(refused: Run, quiz: Path) -> None:
    quiz.write_text(quiz.read_text() + '{"question": "?", "choices": [], "label": 0}\n')
    message = refused("eval", "model", *FILE)
    assert message == "line 5 of quiz.jsonl: choices has to be a list of two or more texts, not []"


def test_without_lm_eval_the_way_to_it_is_told(refused: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("owl_compress.evaluation.task_names.PACKAGE", "a_package_that_is_not_there")
    assert refused("eval", "model", *FILE) == (
        "tasks are scored by the package lm-eval: pip install 'owl-compress[eval]'"
    )
