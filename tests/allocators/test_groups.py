"""Granularity, ties, pins and skips."""

import pytest

from owl_compress.allocators import Target, allocate
from owl_compress.errors import RequestError

D = [0.9, 0.1, 0.3, 0.2]


def _values(plan, prefix=""):
    return {b.name.removeprefix(prefix): b.value for b in plan.budgets if b.name.startswith(prefix)}


def test_a_block_gives_all_its_linears_one_value_and_linears_may_differ(make_report):
    report = make_report(D)
    per_block = allocate(report, "owl", Target.from_sparsity(0.5))
    per_linear = allocate(report, "er", Target.from_sparsity(0.5))
    assert len(set(_values(per_block, "model.layers.0.").values())) == 1
    assert len(set(_values(per_linear, "model.layers.0.").values())) > 1


@pytest.mark.parametrize("tie", [True, False])
def test_bits_per_linear_tie_what_servers_fuse(tie, make_report):
    report = make_report(D)
    target = Target.from_bits(3.3, granularity="linear", tie=tie)
    tied, mixed = True, False
    for seed in range(5):
        plan = allocate(report, "random", target, {"seed": seed})
        for i in range(len(D)):
            value = _values(plan, f"model.layers.{i}.")
            qkv = {value[f"attn.{x}_proj"] for x in "qkv"}
            gate_up = {value["mlp.gate_proj"], value["mlp.up_proj"]}
            tied &= len(qkv) == len(gate_up) == 1
            mixed |= len(set(value.values())) > 1
    assert tied is tie
    assert mixed


def test_width_per_linear_ties_attention_and_ffn(make_report):
    plan = allocate(make_report(D), "er", Target.from_prune_ratio(0.5, granularity="linear"))
    value = _values(plan, "model.layers.1.")
    assert len({v for n, v in value.items() if n.startswith("attn")}) == 1
    assert len({v for n, v in value.items() if n.startswith("mlp")}) == 1
    assert len(set(value.values())) == 2
    assert allocate(make_report(D), "er", Target.from_prune_ratio(0.5)).per_block[0].value == 0.5


def test_a_name_wins_over_a_glob_and_a_linear_over_its_block(make_report):
    pins = {"model.layers.0.attn.q_proj": 0.9, "model.layers.0": 0.6, "*": 0.5, "*.mlp.*": 0.4}
    target = Target.from_sparsity(0.5, pins=pins, low=0.0)
    with pytest.raises(
        RequestError, match=r"every linear is set by --set, to an average of 0\.4\d+ density.*0\.5"
    ):
        allocate(make_report(D), "owl", target)
    del pins["*"]
    value = _values(allocate(make_report(D), "owl", Target.from_sparsity(0.5, pins=pins)), "model.layers.")
    assert value["0.attn.q_proj"] == 0.9
    assert value["0.mlp.up_proj"] == value["0.attn.k_proj"] == 0.6
    assert value["1.mlp.up_proj"] == 0.4


def test_all_pinned_to_the_target_is_a_plan(make_report):
    plan = allocate(make_report(D), "owl", Target.from_sparsity(0.5, pins={"*": 0.5}))
    assert plan.achieved == 0.5


@pytest.mark.parametrize(
    ("pin", "message"),
    [
        (1.0, r"--set leaves an average of 0\.02\d* density for the rest, below low 0\.1"),
        (0.1, "above high 0.6"),
    ],
)
def test_pins_that_leave_an_impossible_rest_are_refused(pin, message, make_report):
    pins = {f"model.layers.{i}": pin for i in range(3)}
    value = 0.756 if pin == 1.0 else 0.5
    high = None if pin == 1.0 else 0.6
    with pytest.raises(RequestError, match=message):
        allocate(make_report(D), "uniform", Target.from_sparsity(1 - value, low=0.1, high=high, pins=pins))


@pytest.mark.parametrize("option", ["pins", "skips"])
def test_unknown_names_are_refused_with_the_nearest(option, make_report):
    name = "model.layers.0.attn.q_prj"
    given = {"pins": {name: 0.5}} if option == "pins" else {"skips": (name,)}
    with pytest.raises(
        RequestError,
        match=r"'model.layers.0.attn.q_prj' matches no .* did you mean 'model.layers.0.attn.q_proj'",
    ):
        allocate(make_report(D), "uniform", Target.from_sparsity(0.5, **given))
    given = {"pins": {"@": 0.5}} if option == "pins" else {"skips": ("@",)}
    with pytest.raises(RequestError, match=r"names look like 'model.layers.0' and"):
        allocate(make_report(D), "uniform", Target.from_sparsity(0.5, **given))


def test_skipping_everything_or_what_is_pinned_is_refused(make_report):
    with pytest.raises(RequestError, match="every linear is skipped"):
        allocate(make_report(D), "uniform", Target.from_sparsity(0.5, skips=("*",)))
    with pytest.raises(RequestError, match="only linears that are skipped"):
        allocate(
            make_report(D),
            "uniform",
            Target.from_sparsity(0.5, skips=("model.layers.0",), pins={"model.layers.0.attn.q_proj": 0.5}),
        )


def test_a_pin_that_parts_tied_linears_is_refused(make_report):
    pins = {"model.layers.0.attn.q_proj": 4.0}
    with pytest.raises(RequestError, match=r"attn.q_proj is set to 4 but .*attn.k_proj is left.*--no-tie"):
        allocate(make_report(D), "owl", Target.from_bits(3, pins=pins))
    plan = allocate(make_report(D), "owl", Target.from_bits(3, pins=pins, tie=False))
    assert plan.value_of("model.layers.0.attn.q_proj") == 4


def test_a_grid_budget_holds_with_pins(make_report):
    plan = allocate(make_report(D), "owl", Target.from_nm("3:8", pins={"model.layers.1": 1.0}))
    assert {b.value for b in plan.budgets if b.block == "model.layers.1"} == {1.0}
    assert plan.achieved == 0.375


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"parts": ("mlp",)}, {f"{i}.mlp.{x}_proj" for i in range(4) for x in ("gate", "up", "down")}),
        ({"parts": ("attention",)}, {f"{i}.attn.{x}_proj" for i in range(4) for x in "qkvo"}),
        (
            {"parts": ("mlp",), "protect_first": 1, "protect_last": 2},
            {f"1.mlp.{x}_proj" for x in ("gate", "up", "down")},
        ),
    ],
)
def test_parts_and_protected_blocks_leave_the_rest_out_of_the_account(options, left, make_report):
    plan = allocate(make_report(D), "owl", Target.from_prune_ratio(0.5, **options))
    assert set(_values(plan, "model.layers.")) == left
    assert len(plan.skipped) == 4 * 7 - len(left)
    assert plan.achieved == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": ("mpl",)}, "unknown part 'mpl': did you mean 'mlp'"),
        ({"parts": ()}, "no part is left to compress"),
        ({"protect_first": -1}, "protect-first -1 is negative"),
        ({"protect_first": 3, "protect_last": 1}, "leave none of 4 blocks to compress"),
    ],
)
def test_parts_that_leave_nothing_are_refused(options, message, make_report):
    with pytest.raises(RequestError, match=message):
        allocate(make_report(D), "uniform", Target.from_prune_ratio(0.5, **options))


def test_a_linear_that_is_both_skipped_and_set_by_name_is_refused(make_report):
    linear = "model.layers.0.mlp.up_proj"
    for name in ("model.layers.0", linear):
        target = Target.from_sparsity(0.5, skips=(linear,), pins={name: 0.5})
        with pytest.raises(RequestError, match="drop one of the two"):
            allocate(make_report(D), "uniform", target)
    target = Target.from_sparsity(0.5, parts=("mlp",), pins={"model.layers.0": 0.5})
    with pytest.raises(RequestError, match=r"model\.layers\.0\.\S+ .* set by --set model.layers.0"):
        allocate(make_report(D), "uniform", target)


def test_a_pattern_of_pins_leaves_what_is_skipped_alone(make_report):
    target = Target.from_sparsity(0.5, skips=("model.layers.0",), pins={"*.up_proj": 0.75})
    plan = allocate(make_report(D), "uniform", target)
    assert plan.value_of("model.layers.1.mlp.up_proj") == 0.75
    assert "model.layers.0.mlp.up_proj" in plan.skipped
