"""lm-eval scores whatever we load, as the model type owl-compress."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import owl_compress.lm_eval as way_in
from owl_compress.documents.recipe import Recipe
from owl_compress.errors import RequestError
from owl_compress.evaluation.tasks import TaskOptions, accuracy
from owl_compress.evaluation.undisturbed import undisturbed_process
from owl_compress.pipeline.execution import run
from owl_compress.pipeline.stages import load

pytestmark = pytest.mark.skipif(not find_spec("lm_eval"), reason="accuracy on tasks needs the extra 'eval'")

MakeRecipe = Callable[..., Recipe]
SAMPLES = [
    {"question": f"What is {n}?", "choices": ["one", "two", "a few"], "label": n % 3} for n in range(9)
]
YAML = """
task: numbers
dataset_path: json
dataset_kwargs:
  data_files: {test: numbers.jsonl}
  cache_dir: cache
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: label
"""
FOLDERS = {
    "dense": {"backend": "wanda", "sparsity": 0.5},
    "narrow": {"backend": "structured", "prune_ratio": 0.4, "round_to": 8},
    "packed": {"backend": "rtn", "bits": 4, "group_size": 16},
}


@pytest.fixture
def numbers(here: Path) -> Path:
    """The same samples for us, and as a task file for lm-eval."""
    path = here / "numbers.jsonl"
    path.write_text("".join(json.dumps(sample) + "\n" for sample in SAMPLES))
    (here / "numbers.yaml").write_text(YAML)
    return path


def scores(model: Any) -> dict[str, Any]:
    """What lm-eval makes of the task file with a model of its kind."""
    with undisturbed_process():
        from lm_eval.evaluator import evaluate
        from lm_eval.tasks import TaskManager

        tasks = TaskManager(include_defaults=False).load(["numbers.yaml"])
        for task in tasks["tasks"].values():
            task.set_config(key="num_fewshot", value=0)
        found: dict[str, Any] = evaluate(model, tasks)["results"]["numbers"]
        return found


def model_of(**arguments: Any) -> Any:
    """The model that lm-eval makes of --model owl-compress --model_args."""
    with undisturbed_process():
        from owl_compress.pipeline.lm_eval_model import OwlCompressLM

        return OwlCompressLM.create_from_arg_obj(arguments, {"batch_size": 2, "device": "cuda:0"})


@pytest.mark.parametrize("kind", FOLDERS)
def test_lm_eval_finds_of_every_folder_what_we_find(kind: str, recipe: MakeRecipe, numbers: Path) -> None:
    options = dict(FOLDERS[kind])
    run(recipe(options.pop("backend"), **options), "OUT")
    theirs = scores(model_of(pretrained="OUT"))
    loaded = load("OUT")
    (ours,) = accuracy(loaded.model, loaded.tokenizer, TaskOptions(files=("numbers.jsonl",)))
    assert theirs["acc,none"] == ours.value
    assert theirs["acc_stderr,none"] == ours.stderr
    assert theirs["acc_norm,none"] == ours.others["acc_norm"].value


def test_arguments_say_how_the_model_is_loaded_and_scored(numbers: Path) -> None:
    model = model_of(pretrained="model", dtype="bfloat16", max_length=32, trust_remote_code=True)
    assert (str(model.model.dtype), model.max_length, model.batch_size) == ("torch.bfloat16", 32, 2)
    assert scores(model)["sample_len"] == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pretrained": "./nowhere"}, "model path './nowhere' does not exist"),
        ({"pretrained": "model", "dtype": "float8"}, "unknown dtype 'float8'"),
        ({"pretrained": "model", "dtyp": "float32"}, "--model_args: 'dtyp' is not known: did you mean 'dtyp"),
        ({"pretrained": "model", "gguf_file": "x"}, "--model_args: 'gguf_file' is not known"),
        ({"pretrained": "model", "revision": "main"}, "is for a model on the hub"),
    ],
)
def test_what_cannot_be_meant_is_refused(here: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        model_of(**arguments)
    assert message in str(caught.value)


def test_the_type_is_known_to_lm_eval_once_it_is_offered() -> None:
    with undisturbed_process():
        from lm_eval.api.registry import get_model

        from owl_compress.lm_eval import offer
        from owl_compress.pipeline.lm_eval_model import OwlCompressLM

        offer()
        offer()
        assert get_model("owl-compress") is OwlCompressLM


def python(code: str) -> str:
    """What a fresh process prints."""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ran.stdout.strip()


def test_lm_eval_keeps_the_models_of_its_own() -> None:
    code = (
        "import lm_eval; from owl_compress.lm_eval import offer; offer(); import sys; "
        "from lm_eval.api.registry import model_registry; "
        "print('owl-compress' in model_registry, 'hf' in model_registry, 'torch' in sys.modules)"
    )
    assert python(code) == "True True False"


def test_without_lm_eval_the_way_in_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(way_in, "find_spec", lambda _: None)
    with pytest.raises(SystemExit) as ended:
        way_in.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'owl-compress[eval]'" in line


@pytest.mark.slow
def test_the_command_line_of_lm_eval_finds_what_ours_finds(
    recipe: MakeRecipe, numbers: Path, here: Path
) -> None:
    run(recipe("structured", prune_ratio=0.4, round_to=8), "OUT")
    harness = [
        sys.executable,
        "-m",
        "owl_compress.lm_eval",
        "run",
        "--tasks",
        "numbers.yaml",
        "--output_path",
        "found",
    ]
    model = ["--model", "owl-compress", "--model_args", "pretrained=OUT", "--batch_size", "2"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [*harness, *model], env=environment, cwd=here, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    (path,) = (here / "found").rglob("*.json")
    theirs = json.loads(path.read_text())["results"]["numbers"]
    ours = [sys.executable, "-m", "owl_compress", "eval", "OUT", "--task-file", "numbers.jsonl", "--json"]
    found = json.loads(subprocess.run(ours, cwd=here, capture_output=True, text=True, check=True).stdout)
    assert theirs["acc,none"] == found["tasks"]["numbers"]["value"]
    assert theirs["acc_stderr,none"] == found["tasks"]["numbers"]["stderr"]


@pytest.mark.slow
def test_a_gguf_is_scored_too(numbers: Path) -> None:
    assert scores(model_of(pretrained="builtin"))["sample_len"] == 9
