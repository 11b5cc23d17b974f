"""What seeds do: spreads, and paired comparisons with the baseline of a group."""

from math import exp, inf, log
from statistics import mean, stdev
from typing import Any

import pytest
from scipy import stats

from owl_compress.documents.comparison import Row
from owl_compress.pages.seeds import Spread, figures_of, method_name, methods_of

PROVENANCE = {"versions": {}, "machine": {}, "command": "", "texts": {}}


def row(allocator: str, seed: int, perplexity: float, group: str = "g", **changes: Any) -> Row:
    record = {
        "perplexity": perplexity, "tokens": 1, "windows": 1, "seq_len": 2, "dtype": "float32", "data": "t",
        "bos": "first", "n_params": 1,
    }  # fmt: skip
    plain = {
        "cell": f"{group} {allocator} {seed}", "name": f"{allocator} seed={seed}", "group": group,
        "axes": {"allocator": allocator, "seed": seed}, "recipe": {"allocator": allocator, "seed": seed},
        "status": "done", "perplexity": {"t": record}, "provenance": PROVENANCE,
    }  # fmt: skip
    return Row.model_validate(plain | changes)


UNIFORM, OWL = (40.0, 44.0, 42.0), (38.0, 43.0, 39.0)
ROWS = [row("uniform", seed, one) for seed, one in enumerate(UNIFORM)] + [
    row("owl", seed, one) for seed, one in enumerate(OWL)
]


def test_spread_is_that_of_the_values() -> None:
    spread = Spread.of(UNIFORM)
    assert (spread.n, spread.mean, spread.low, spread.high) == (3, mean(UNIFORM), 40.0, 44.0)
    assert spread.sd == pytest.approx(stdev(UNIFORM))
    assert Spread.of([1.0]).sd is None


def test_what_is_beyond_floats_is_told_all_the_same() -> None:
    spread = Spread.of([1e308, 1e308, 1.0])
    assert (spread.mean, spread.sd) == pytest.approx((2 / 3 * 1e308, 3**-0.5 * 1e308))
    lost = [row("owl", seed, one) for seed, one in enumerate((1e-300, 1e300, 40.0))]
    paired = methods_of([*ROWS[:3], *lost])[1].against["perplexity t"]
    assert (paired.low, paired.high, paired.is_told_apart) == (-1.0, inf, False)


def test_methods_are_compared_in_pairs_of_equal_seeds_by_the_logarithm() -> None:
    uniform, owl = methods_of(ROWS)
    assert (uniform.name, uniform.is_baseline, uniform.against) == ("uniform", True, {})
    assert owl.name == "owl"
    paired = owl.against["perplexity t"]
    differences = [log(one) - log(other) for one, other in zip(OWL, UNIFORM, strict=True)]
    interval = stats.ttest_rel([log(one) for one in OWL], [log(one) for one in UNIFORM]).confidence_interval(
        0.95
    )
    assert paired.difference == pytest.approx(exp(mean(differences)) - 1)
    assert (paired.low, paired.high) == pytest.approx((exp(interval.low) - 1, exp(interval.high) - 1))
    assert paired.is_told_apart is bool(interval.high < 0)


def test_rows_that_differ_in_what_is_no_axis_are_no_seeds_of_each_other() -> None:
    more = [
        row("owl", seed, 90.0, recipe={"allocator": "owl", "seed": seed, "samples": 8}, cell=f"more {seed}")
        for seed in range(3)
    ]
    _, owl, other = methods_of([*ROWS, *more])
    assert (len(owl.rows), owl.spreads["perplexity t"].mean) == (3, mean(OWL))
    assert (len(other.rows), other.spreads["perplexity t"].sd) == (3, 0)


@pytest.mark.parametrize(("owl", "is_told_apart"), [((30.0, 33.1, 31.4), True), ((36.0, 48.0, 42.0), False)])
def test_a_difference_is_told_from_chance_where_the_interval_leaves_zero_out(
    owl: tuple[float, ...], is_told_apart: bool
) -> None:
    rows = [*ROWS[:3], *(row("owl", seed, one) for seed, one in enumerate(owl))]
    assert methods_of(rows)[1].against["perplexity t"].is_told_apart is is_told_apart


def test_only_equal_seeds_of_a_group_are_paired_and_what_drifted_is_not() -> None:
    rows = [
        row("uniform", 0, 40.0), row("uniform", 1, 41.0), row("owl", 1, 39.0), row("owl", 2, 38.0),
        row("dlp", 0, 30.0, status="drifted"), row("owl", 0, 10.0, group="other"),
    ]  # fmt: skip
    uniform, owl, dlp, other = methods_of(rows)
    assert owl.against["perplexity t"].n == 1
    assert owl.against["perplexity t"].difference == pytest.approx(39 / 41 - 1)
    assert owl.against["perplexity t"].is_told_apart is None
    assert dlp.against == {}
    assert dlp.spreads["perplexity t"].mean == 30.0
    assert other.against == {}
    assert uniform.spreads["perplexity t"].n == 2


def test_accuracy_is_compared_as_it_is() -> None:
    def accuracy(value: float) -> dict[str, Any]:
        return {"boolq": {"task": "boolq", "metric": "acc", "value": value, "stderr": 0.1, "samples": 9,
                          "shots": 0, "version": "1"}}  # fmt: skip

    rows = [
        row("uniform", 0, 40.0, tasks=accuracy(0.5)), row("uniform", 1, 40.0, tasks=accuracy(0.6)),
        row("owl", 0, 40.0, tasks=accuracy(0.6)), row("owl", 1, 40.0, tasks=accuracy(0.75)),
    ]  # fmt: skip
    assert [figure.name for figure in figures_of(rows)] == ["perplexity t", "boolq"]
    assert methods_of(rows)[1].against["boolq"].difference == pytest.approx(0.125)


def test_the_name_of_a_method_has_no_seed() -> None:
    assert method_name(row("owl", 3, 1.0)) == "owl"
    assert method_name(row("owl", 3, 1.0, name="seed=3", axes={"seed": 3})) == "g"
    assert method_name(row("owl", 3, 1.0, name="owl", axes={})) == "owl"
