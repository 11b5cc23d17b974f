"""Metrics by name."""

import re

import pytest
import torch

from owl_compress.errors import RequestError
from owl_compress.importance.metrics import DEFAULT_METRICS, METRICS, find_metric, with_defaults
from owl_compress.walk.scores import ScoredWeight, ScorePool

WEIGHT = torch.tensor([[1.0, -2.0], [3.0, -4.0]])
POOL = ScorePool((ScoredWeight(WEIGHT, torch.tensor([1.0, 10.0])),))  # scores 1, 20, 3, 40: mean 16


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lod@1", 0.5),
        ("lod@2", 0.25),
        ("lod@2.5", 0.0),  # 40 is not above 40
        ("lod@0.05", 1.0),
        ("score_mean", 16.0),
        ("score_median", 3.0),
        ("weight_l1", 10.0),
        ("weight_l2", 30**0.5),
    ],
)
def test_values_by_hand(name: str, value: float) -> None:
    assert find_metric(name)(POOL) == pytest.approx(value, rel=1e-12)


def test_every_default_metric_is_there_and_says_what_it_is() -> None:
    for name in DEFAULT_METRICS:
        assert find_metric(name)(POOL) >= 0
    assert not {"alpha", "reconstruction_error"} & set(
        DEFAULT_METRICS
    )  # they cost more than the forward pass
    for name in METRICS.names():
        assert METRICS.load(name).__doc__


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lodd@5", "unknown metric 'lodd@5': did you mean 'lod@5'?"),
        ("score-mean", "unknown metric 'score-mean': did you mean 'score_mean'?"),
        ("lod5", "unknown metric 'lod5': did you mean 'lod@5'?"),
        ("lod", "metric 'lod' needs a number: write lod@5, or another"),
        ("score_mean@3", "metric 'score_mean@3' takes no parameter: write score_mean"),
        ("lod@zero", "metric 'lod@zero' has parameter 'zero': give a positive number"),
        ("lod@-1", "metric 'lod@-1' has parameter '-1': give a positive number"),
        ("lod@nan", "metric 'lod@nan' has parameter 'nan'"),
        ("lod@inf", "metric 'lod@inf' has parameter 'inf'"),
    ],
)
def test_a_metric_that_is_none_is_refused(name: str, message: str) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        find_metric(name)


def test_further_metrics_join_the_defaults_once() -> None:
    assert with_defaults(["lod@5", "lod@4", "lod@4"]) == (*DEFAULT_METRICS, "lod@4")
    with pytest.raises(RequestError, match="unknown metric 'lodd@5'"):
        with_defaults(["lodd@5"])
