"""Metrics of importance: plugins that turn the scores and weights of a block or linear into one number.

A metric is a callable `ScorePool -> float` with a docstring that names its source. Further ones register
through the entry point group `owl_compress.metrics`; an entry named "name" whose callable also takes a
parameter is asked for as "name@parameter", like `lod@5`. One that looks at `ScoredWeight.gram` says so with
an attribute `reads_gram` that is True: then the Gram matrices of the block's inputs are gathered in the same
pass, and are there for one block at a time.
"""

from collections.abc import Callable, Iterable
from functools import update_wrapper
from inspect import signature
from math import isfinite, sqrt
from statistics import fmean

from owl_compress.errors import RequestError, nearest
from owl_compress.importance.reconstruction import least_error
from owl_compress.importance.spectra import tail_exponent
from owl_compress.registry import Registry
from owl_compress.walk.scores import ScoredWeight, ScorePool

Metric = Callable[[ScorePool], float]

METRICS = Registry(
    kind="metric",
    group="owl_compress.metrics",
    builtin={
        "alpha": "owl_compress.importance.metrics:alpha",
        "lod": "owl_compress.importance.metrics:layer_outlier_distribution",
        "reconstruction_error": "owl_compress.importance.metrics:reconstruction_error",
        "score_mean": "owl_compress.importance.metrics:score_mean",
        "score_median": "owl_compress.importance.metrics:score_median",
        "weight_l1": "owl_compress.importance.metrics:weight_l1",
        "weight_l2": "owl_compress.importance.metrics:weight_l2",
    },
)

DEFAULT_METRICS = (
    "lod@3",
    "lod@5",
    "lod@7",
    "lod@10",
    "score_mean",
    "score_median",
    "weight_l1",
    "weight_l2",
)


_EXAMPLE = "@5"


def layer_outlier_distribution(pool: ScorePool, multiple: float) -> float:
    """Fraction of scores above M times their mean: #(A > M * mean(A)) / #A, with M the `multiple`.

    Source: OWL (arXiv 2310.05175), section 3; there as a percentage, here as a fraction.
    """
    return pool.count_above(multiple * pool.mean) / pool.size


def score_mean(pool: ScorePool) -> float:
    """Mean of |W_ij| * ‖X_j‖."""
    return pool.mean


def score_median(pool: ScorePool) -> float:
    """Lower median of |W_ij| * ‖X_j‖: what DLP (arXiv 2505.23807) ranks blocks by."""
    return pool.median


def weight_l1(pool: ScorePool) -> float:
    """Sum of |W_ij|."""
    return sum(member.l1 for member in pool.members)


def weight_l2(pool: ScorePool) -> float:
    """Square root of the sum of W_ij^2."""
    return sqrt(sum(member.squared_l2 for member in pool.members))


def alpha(pool: ScorePool) -> float:
    """Mean over the linears of the exponent of the tail of W^T W's spectrum: light tails are large.

    Source: AlphaPruning (arXiv 2410.10912); see `owl_compress.importance.spectra`. It costs the eigenvalues
    of a matrix as wide as the smaller side of each weight, and no calibration text would change it.
    """
    return fmean(member.once(_tail_exponent) for member in pool.members)


def reconstruction_error(pool: ScorePool) -> float:
    """Mean over the linears of Σ ‖WX - W'X‖², W' without the half of the weights that matters least.

    Source: LSA (Yang et al., ICLR 2026); see `owl_compress.importance.reconstruction`. Needs the Gram matrix
    of each linear's inputs.
    """
    return fmean(member.once(_least_error) for member in pool.members)


vars(reconstruction_error)["reads_gram"] = True


def _tail_exponent(member: ScoredWeight) -> float:
    return tail_exponent(member.weight)


def _least_error(member: ScoredWeight) -> float:
    if member.gram is None:
        raise TypeError("a metric that reads Gram matrices says so with reads_gram")
    return least_error(member.weight, member.gram)


def reads_gram(metric: Metric) -> bool:
    """Whether a metric looks at the Gram matrices of the inputs."""
    return getattr(metric, "reads_gram", False) is True


def find_metric(name: str) -> Metric:
    """The metric called `name`, with its parameter after "@" filled in.

    Raises:
        RequestError: unknown metric, or a parameter that is no positive number.
    """
    base, at, parameter = name.partition("@")
    if base not in METRICS.names():
        raise RequestError(f"unknown metric {name!r}: {nearest(name, _as_typed())}")
    metric: Callable[..., float] = METRICS.load(base)
    if not _takes_parameter(metric):
        if at:
            raise RequestError(f"metric {name!r} takes no parameter: write {base}")
        return metric
    if not at:
        raise RequestError(f"metric {name!r} needs a number: write {base}{_EXAMPLE}, or another")
    try:
        value = float(parameter)
    except ValueError:
        value = float("nan")
    if not (isfinite(value) and value > 0):
        raise RequestError(
            f"metric {name!r} has parameter {parameter!r}: give a positive number, as in {base}{_EXAMPLE}"
        )
    return update_wrapper(lambda pool: metric(pool, value), metric)


def _takes_parameter(metric: Callable[..., float]) -> bool:
    return len(signature(metric).parameters) == 2


def _as_typed() -> list[str]:
    """All metrics as they may be asked for, with an example of a parameter where they take one."""
    return [f"{name}{_EXAMPLE}" if _takes_parameter(metric) else name for name, metric in METRICS.loadable()]


def with_defaults(further: Iterable[str]) -> tuple[str, ...]:
    """The default metrics and `further` ones, each once.

    Raises:
        RequestError: see `find_metric`.
    """
    names = tuple(dict.fromkeys([*DEFAULT_METRICS, *further]))
    for name in names:
        find_metric(name)
    return names
