"""Each allocator against its own equation."""

import numpy as np
import pytest

from owl_compress.allocators import ALLOCATORS, Target, allocate
from owl_compress.allocators.owl import Owl
from owl_compress.errors import RequestError

D = [0.9, 0.1, 0.3, 0.2]
WIDE = {"attn.o": (32, 16), "mlp.down": (16, 64)}
NARROW = {"attn.o": (8, 16), "mlp.down": (16, 16)}


def _blocks(plan):
    return [block.value for block in plan.per_block]


def _values(plan):
    return {budget.name: budget.value for budget in plan.budgets}


@pytest.mark.parametrize(("sparsity", "lam"), [(0.7, 0.08), (0.5, 0.2), (0.6, 0.05)])
def test_owl_published_is_the_equation_of_the_paper_s_code(sparsity, lam, make_report):
    plan = allocate(make_report(D), "owl", Target.from_sparsity(sparsity), {"lam": lam})
    ratio = (np.array(D) - min(D)) / (max(D) - min(D)) * lam * 2
    np.testing.assert_allclose(_blocks(plan), ratio - ratio.mean() + (1 - sparsity), atol=1e-15)


def test_owl_weighs_the_mean_by_number_of_weights(make_report):
    plan = allocate(make_report([0.9, 0.1], [WIDE, NARROW]), "owl", Target.from_sparsity(0.5))
    first, second = _blocks(plan)
    n = [block.n_weights for block in plan.per_block]
    assert first - second == pytest.approx(0.16, abs=1e-14)
    assert (n[0] * first + n[1] * second) / sum(n) == pytest.approx(0.5, abs=1e-14)


def test_owl_bounded_departs_by_lam_at_most_in_the_same_shape(make_report):
    report = make_report(D)
    published = np.array(_blocks(allocate(report, "owl", Target.from_sparsity(0.5)))) - 0.5
    bounded = np.array(_blocks(allocate(report, "owl", Target.from_sparsity(0.5), {"law": "bounded"}))) - 0.5
    assert np.abs(bounded).max() == pytest.approx(0.08, abs=1e-14)
    np.testing.assert_allclose(bounded / bounded[0], published / published[0], atol=1e-12)
    assert np.abs(published).max() > 0.08  # what the paper's text rules out and its code does


def test_owl_takes_any_metric_of_the_report(make_report):
    report = make_report(D)
    plan = allocate(report, "owl", Target.from_sparsity(0.7), {"metric": "lod@10"})
    assert plan.allocator.parameters == {
        "metric": "lod@10",
        "lam": 0.08,
        "law": "published",
        "granularity": "block",
    }
    with pytest.raises(
        RequestError, match=r"no metric 'lod@6' for model.layers.0: did you mean 'lod@\d+'\?.*measure"
    ):
        allocate(report, "owl", Target.from_sparsity(0.7), {"metric": "lod@6"})


def test_owl_inverse_mirrors_owl_around_the_target(make_report):
    report, target = make_report([0.0, 0.5, 1.0]), Target.from_sparsity(0.5)
    owl, inverse = (np.array(_blocks(allocate(report, name, target))) for name in ("owl", "owl-inverse"))
    np.testing.assert_allclose(owl + inverse, 1.0, atol=1e-14)


def test_linear_depth_falls_in_equal_steps_over_two_lam(make_report):
    plan = allocate(make_report(D), "linear-depth", Target.from_sparsity(0.7), {"lam": 0.1})
    np.testing.assert_allclose(_blocks(plan), 0.3 + np.array([0.1, 1 / 30, -1 / 30, -0.1]), atol=1e-14)


def test_dlp_is_the_equation_of_its_paper(make_report):
    plan = allocate(make_report(D), "dlp", Target.from_sparsity(0.7))
    scores = 1 + np.array(D)
    r = 1 - scores / scores.sum()
    z = (r - r.min()) / (r.max() - r.min())
    np.testing.assert_allclose(_blocks(plan), 0.3 + 2 * 0.15 * (z - z.mean()), atol=1e-14)


def _removed_by_alpha(exponents, weights, sparsity, tau):
    z = (exponents - exponents.min()) / (exponents.max() - exponents.min())
    removed = (1 - tau) + z * 2 * tau
    return removed * sparsity * weights.sum() / (removed * weights).sum()


@pytest.mark.parametrize(("options", "tau"), [({}, 0.2), ({"tau": 0.1}, 0.1), ({"tau": 0}, 0)])
@pytest.mark.parametrize("make_target", [Target.from_sparsity, Target.from_prune_ratio])
def test_alpha_is_the_equation_of_its_paper(options, tau, make_target, make_report):
    plan = allocate(make_report(D, [WIDE, NARROW, WIDE, NARROW]), "alpha", make_target(0.6), options)
    weights = np.array([block.n_weights for block in plan.per_block])
    removed = _removed_by_alpha(4 - np.array(D), weights, 0.6, tau)
    np.testing.assert_allclose(_blocks(plan), 1 - removed, atol=1e-14)
    assert plan.allocator.parameters["tau"] == tau


def test_alpha_says_which_tau_fits(make_report):
    report, target = make_report(D), Target.from_sparsity(0.9)
    with pytest.raises(
        RequestError, match=r"tau 0.2 removes 1\.\d+ of model.layers.1, more than all"
    ) as refused:
        allocate(report, "alpha", target)
    fitting = float(str(refused.value).split("use tau ")[1].split()[0])
    values = _blocks(allocate(report, "alpha", target, {"tau": fitting}))
    assert 0 <= min(values) < 1e-3
    with pytest.raises(RequestError):
        allocate(report, "alpha", target, {"tau": fitting + 1e-3})


def test_alpha_within_bounds_keeps_the_law_for_those_inside_and_the_mean(make_report):
    plan = allocate(make_report(D), "alpha", Target.from_sparsity(0.7, low=0.15), {"tau": 0.5})
    values = _blocks(plan)
    assert np.mean(values) == pytest.approx(0.3, abs=1e-14)
    assert values[1] == values[3] == 0.15
    assert (1 - values[2]) / (1 - values[0]) == pytest.approx((0.5 + 0.75) / 0.5)  # s1 + z, s2 - s1 = 1


def test_on_a_grid_alpha_departs_by_tau_at_most(make_report):
    report = make_report([0.0, 0.3, 0.7, 1.0])
    plan = allocate(report, "alpha", Target.from_nm("4:8"))
    assert [8 * value for value in _blocks(plan)] == [2, 3, 5, 6]
    assert _blocks(allocate(report, "alpha", Target.from_bits(3))) == [2, 3, 3, 4]


@pytest.mark.parametrize("tau", [1.0, 1.5, float("nan")])
def test_a_tau_that_leaves_a_block_whole_is_refused(tau, make_report):
    with pytest.raises(RequestError, match=r"tau (1|1.5|nan) (is outside|must be|would leave)"):
        allocate(make_report(D), "alpha", Target.from_sparsity(0.5), {"tau": tau})


@pytest.mark.parametrize(
    ("sparsity", "beta"),
    [(0.05, 0.08), (0.1, 0.06), (0.3, 0.04), (0.5, 0.04), (0.6, 0.1), (0.7, 0.15), (0.75, 0.15), (0.8, 0.12)],
)
def test_lsa_is_the_equation_of_its_paper_with_the_authors_beta(sparsity, beta, make_report):
    scores = [0.4, 0.1, 0.3, 0.2]
    target = Target.from_sparsity(sparsity, low=0.0, high=1.0)
    plan = allocate(make_report(scores), "lsa", target)
    errors = 1 + np.array(scores)
    importance = 1 - errors / errors.sum()
    d = (importance - importance.min()) / (importance.max() - importance.min()) * 2 * beta
    assert plan.allocator.parameters["lam"] == beta
    if sparsity > beta:  # else the law is clipped
        np.testing.assert_allclose(_blocks(plan), 1 - (sparsity + d.mean() - d), atol=1e-14)


def test_lsa_departs_by_weights_of_m_and_by_bits_on_grids(make_report):
    report = make_report([0.0, 0.3, 0.7, 1.0])
    assert [8 * value for value in _blocks(allocate(report, "lsa", Target.from_nm("4:8")))] == [6, 5, 3, 2]
    assert _blocks(allocate(report, "lsa", Target.from_bits(3))) == [4, 3, 3, 2]


@pytest.mark.parametrize(("name", "metric"), [("alpha", "alpha"), ("lsa", "reconstruction_error")])
def test_what_was_not_measured_is_named(name, metric, make_report):
    report = make_report(D)
    bare = [block.model_copy(update={"metrics": {"lod@5": 0.1}}) for block in report.blocks]
    with pytest.raises(RequestError, match=rf"the report has no metric {metric!r} .*measure --metric"):
        allocate(report.model_copy(update={"blocks": tuple(bare)}), name, Target.from_sparsity(0.7))


def test_weight_l1_goes_by_the_mean_absolute_weight_not_the_sum(make_report):
    plan = allocate(make_report([0.2, 0.4], [WIDE, NARROW]), "weight-l1", Target.from_sparsity(0.5))
    assert _blocks(plan)[1] > _blocks(plan)[0]


def test_random_depends_on_the_seed_and_the_name_alone(make_report):
    target = Target.from_sparsity(0.5)
    plans = [_blocks(allocate(make_report(D), "random", target, {"seed": seed})) for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]
    assert max(plans[0]) - min(plans[0]) == pytest.approx(0.16)


def test_er_is_one_scale_for_all_with_the_full_ones_frozen(make_report):
    plan = allocate(make_report(D[:1]), "er", Target.from_sparsity(0.4))
    raw = {"attn.q": 2 / 16, "attn.k": 24 / 128, "mlp.up": 56 / 640}
    value = {
        name.removeprefix("model.layers.0.").removesuffix("_proj"): v for name, v in _values(plan).items()
    }
    assert value["attn.k"] == value["attn.v"] == 1.0
    assert value["attn.q"] / value["mlp.up"] == pytest.approx(raw["attn.q"] / raw["mlp.up"])
    assert plan.allocator.parameters["granularity"] == "linear"


def test_er_plus_keeps_the_last_linear_and_the_same_average(make_report):
    report, target = make_report(D), Target.from_sparsity(0.5)
    plan, er = allocate(report, "er-plus", target), allocate(report, "er", target)
    *_, last = plan.budgets
    assert last.value == 1.0
    assert plan.achieved == pytest.approx(0.5, abs=1e-12)
    assert all(v <= _values(er)[name] + 1e-12 for name, v in _values(plan).items() if name != last.name)
    with pytest.raises(RequestError, match=r"er-plus keeps model.layers.3.mlp.down_proj at 1, which alone"):
        allocate(report, "er-plus", Target.from_sparsity(0.99))


def test_global_keeps_what_lies_above_one_threshold(make_report):
    report = make_report([0.0, 1.0])
    plan = allocate(report, "global", Target.from_sparsity(0.6))
    kept = {}
    for block in report.blocks:
        for linear in block.linears:
            histogram = linear.score_histogram
            low_edges = histogram.first_bin + np.arange(len(histogram.counts))
            kept[linear.name] = (low_edges, np.array(histogram.counts), linear.n_weights)
    # Of every threshold between bins: those above are kept by all, and the plan lies between two neighbours.
    for edge in range(-1, 9):
        above = {name: counts[edges >= edge].sum() / n for name, (edges, counts, n) in kept.items()}
        within = {name: counts[edges >= edge - 1].sum() / n for name, (edges, counts, n) in kept.items()}
        if all(above[name] - 1e-12 <= value <= within[name] + 1e-12 for name, value in _values(plan).items()):
            break
    else:
        pytest.fail("no threshold explains the plan")


def test_global_without_histograms_says_so(make_report):
    report = make_report([0.1])
    linear = report.blocks[0].linears[0].model_copy(update={"score_histogram": None})
    block = report.blocks[0].model_copy(update={"linears": (linear, *report.blocks[0].linears[1:])})
    with pytest.raises(RequestError, match=r"no score histogram for model.layers.0.attn.q_proj"):
        allocate(report.model_copy(update={"blocks": (block,)}), "global", Target.from_sparsity(0.5))


def test_a_law_that_leaves_the_unit_interval_names_the_block_and_the_lam_that_fits(make_report):
    report = make_report(D)
    with pytest.raises(
        RequestError, match=r"gives model.layers.0 a density of 1\.\d+.*use lam 0\.\d+ or less, or --low/"
    ):
        allocate(report, "owl", Target.from_sparsity(0.05))
    with pytest.raises(RequestError) as caught:
        allocate(report, "owl", Target.from_sparsity(0.7), {"lam": 0.9})
    fitting = float(str(caught.value).split("use lam ")[1].split()[0])
    assert 0 <= min(_blocks(allocate(report, "owl", Target.from_sparsity(0.7), {"lam": fitting}))) < 1e-3
    with pytest.raises(RequestError):
        allocate(report, "owl", Target.from_sparsity(0.7), {"lam": fitting + 1e-3})
    clipped = allocate(report, "owl", Target.from_sparsity(0.7, low=0.1), {"lam": 0.9})
    assert min(_blocks(clipped)) == 0.1
    assert clipped.achieved == pytest.approx(0.3, abs=1e-12)


def test_the_lam_that_is_offered_fits(make_report):
    report = make_report([0.0, 0.5, 1.0])
    target = Target.from_sparsity(1e-9)
    with pytest.raises(RequestError, match=r"use lam \S+ or less") as refused:
        allocate(report, "owl", target)
    offered = float(str(refused.value).split("use lam ")[1].split()[0])
    assert 0 < offered < 1e-8
    assert allocate(report, "owl", target, {"lam": offered}).achieved == pytest.approx(1 - 1e-9, abs=1e-12)


@pytest.mark.parametrize("lam", [-0.1, 1.5, float("nan")])
@pytest.mark.parametrize("name", ["owl", "owl-inverse", "linear-depth", "weight-l1", "dlp", "lsa", "random"])
def test_lam_outside_the_unit_is_refused(name, lam, make_report):
    with pytest.raises(RequestError, match=r"lam .* is outside \[0, 1\]"):
        allocate(make_report(D), name, Target.from_sparsity(0.7), {"lam": lam})


class TestPublishedMixedNM:
    """The two rules of the paper's authors for mixed N:M, drift and all.

    With lam 2 and scores from 0 to 1, lam · z is twice the score.
    """

    # 2z:      0.0   0.7   1.0   1.48  1.52  1.8   2.0   0.4, mean 1.1125
    # minus m: -1.11 -0.41 -0.11 0.37  0.41  0.69  0.89  -0.71
    SCORES = (0.0, 0.35, 0.5, 0.74, 0.76, 0.9, 1.0, 0.2)

    @pytest.mark.parametrize(
        ("law", "kept"),
        [("published", [2, 3, 3, 3, 3, 4, 4, 2]), ("published-special", [2, 3, 3, 3, 3, 5, 5, 2])],
    )
    def test_each_block_is_rounded_on_its_own(self, law, kept, make_report):
        plan = allocate(make_report(self.SCORES), "owl", Target.from_nm("3:8"), {"law": law})
        assert _blocks(plan) == [n / 8 for n in kept]

    def test_the_documented_rule_need_not_drift(self, make_report):
        plan = allocate(make_report(self.SCORES), "owl", Target.from_nm("3:8"), {"law": "published"})
        assert plan.achieved == plan.target == plan.asked == 0.375
        assert "drift" not in plan.allocator.parameters

    def test_the_documented_rule_may_drift(self, make_report):
        # 2z: 0, 2, 2; mean 4/3; rounded departures -1, 1, 1
        plan = allocate(make_report([0.0, 1.0, 1.0]), "owl", Target.from_nm("3:8"), {"law": "published"})
        assert _blocks(plan) == [2 / 8, 4 / 8, 4 / 8]
        assert plan.asked == 0.375
        assert plan.allocator.parameters["drift"] == pytest.approx(1 / 24)

    def test_halves_go_to_the_even_number(self, make_report):
        # lam 1: z - m is -0.5 and 0.5, both of which round to 0
        report, target = make_report([0.0, 1.0]), Target.from_nm("3:8")
        assert _blocks(allocate(report, "owl", target, {"law": "published", "lam": 1})) == [3 / 8, 3 / 8]

    def test_a_plan_off_its_budget_states_the_average_that_came_out_and_the_drift(self, make_report):
        report = make_report([0.0, 0.5, 1.0])
        plan = allocate(report, "owl", Target.from_nm("3:8"), {"law": "published-special"})
        assert _blocks(plan) == [2 / 8, 3 / 8, 5 / 8]
        assert plan.target == plan.achieved == pytest.approx(10 / 24)
        assert plan.allocator.parameters["asked_target"] == 0.375
        assert plan.allocator.parameters["drift"] == pytest.approx(1 / 24)
        assert plan.allocator.parameters["lam"] == 2.0

    @pytest.mark.parametrize("law", ["published", "published-special"])
    def test_they_need_a_whole_n(self, law, make_report):
        with pytest.raises(RequestError, match=r"need a whole N, not 2.5:8"):
            allocate(make_report([0.0, 0.5, 1.0]), "owl", Target.from_nm("2.5:8"), {"law": law})

    def test_they_stay_in_range(self, make_report):
        report = make_report([0.0, 0.5, 1.0])
        with pytest.raises(RequestError, match=r"keeps 9 of 8 in model.layers.2, outside 1..8"):
            allocate(report, "owl", Target.from_nm("7:8"), {"law": "published-special"})

    def test_no_block_is_emptied_or_leaves_the_bounds_unasked(self, make_report):
        report = make_report([0.0, 0.5, 1.0])
        with pytest.raises(RequestError, match=r"keeps 0 of 8 in model.layers.0, outside 1..8"):
            allocate(report, "owl", Target.from_nm("1:8"), {"law": "published"})
        with pytest.raises(RequestError, match=r"keeps 2 of 8 in model.layers.0, outside 3..8"):
            allocate(report, "owl", Target.from_nm("3:8", low=0.3), {"law": "published"})
        emptied = allocate(report, "owl", Target.from_nm("1:8", low=0), {"law": "published"})
        assert _blocks(emptied) == [0, 1 / 8, 2 / 8]

    def test_the_special_rule_is_for_n_of_m_alone(self, make_report):
        for target in (Target.from_sparsity(0.7), Target.from_bits(3)):
            with pytest.raises(RequestError, match=r"'published-special' is a rule for N:M \(--nm\)"):
                allocate(make_report([0.0, 0.5, 1.0]), "owl", target, {"law": "published-special"})

    def test_by_default_the_budget_is_kept(self, make_report):
        plan = allocate(make_report([0.0, 0.5, 1.0]), "owl", Target.from_nm("3:8"))
        assert _blocks(plan) == [1 / 8, 3 / 8, 5 / 8]
        assert plan.achieved == plan.target == 0.375


def test_optimal_on_bits_gives_most_where_outliers_are(make_report):
    plan = allocate(make_report([0.64, 0.01, 0.01, 0.04]), "owl", Target.from_bits(3, solver="optimal"))
    assert _blocks(plan) == [4, 2, 2, 4]
    assert "lam" not in plan.allocator.parameters


def test_optimal_refuses_what_it_would_ignore(make_report):
    target = Target.from_bits(3, solver="optimal")
    with pytest.raises(RequestError, match=r"makes no use of lam 0.5"):
        allocate(make_report(D), "owl", target, {"lam": 0.5})
    with pytest.raises(RequestError, match=r"makes no use of tau 0.5"):
        allocate(make_report(D), "alpha", target, {"tau": 0.5})
    with pytest.raises(RequestError, match="needs an importance, which er-plus does not define"):
        allocate(make_report(D), "er-plus", target)


def test_options_are_checked_by_name_and_kind(make_report):
    with pytest.raises(RequestError, match="allocator 'linear-depth' takes no metric; it takes: lam"):
        ALLOCATORS.create("linear-depth", {"metric": "lod@5"})
    with pytest.raises(RequestError, match="allocator 'uniform' takes no lam; it takes no options"):
        ALLOCATORS.create("uniform", {"lam": 0.1})
    with pytest.raises(
        RequestError, match="allocator 'owl': unknown owl-law 'publisht': did you mean 'published'"
    ):
        ALLOCATORS.create("owl", {"law": "publisht"})
    with pytest.raises(RequestError, match=r"allocator 'owl': lam: has to be a number .*'much'"):
        ALLOCATORS.create("owl", {"lam": "much"})
    with pytest.raises(RequestError, match="unknown allocator 'owl-invers': did you mean 'owl-inverse'"):
        ALLOCATORS.create("owl-invers")
    assert ALLOCATORS.create("owl", {"lam": None, "metric": "lod@3"}) == Owl(metric="lod@3")


def test_an_allocator_can_be_given_ready_made(make_report):
    report, target = make_report(D), Target.from_sparsity(0.7)
    assert allocate(report, Owl(lam=0.1), target) == allocate(report, "owl", target, {"lam": 0.1})
    with pytest.raises(RequestError, match="by name"):
        allocate(report, Owl(), target, {"lam": 0.1})
