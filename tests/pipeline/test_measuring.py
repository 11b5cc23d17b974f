"""A measurement is refused before its model is loaded, and is what a run would measure."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from owl_compress.device import resolve_device
from owl_compress.documents.recipe import Recipe
from owl_compress.errors import RequestError
from owl_compress.importance.metrics import DEFAULT_METRICS
from owl_compress.models.structure import find_structure
from owl_compress.pipeline.execution import run
from owl_compress.pipeline.measuring import Measurement, taken
from owl_compress.pipeline.stages import load

GIVEN = {"calib": "text.txt", "samples": 4, "seq_len": 32, "device": "cpu"}


@pytest.mark.parametrize(
    ("changes", "metrics", "message"),
    [
        ({}, ["load@5"], "unknown metric 'load"),
        ({"device": "tpu"}, [], "unknown device 'tpu'"),
        ({"samples": 0}, [], "0 samples are too few"),
        ({"seed": -1}, [], "seed -1 is negative"),
        ({"sampling": "last"}, [], "unknown sampling 'last'"),
        ({"bos": "never ever"}, [], "unknown bos 'never ever'"),
    ],
)
def test_refused_before_the_model_is_looked_for(
    changes: dict[str, Any], metrics: list[str], message: str
) -> None:
    with pytest.raises(RequestError) as caught:
        Measurement.of("./nowhere", {**GIVEN, **changes}, metrics)
    assert message in str(caught.value)
    assert "nowhere" not in str(caught.value)


def test_the_model_is_looked_for_when_it_runs() -> None:
    measurement = Measurement.of("./nowhere", GIVEN)
    with pytest.raises(RequestError, match=r"model path '\./nowhere' does not exist"):
        measurement.run()


def test_a_type_that_does_not_exist_is_refused_before_the_model_is_looked_for() -> None:
    with pytest.raises(RequestError, match="unknown dtype 'int3'"):
        Measurement.of("./nowhere", {**GIVEN, "dtype": "int3"}).run()


def test_it_measures_what_a_run_measures(here: Path, recipe: Callable[..., Recipe]) -> None:
    report = Measurement.of("model", GIVEN).run()
    assert report == run(recipe("wanda", sparsity=0.5), None).report
    assert [block.metrics.keys() for block in report.blocks] == [set(DEFAULT_METRICS)] * 3
    assert report.provenance.calibration is not None
    assert report.provenance.calibration.sequences == 4
    assert (report.model.id, report.model.dtype) == ("model", "float32")


def test_further_metrics_come_to_the_default_ones(here: Path) -> None:
    report = Measurement.of("model", GIVEN, ["lod@8"]).run()
    assert set(report.blocks[0].metrics) == {*DEFAULT_METRICS, "lod@8"}
    assert set(report.blocks[0].linears[0].metrics) == {*DEFAULT_METRICS, "lod@8"}


def test_the_model_is_loaded_as_asked(here: Path) -> None:
    assert Measurement.of("model", {**GIVEN, "dtype": "bfloat16"}).run().model.dtype == "bfloat16"


def test_everything_is_found_once(here: Path, count_calls: Callable[[Callable[..., Any]], list[Any]]) -> None:
    calls = [count_calls(one) for one in (find_structure, resolve_device, load)]
    Measurement.of("model", GIVEN).run()
    assert [len(found) for found in calls] == [1, 1, 1]


def test_what_is_not_given_is_as_in_a_recipe() -> None:
    measurement = Measurement.of("model", {"device": "cpu"})
    usual = Recipe.from_options({"model": "m", "backend": "b", "plan": "p"})
    assert (measurement.calibration.source, measurement.calibration.samples) == (usual.calib, usual.samples)
    assert (measurement.calibration.sampling, measurement.calibration.bos) == (usual.sampling, usual.bos)
    assert measurement.batch_size == usual.batch_size
    assert not any(measurement.loading.values())


def test_only_the_options_that_are_named_are_taken() -> None:
    assert taken({"a": 1, "b": None, "c": 3}, ("a", "b", "d")) == {"a": 1, "b": None}
