"""Accuracy through lm-eval, held against log-likelihoods that are summed here, choice by choice."""

import json
import logging
import os
import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from owl_compress.documents.accuracy import TaskAccuracy
from owl_compress.errors import RequestError
from owl_compress.evaluation.tasks import TaskOptions, Tasks, accuracy

# Looked for and not imported: what importing it does to the process is asked below.
pytestmark = pytest.mark.skipif(not find_spec("lm_eval"), reason="accuracy on tasks needs the extra 'eval'")

SAMPLES = [
    {"question": f"What is {n}?", "choices": ["one", "thrée", "a few"][: 2 + n % 2], "label": n % 2}
    for n in range(10)
]
Scored = Callable[..., tuple[TaskAccuracy, ...]]


def written(path: Path, samples: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples), encoding="utf-8")
    return str(path)


@pytest.fixture
def numbers(tmp_path: Path) -> str:
    """A file of ten samples with two or three choices."""
    return written(tmp_path / "numbers.jsonl", SAMPLES)


@pytest.fixture
def scored(tiny_llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Scored:
    """A function that scores the tiny model."""

    def score(*files: str, **options: Any) -> tuple[TaskAccuracy, ...]:
        log = options.pop("log", None)
        return accuracy(tiny_llama, tokenizer, TaskOptions(files=files, **options), log=log)

    return score


def log_likelihoods(model: nn.Module, tokenizer: Any, prompt: str, choices: list[str]) -> list[float]:
    """The sum over the tokens of " choice" of their log-probability behind the prompt, each by itself."""
    sums = []
    n_prompt = len(tokenizer(prompt)["input_ids"])
    for choice in choices:
        ids = torch.tensor([tokenizer(f"{prompt} {choice}")["input_ids"]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0].float()
            log_probabilities = functional.log_softmax(logits, dim=-1)
        positions = range(n_prompt, ids.shape[1])
        sums.append(sum(float(log_probabilities[at - 1, ids[0, at]]) for at in positions))
    return sums


def test_accuracy_is_the_share_of_samples_whose_right_choice_is_likeliest(
    scored: Scored, numbers: str, tiny_llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    plain, by_length = [], []
    for sample in SAMPLES:
        choices = sample["choices"]
        sums = log_likelihoods(tiny_llama, tokenizer, f"Question: {sample['question']}\nAnswer:", choices)
        shares = [value / len(choice) for value, choice in zip(sums, choices, strict=True)]
        plain.append(float(np.argmax(sums) == sample["label"]))
        by_length.append(float(np.argmax(shares) == sample["label"]))
    (found,) = scored(numbers)
    assert (found.task, found.metric, found.samples, found.shots) == ("numbers", "acc", 10, 0)
    assert found.value == pytest.approx(np.mean(plain))
    assert found.stderr == pytest.approx(np.std(plain, ddof=1) / np.sqrt(10))
    assert found.others["acc_norm"].value == pytest.approx(np.mean(by_length))
    assert found.chance == pytest.approx((5 / 2 + 5 / 3) / 10)
    assert found.source == numbers


def test_the_log_holds_what_was_asked_and_what_the_model_made_of_it(
    scored: Scored, numbers: str, tmp_path: Path, tiny_llama: Any, tokenizer: Any
) -> None:
    (found,) = scored(numbers, log=tmp_path / "log.jsonl", batch_size=3)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["sample"] for line in lines] == list(range(10))
    assert np.mean([line["acc"] for line in lines]) == found.value
    for line, sample in zip(lines, SAMPLES, strict=True):
        prompt = f"Question: {sample['question']}\nAnswer:"
        assert line["task"] == "numbers"
        assert line["target"] == sample["label"]
        assert line["asked"] == [[prompt, f" {choice}"] for choice in sample["choices"]]
        expected = log_likelihoods(tiny_llama, tokenizer, prompt, sample["choices"])
        assert [value for value, _ in line["answers"]] == pytest.approx(expected, abs=1e-3)


def test_log_likelihoods_are_in_float32_whatever_the_type_of_the_model(
    scored: Scored, numbers: str, tmp_path: Path, tiny_llama: Any, tokenizer: Any
) -> None:
    tiny_llama.to(torch.bfloat16)
    scored(numbers, log=tmp_path / "log.jsonl")
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    for line, sample in zip(map(json.loads, lines), SAMPLES, strict=True):
        prompt = f"Question: {sample['question']}\nAnswer:"
        expected = log_likelihoods(tiny_llama, tokenizer, prompt, sample["choices"])
        assert [value for value, _ in line["answers"]] == pytest.approx(expected, abs=0.02)  # of about -20


def test_a_limit_takes_the_first_samples(scored: Scored, numbers: str, tmp_path: Path) -> None:
    first = written(tmp_path / "first.jsonl", SAMPLES[:4])
    (limited,), (alone,) = scored(numbers, limit=4), scored(first)
    assert (limited.samples, limited.value, limited.stderr) == (4, alone.value, alone.stderr)
    (whole,) = scored(numbers, limit=1000)
    assert whole.samples == 10


def test_a_single_sample_has_no_standard_error(scored: Scored, numbers: str) -> None:
    (found,) = scored(numbers, limit=1)
    assert found.stderr is None


def test_solved_samples_are_others_of_the_file_and_drawn_by_the_seed(
    scored: Scored, numbers: str, tmp_path: Path
) -> None:
    def prompts(seed: int) -> list[str]:
        (found,) = scored(numbers, shots=2, seed=seed, log=tmp_path / "log.jsonl", limit=5)
        assert found.shots == 2
        lines = (tmp_path / "log.jsonl").read_text().splitlines()
        return [json.loads(line)["asked"][0][0] for line in lines]

    once, again, other = prompts(0), prompts(0), prompts(1)
    assert once == again != other
    for prompt, sample in zip(once, SAMPLES, strict=False):
        first, second, asked = prompt.split("\n\n")
        assert asked == f"Question: {sample['question']}\nAnswer:"
        assert asked not in first + second
        assert first.endswith(("Answer: one", "Answer: thrée"))


def test_the_same_tasks_may_be_held_against_several_models(
    numbers: str, tiny_llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    tasks = Tasks.of(TaskOptions(files=(numbers,), shots=1))
    first = accuracy(tiny_llama, tokenizer, tasks)
    assert accuracy(tiny_llama, tokenizer, tasks) == first


def test_several_files_are_results_in_their_order(scored: Scored, numbers: str, tmp_path: Path) -> None:
    other = written(tmp_path / "another.jsonl", SAMPLES[:3])
    assert [(one.task, one.samples) for one in scored(numbers, other)] == [("numbers", 10), ("another", 3)]


def test_a_passage_is_read_before_the_question(scored: Scored, tmp_path: Path) -> None:
    path = written(tmp_path / "read.jsonl", [{**SAMPLES[0], "passage": "Numbers."}, SAMPLES[1]])
    scored(path, log=tmp_path / "log.jsonl")
    first, second = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert first["asked"][0][0] == "Numbers.\nQuestion: What is 0?\nAnswer:"
    assert second["asked"][0][0] == "Question: What is 1?\nAnswer:"


@pytest.fixture
def own_tasks(tmp_path: Path, numbers: str) -> Path:
    """A folder with a task file of lm-eval's kind over the same samples, asked without a word around."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "bare.yaml").write_text(
        f"""
task: bare_numbers
dataset_path: json
dataset_kwargs:
  data_files: {{test: {numbers}}}
  cache_dir: {tmp_path / "cache"}
output_type: multiple_choice
test_split: test
doc_to_text: question
doc_to_choice: choices
doc_to_target: label
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata: {{version: 3}}
"""
    )
    return folder


@pytest.mark.parametrize("tasks", [(), ("bare_numbers",)])
def test_task_files_of_lm_eval_are_taken_from_a_folder_or_by_their_name(
    own_tasks: Path, tasks: tuple[str, ...], tiny_llama: Any, tokenizer: Any
) -> None:
    hits = [
        np.argmax(log_likelihoods(tiny_llama, tokenizer, sample["question"], sample["choices"]))
        == sample["label"]
        for sample in SAMPLES
    ]
    for path in (own_tasks, own_tasks / "bare.yaml"):
        (found,) = accuracy(tiny_llama, tokenizer, TaskOptions(tasks=tasks, path=str(path)))
        assert (found.task, found.version, found.source) == ("bare_numbers", "3", None)
        assert found.value == pytest.approx(np.mean(hits))
        assert found.others == {}


@pytest.fixture
def state_of_the_process() -> Callable[[], tuple[Any, ...]]:
    """A function that says what a library could change behind one's back."""

    def state() -> tuple[Any, ...]:
        name, keys, *rest = np.random.get_state()  # noqa: NPY002
        return (
            random.getstate(),
            (name, keys.tolist(), *rest),
            torch.get_rng_state().tolist(),
            dict(os.environ),
            logging.getLogger("lm_eval").level,
            logging.getLogger().level,
        )

    return state


def test_the_model_and_the_process_are_left_as_they_were(
    state_of_the_process: Callable[[], tuple[Any, ...]],
    scored: Scored,
    numbers: str,
    tiny_llama: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    capfd: pytest.CaptureFixture[str],
) -> None:
    tiny_llama.train()
    tiny_llama.config.tie_word_embeddings = True  # though the two differ
    weights = {name: tensor.clone() for name, tensor in tiny_llama.state_dict().items()}
    attributes, before = set(vars(tiny_llama)), state_of_the_process()
    scored(numbers, shots=1)
    assert state_of_the_process() == before
    assert "HF_XET_HIGH_PERFORMANCE" not in os.environ  # which lm-eval sets when it is imported
    assert all(torch.equal(weights[name], tensor) for name, tensor in tiny_llama.state_dict().items())
    assert tiny_llama.training
    assert set(vars(tiny_llama)) == attributes
    assert tokenizer.pad_token is None
    assert tokenizer.model_max_length == 64
    assert capfd.readouterr() == ("", "")


def test_every_choice_is_a_step_of_the_progress(
    numbers: str, tiny_llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    seen: list[tuple[str, int, int]] = []

    class Counting:
        def track(self, items: Any, total: int, what: str) -> Iterator[Any]:
            done = 0
            for item in items:
                yield item
                done += 1
            seen.append((what, total, done))

    accuracy(tiny_llama, tokenizer, TaskOptions(files=(numbers,)), progress=Counting())
    assert seen == [("loading tasks", 1, 1), ("scoring choices", 25, 25)]


def test_prompts_that_lose_their_beginning_are_told(
    scored: Scored, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path / "long.jsonl", [{**SAMPLES[0], "passage": "x" * 200}, *SAMPLES[1:3]])
    scored(path)
    (record,) = caplog.records
    assert record.getMessage() == (
        "1 of the prompts lost their beginning: with its choice the longest has 237 tokens, and the model "
        "takes 128"
    )


def test_a_choice_longer_than_the_context_is_refused(scored: Scored, tmp_path: Path) -> None:
    path = written(tmp_path / "long.jsonl", [{"question": "?", "choices": ["x" * 200, "y"], "label": 0}])
    with pytest.raises(RequestError, match="has 201 tokens, and the model scores 1 to 128: leave it out"):
        scored(path)


def test_a_model_that_knows_no_number_is_refused(
    scored: Scored, numbers: str, tiny_llama: LlamaForCausalLM
) -> None:
    with torch.no_grad():
        tiny_llama.model.norm.weight.fill_(torch.nan)
    with pytest.raises(RequestError, match="log-likelihood is NaN for 25 of 25 choices: its weights are br"):
        scored(numbers)


def test_more_solved_samples_than_there_are_others_are_refused(scored: Scored, numbers: str) -> None:
    (found,) = scored(numbers, shots=9, limit=1)
    assert found.shots == 9
    with pytest.raises(RequestError, match="--num-fewshot 10 is more than the 9 other samples of task 'nu"):
        scored(numbers, shots=10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no task is named: give --tasks, --task-file or --task-path"),
        ({"tasks": ("boolq",), "limit": 0}, "limit 0 is too few: it has to be 1 or more"),
        ({"tasks": ("boolq",), "shots": -1}, "num-fewshot -1 is too few"),
        ({"tasks": ("boolq",), "batch_size": 0}, "batch-size 0 is too few"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        TaskOptions(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ("bolq",)}, "unknown task 'bolq': did you mean 'boolq'?"),
        ({"tasks": ("owl77",)}, "unknown task 'owl77': did you mean 'owl7'?"),
        ({"tasks": ("zzzzzzzzzzzzzzzzz",)}, "name one of lm-eval, such as boolq, or owl7, or give --task"),
        ({"path": "nowhere"}, "task path nowhere does not exist: name a task file"),
        ({"files": ("nowhere.jsonl",)}, "nowhere.jsonl"),
    ],
)
def test_names_of_nothing_are_refused_before_lm_eval_is_loaded(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("owl_compress.evaluation.tasks.undisturbed_process", lambda: pytest.fail("loaded"))
    with pytest.raises(RequestError) as caught:
        Tasks.of(TaskOptions(**options))
    assert message in str(caught.value)


def test_a_task_whose_samples_are_out_of_reach_names_what_needs_no_network() -> None:
    with pytest.raises(RequestError) as caught:
        Tasks.of(TaskOptions(tasks=("boolq",)))
    message = str(caught.value)
    assert message.startswith("task 'boolq' with its data set 'aps/super_glue' cannot be loaded (")
    assert message.endswith("give samples of your own with --task-file FILE.jsonl")
    assert "\n" not in message


def test_a_hub_out_of_reach_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="'boolq' with its data set"):
        Tasks.of(TaskOptions(tasks=("boolq",)))  # loads the module that is patched here
    monkeypatch.setattr("owl_compress.evaluation.task_loading.hub_within_reach", lambda: nullcontext(False))
    with pytest.raises(
        RequestError, match="needs its data set 'aps/super_glue' from the Hugging Face hub, wh"
    ):
        Tasks.of(TaskOptions(tasks=("boolq",)))


@pytest.mark.slow  # lm-eval reads all of its files for a group
def test_a_group_that_adds_its_members_up_is_one_result(
    own_tasks: Path, tiny_llama: Any, tokenizer: Any
) -> None:
    whole = (own_tasks / "bare.yaml").read_text()
    (own_tasks / "again.yaml").write_text(whole.replace("bare_numbers", "again_numbers"))
    (own_tasks / "both.yaml").write_text(
        "group: both_numbers\ntask: [bare_numbers, again_numbers]\n"
        "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    one = TaskOptions(tasks=("bare_numbers",), path=str(own_tasks))
    (alone,) = accuracy(tiny_llama, tokenizer, one)
    (both,) = accuracy(tiny_llama, tokenizer, replace(one, tasks=("both_numbers",)))
    assert (both.task, both.samples, both.value) == ("both_numbers", 20, pytest.approx(alone.value))
    assert both.stderr is not None
    assert alone.stderr is not None
    assert both.stderr < alone.stderr


def test_files_that_would_be_one_task_are_refused(numbers: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = written(tmp_path / "other" / "numbers.jsonl", SAMPLES)
    with pytest.raises(RequestError, match="would both be task 'numbers': rename one, or drop it"):
        Tasks.of(TaskOptions(files=(numbers, other)))


def test_a_file_called_like_a_task_that_is_asked_for_too_is_refused(own_tasks: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "bare_numbers.jsonl", SAMPLES)
    with pytest.raises(RequestError, match="there are two tasks 'bare_numbers' in what is asked for"):
        Tasks.of(TaskOptions(tasks=("bare_numbers",), files=(path,), path=str(own_tasks)))


def test_a_folder_without_a_task_and_a_task_file_that_is_broken_are_refused(tmp_path: Path) -> None:
    (tmp_path / "part.yaml").write_text("output_type: multiple_choice\n")
    with pytest.raises(RequestError, match="holds no task"):
        Tasks.of(TaskOptions(path=str(tmp_path)))
    (tmp_path / "part.yaml").write_text("task: broken\noutput_type: [\n")
    with pytest.raises(RequestError, match="task 'broken' with its data set cannot be loaded"):
        Tasks.of(TaskOptions(path=str(tmp_path)))


def test_without_lm_eval_the_way_to_it_is_told(numbers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("owl_compress.evaluation.task_names.PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(RequestError, match=r"lm-eval: pip install 'owl-compress\[eval\]'"):
        Tasks.of(TaskOptions(files=(numbers,)))
