"""What the Python interface takes and refuses: the natural works, everything else is one line at the door."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

import owl_compress as oc
from owl_compress.allocators import Target
from owl_compress.arguments import checked
from owl_compress.backends.wanda import Wanda
from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.data.windows import CalibrationOptions
from owl_compress.documents.units import Unit

NO_UTF8 = "a\udcff"


@pytest.fixture(scope="module")
def things(
    make_model: Callable[[str], Any], make_windows: Callable[..., Any], tokenizer: PreTrainedTokenizerFast
) -> SimpleNamespace:
    """What a call needs besides the argument that is wrong."""
    model, windows = make_model("llama"), make_windows(sequences=2, seq_len=16)
    report = oc.measure(model, windows)
    return SimpleNamespace(
        model=model,
        windows=windows,
        report=report,
        plan=oc.allocate(report, sparsity=0.5),
        loaded=LoadedModel(model, tokenizer, "tiny", "tiny", None, "float32"),
    )


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "run, text": (lambda _: oc.run("x", None), r"recipe has to be a Recipe, not 'x': Recipe\.from_options"),
    "run, dict": (lambda _: oc.run({}, "OUT"), "recipe has to be a Recipe, not a dict: "),
    "load, number": (lambda _: oc.load(3), "source has to be a path or text, not 3"),
    "load, none": (lambda _: oc.load(None), "source has to be a path or text, not None"),
    "load, bytes": (lambda _: oc.load(b"m"), "source has to be a path or text, not b'm'"),
    "load, no UTF-8": (lambda _: oc.load(NO_UTF8), "is not valid UTF-8"),
    "load, device": (lambda _: oc.load("m", device="gpu"), "unknown device 'gpu'"),
    "load, device number": (
        lambda _: oc.load("m", device=0),
        "device has to be a device or text or None, not 0",
    ),
    "load, dtype": (lambda _: oc.load("m", dtype=torch.int8), "unknown dtype 'int8'"),
    "load, consent": (
        lambda _: oc.load("m", trust_remote_code="no"),
        "trust_remote_code has to be True or False, not 'no'",
    ),
    "consent": (lambda _: oc.Consent("false"), "trust_remote_code has to be True or False, not 'false'"),
    "calibrate, model": (
        lambda t: oc.calibrate(t.model, "x"),
        r"a LoadedModel, not a LlamaForCausalLM: load",
    ),
    "calibrate, list": (
        lambda t: oc.calibrate(t.loaded, ["a text"]),
        "source has to be a path or text, not a l",
    ),
    "calibrate, samples": (
        lambda t: oc.calibrate(t.loaded, "x", samples="8"),
        "samples has to be a whole number, not '8'",
    ),
    "evaluate, none": (lambda t: oc.evaluate(t.loaded, None), "source has to be a path or text, not None"),
    "measure, loaded": (lambda t: oc.measure(t.loaded, t.windows), r"a LoadedModel: give its \.model"),
    "measure, name": (lambda t: oc.measure("gpt2", t.windows), r"a Module, not 'gpt2': give a model of"),
    "measure, texts": (
        lambda t: oc.measure(t.model, ["a text"]),
        r"calibration has to be a TokenWindows, not a list: calibrate\(loaded, text\)",
    ),
    "measure, tensor": (lambda t: oc.measure(t.model, t.windows.ids), "a TokenWindows, not a Tensor"),
    "measure, metric": (
        lambda t: oc.measure(t.model, t.windows, metrics="lod@5"),
        r"metrics has to be a list of text, not 'lod@5': write \['lod@5'\]",
    ),
    "perplexity": (lambda t: oc.perplexity("gpt2", t.windows), "model has to be a Module, not 'gpt2'"),
    "perplexity, batches": (
        lambda t: oc.perplexity(t.model, t.windows, batch_size=1.5),
        r"batch_size has to be a whole number, not 1\.5",
    ),
    "perplexity, progress": (
        lambda t: oc.perplexity(t.model, t.windows, progress=True),
        "progress has to be a Progress, not True",
    ),
    "allocate, dict": (
        lambda t: oc.allocate(t.report.model_dump(), sparsity=0.5),
        "an ImportanceReport or a SensitivityProfile, not a d",
    ),
    "allocate, path": (lambda _: oc.allocate("report.json", sparsity=0.5), r"ImportanceReport\.read\(path\)"),
    "allocate, skips": (
        lambda t: oc.allocate(t.report, sparsity=0.5, skips="model.layers.0"),
        r"skips has to be a list of text, not 'model\.layers\.0': write \['model\.layers\.0'\]",
    ),
    "allocate, sparsity": (
        lambda t: oc.allocate(t.report, sparsity="0.7"),
        r"sparsity has to be a number, not '0\.7'",
    ),
    "allocate, switch": (
        lambda t: oc.allocate(t.report, sparsity=True),
        "sparsity has to be a number, not True",
    ),
    "allocate, pattern": (lambda t: oc.allocate(t.report, nm=3), "pattern has to be text, not 3"),
    "allocate, pins": (
        lambda t: oc.allocate(t.report, sparsity=0.5, pins=["model.layers.0=1"]),
        "pins has to be a dict of names and values, not a list",
    ),
    "allocate, pin": (
        lambda t: oc.allocate(t.report, sparsity=0.5, pins={"model.layers.0": "1"}),
        "pins has to be a number, not a dict",
    ),
    "allocate, allocator": (
        lambda t: oc.allocate(t.report, 5, sparsity=0.5),
        "allocator has to be text or an Al",
    ),
    "compress_, path": (
        lambda t: oc.compress_(t.model, "plan.json", "wanda", t.windows),
        r"plan has to be a Plan, not 'plan\.json': allocate makes one, Plan\.read\(path\)",
    ),
    "compress_, report": (
        lambda t: oc.compress_(t.model, t.report, "wanda"),
        "a Plan, not an ImportanceReport",
    ),
    "compress_, class": (
        lambda t: oc.compress_(t.model, t.plan, Wanda, t.windows),
        r"not the class Wanda: make one of it, as Wanda\(\)",
    ),
    "compress_, texts": (
        lambda t: oc.compress_(t.model, t.plan, "wanda", "x"),
        "a TokenWindows or None, not 'x'",
    ),
    "save": (lambda t: oc.save(t.loaded, t.plan, t.plan, "OUT"), "result has to be a Result, not a Plan"),
    "verify, none": (lambda _: oc.verify(None), "folder has to be a path or text, not None"),
    "verify, no UTF-8": (lambda _: oc.verify(Path(NO_UTF8)), "is not valid UTF-8"),
    "original_of": (lambda _: oc.original_of(1), "folder has to be a path or text, not 1"),
    "make_plan": (lambda _: oc.make_plan("x"), r"a Session, not 'x': Session\.open\(recipe\)"),
    "forecast": (lambda t: oc.forecast(t.model, t.plan), "session has to be a Session"),
    "try_out": (lambda t: oc.try_out(None, t.windows), "session has to be a Session, not None"),
    "time_model": (
        lambda _: oc.time_model("m", {"compiled": True}),
        "options has to be a TimingOptions or None",
    ),
    "timing": (lambda _: oc.TimingOptions(compiled="yes"), "compiled has to be True or False, not 'yes'"),
    "session": (
        lambda _: oc.Session.open({"model": "m"}),
        "request has to be a Request or a Recipe, not a dict",
    ),
    "recipe": (
        lambda _: oc.Recipe.from_options("recipe.yaml"),
        "options has to be a dict of names and values",
    ),
    "plan": (lambda _: oc.Plan.read(None), "path has to be a path or text, not None"),
    "report, no UTF-8": (lambda _: oc.ImportanceReport.read(NO_UTF8), "is not valid UTF-8"),
    "write": (lambda t: t.plan.write(3), "path has to be a path or text, not 3"),
    "write, no UTF-8": (lambda t: t.plan.write(NO_UTF8), "is not valid UTF-8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_argument_of_another_type_is_refused_in_one_line(case: str, things: SimpleNamespace) -> None:
    call, message = REFUSED[case]
    with pytest.raises(oc.RequestError, match=message) as refused:
        call(things)
    assert "\n" not in str(refused.value)


def test_every_function_of_the_interface_is_held_against_its_annotations() -> None:
    functions = [getattr(oc, name) for name in oc.__all__ if not isinstance(getattr(oc, name), type)]
    assert [one.__name__ for one in functions if not hasattr(one, "__wrapped__")] == []


def test_devices_paths_and_numbers_are_taken_as_people_have_them(here: Path) -> None:
    loaded = oc.load(Path("model"), device="cpu", dtype=torch.float32)
    windows = oc.calibrate(loaded, Path("text.txt"), samples=np.int64(2), seq_len=np.int32(16))
    report = oc.measure(loaded.model, windows, metrics=["lod@5"], device="cpu", batch_size=np.int64(2))
    skips = ["model.layers.0"]
    plan = oc.allocate(report, sparsity=np.float32(0.5), lam=np.float64(0.05), skips=skips, solver=None)
    assert plan == oc.allocate(report, sparsity=0.5, lam=0.05, skips=tuple(skips))
    result = oc.compress_(loaded.model, plan, "wanda", windows, device="cpu")
    oc.save(loaded, result, plan, "OUT")
    assert oc.verify("OUT").ok
    assert oc.evaluate(loaded, Path("other.txt"), seq_len=16, device="cpu").seq_len == 16


def test_a_recipe_takes_paths() -> None:
    options = {"model": Path("m"), "plan": Path("plan.json"), "calib": Path("t.txt"), "backend": "wanda"}
    recipe = oc.Recipe.from_options(options)
    assert (recipe.model, recipe.plan, recipe.calib) == ("m", "plan.json", "t.txt")


def test_missing_and_unknown_arguments_stay_errors_of_python() -> None:
    with pytest.raises(TypeError, match=r"load\(\) got an unexpected keyword argument 'dtyp'"):
        oc.load("m", dtyp="float32")
    with pytest.raises(TypeError, match=r"verify\(\) missing 1 required positional argument: 'folder'"):
        oc.verify()


def test_values_come_as_they_are_annotated() -> None:
    @checked
    def call(
        share: float,
        names: tuple[str, ...] = (),
        pins: Mapping[str, float] | None = None,
        word: Literal["a", "b"] = "a",
        unit: Unit = Unit.DENSITY,
    ) -> Any:
        return share, names, pins, word, unit

    zero_d = torch.tensor(0.25)
    assert call(zero_d, ["x"], {"x": np.float64(1)}, "b", "bits") == (
        0.25,
        ("x",),
        {"x": 1.0},
        "b",
        Unit.BITS,
    )
    assert call(1) == (1, (), None, "a", Unit.DENSITY)
    with pytest.raises(oc.RequestError, match="word has to be one of 'a', 'b', not 5"):
        call(1, word=5)
    with pytest.raises(oc.RequestError, match="share has to be a number, not a Tensor"):
        call(torch.zeros(2))


def test_frozen_options_are_checked_at_birth() -> None:
    assert CalibrationOptions("x", samples=np.int64(3)).samples == 3
    with pytest.raises(oc.RequestError, match="chat_template has to be True or False, not 'no'"):
        CalibrationOptions("x", chat_template="no")
    with pytest.raises(oc.RequestError, match=r"value has to be a number, not '0\.5'"):
        Target(Unit.DENSITY, "0.5")
