"""Structured removal on every family: numbers counted from the tensors, choices made again by hand."""

from collections.abc import Callable
from copy import deepcopy
from math import fsum
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from owl_compress.backends import parts
from owl_compress.backends.structured import Structured
from owl_compress.backends.unit_importance import Importance
from owl_compress.compression import demands
from owl_compress.compression.driver import compress_with_
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.plan import Plan
from owl_compress.documents.result import Result
from owl_compress.documents.units import KeptOfGrid, Sublayer, Unit
from owl_compress.errors import RequestError
from owl_compress.models.anatomy import BlockAnatomy, find_anatomy, find_roles
from owl_compress.models.structure import BlockSite, find_structure
from owl_compress.walk.gradients import measure_salience

PlanFor = Callable[..., Plan]
Make = Callable[..., TokenWindows]
MakeModel = Callable[[str], Any]
Varied = Callable[[nn.Module], dict[str, float]]

STEP = 8
# One of each build: grouped and gated; fused; with biases; transposed; queries, keys and values in turns; all
# queries on one key, and in groups; a block that no table knows.
BUILDS = ("llama", "phi3", "opt", "gpt2", "bloom", "falcon", "falcon_grouped", "unknown")


@pytest.fixture(params=BUILDS)
def built_model(request: pytest.FixtureRequest, make_model: MakeModel) -> Any:
    """A tiny model of each build in turn: what follows from the build alone needs no further family."""
    return make_model(request.param)


@pytest.fixture
def prune(plan_for: PlanFor, make_windows: Make) -> Callable[..., Result]:
    """A function that prunes a model to shares, in steps of eight channels."""

    def run(model: Any, values: Any, *, skipped: tuple[str, ...] = (), **options: Any) -> Result:
        backend = Structured(**{"round_to": STEP} | options)
        plan = plan_for(model, values, unit=Unit.WIDTH, skipped=skipped)
        return compress_with_(model, plan, backend, make_windows(3))

    return run


def sizes(model: nn.Module) -> dict[str, int]:
    return {
        linear.name: linear.module.get_parameter("weight").numel() for linear in find_structure(model).linears
    }


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 27)[None]).logits


def channel_step(model: nn.Module) -> int:
    """Weights of eight channels of a dense model, whose blocks are all alike."""
    block = find_structure(model).blocks[0]
    linears = [it for it in block.linears if it.role.startswith("mlp.") or it.role == "other"]
    return STEP * sum(it.n_weights for it in linears) // linears[-1].shape[1]


def test_the_budget_is_met_to_the_step(
    family_model: Any, family_index: int, prune: Callable[..., Result], varied: Varied
) -> None:
    before, n_params = sizes(family_model), sum(p.numel() for p in family_model.parameters())
    values = (varied(family_model), dict.fromkeys(before, 0.35), dict.fromkeys(before, 0.6))[family_index % 3]
    step = channel_step(family_model)
    result = prune(family_model, values)
    after = sizes(family_model)
    budget = fsum(values[name] * n for name, n in before.items())
    assert budget - step < sum(after.values()) <= budget
    for row in result.budgets:
        assert row.achieved == after[row.name] / before[row.name]
        assert (row.asked, row.n_weights, row.unit) == (values[row.name], before[row.name], Unit.WIDTH)
        assert row.relative_error > 0 or row.achieved == 1  # a linear that stays whole tells of its part
        assert row.relative_error < 1.5  # far from nothing: whole heads go
    assert result.totals.achieved == pytest.approx(sum(after.values()) / sum(before.values()), rel=1e-12)
    assert result.totals.asked == pytest.approx(budget / sum(before.values()))
    assert result.totals.n_params_before == n_params
    assert result.totals.n_params_after == sum(p.numel() for p in family_model.parameters()) < n_params
    assert result.footprint is not None
    assert result.footprint.before.n_params == n_params
    assert result.footprint.after.n_params == result.totals.n_params_after
    assert result.footprint.after.flops_per_token_blocks < result.footprint.before.flops_per_token_blocks
    assert torch.isfinite(logits(family_model)).all()


@pytest.mark.parametrize("importance", [rule for rule in Importance if rule is not Importance.AUTO])
def test_every_importance_on_every_kind_of_attention(
    make_model: MakeModel, prune: Callable[..., Result], importance: Importance
) -> None:
    # Grouped, one for each, one for all; fused.
    for name, repair in (("llama", True), ("gpt2", False), ("falcon", True), ("phi3", False)):
        found = []
        for _ in range(2):
            model = make_model(name)
            result = prune(model, 0.5, importance=importance, repair=repair)
            found.append((logits(model), timeless(result)))
        (first, record), (second, again) = found
        assert torch.isfinite(first).all()
        assert torch.equal(first, second)
        assert record == again
        assert record["backend"]["parameters"]["importance"] == importance


def timeless(result: Result) -> dict[str, Any]:
    content = result.model_dump(exclude={"wall_seconds", "peak_host_bytes", "peak_device_bytes"})
    return content | {"budgets": [{**row, "seconds": 0} for row in content["budgets"]]}


def test_nothing_else_is_touched(built_model: Any, prune: Callable[..., Result]) -> None:
    built_model.train()
    first, second, third = (
        [linear.name for linear in block.linears] for block in find_structure(built_model).blocks
    )
    heads = tuple(
        it.name for it in find_structure(built_model).blocks[2].linears if it.role.startswith("attn.")
    )
    before = {name: tensor.clone() for name, tensor in built_model.state_dict().items()}
    norms = {name for name, module in built_model.named_modules() if "norm" in type(module).__name__.lower()}
    result = prune(built_model, 0.5, skipped=(*second, *heads))
    assert [row.name for row in result.budgets] == [*first, *(name for name in third if name not in heads)]
    touched = {row.name for row in result.budgets}
    after = built_model.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        module = name.rpartition(".")[0]
        if module not in touched or module in norms:
            assert torch.equal(after[name], tensor), name
    assert all(after[f"{name}.weight"].shape != before[f"{name}.weight"].shape for name in touched)
    assert all(module.training for module in built_model.modules())
    assert all(parameter.requires_grad for parameter in built_model.parameters())


def test_each_block_is_judged_by_the_outputs_of_those_already_cut(
    make_model: MakeModel,
    make_windows: Make,
    prune: Callable[..., Result],
    wanda_scores: Callable[..., dict[str, Tensor]],
) -> None:
    model, judged = make_model("llama"), make_model("llama")
    prune(model, 0.5)
    for index, block in enumerate(find_structure(judged).blocks):
        scores = wanda_scores(judged, make_windows(3), block.linears)
        up = next(linear for linear in block.linears if linear.role == "mlp.up")
        gate, down = (scores[up.name.replace("up", name)] for name in ("gate", "down"))
        of_channels = scores[up.name].sum(dim=1) + gate.sum(dim=1) + down.sum(dim=0)
        narrow = model.get_submodule(up.name).weight
        kept = of_channels.sort(descending=True).indices[: len(narrow)].sort().values
        assert torch.equal(narrow, up.weight[kept])
        assert 0 < len(narrow) < len(up.weight)
        # From here on the judged model is cut too.
        judged.model.layers[index] = model.model.layers[index]


def test_the_heads_that_stay_are_those_with_the_highest_sums(
    make_model: MakeModel,
    make_windows: Make,
    prune: Callable[..., Result],
    wanda_scores: Callable[..., dict[str, Tensor]],
) -> None:
    model, dense = make_model("llama"), make_model("llama")  # four heads of eight, two key-value heads
    prune(model, 0.5)
    block = find_structure(dense).blocks[0]
    q, k, v, o = (
        scores.double() for scores in list(wanda_scores(dense, make_windows(3), block.linears).values())[:4]
    )
    queries = [float(q[8 * h : 8 * h + 8].sum() + o[:, 8 * h : 8 * h + 8].sum()) for h in range(4)]
    groups = [float(k[8 * g : 8 * g + 8].sum() + v[8 * g : 8 * g + 8].sum()) for g in range(2)]
    narrow = model.model.layers[0].self_attn
    n_kv_heads, n_heads = len(narrow.k_proj.weight) // 8, len(narrow.q_proj.weight) // 8
    choices = {
        (1, 1): lambda: max((groups[h // 2] + queries[h], [h]) for h in range(4))[1],
        (1, 2): lambda: max(
            (groups[g] + queries[2 * g] + queries[2 * g + 1], [2 * g, 2 * g + 1]) for g in (0, 1)
        )[1],
        (2, 2): lambda: [max((0, 1), key=queries.__getitem__), max((2, 3), key=queries.__getitem__)],
    }
    heads = choices[n_kv_heads, n_heads]()
    rows = torch.cat([dense.model.layers[0].self_attn.q_proj.weight[8 * h : 8 * h + 8] for h in heads])
    assert torch.equal(narrow.q_proj.weight, rows)


def test_taylor_goes_by_the_gradients_of_the_dense_model(
    make_model: MakeModel,
    make_windows: Make,
    prune: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[Any] = []

    def counted(*arguments: Any, **named: Any) -> Any:
        taken.append(measure_salience(*arguments, **named))
        return taken[-1]

    monkeypatch.setattr(demands, "measure_salience", counted)
    dense, model = make_model("opt"), make_model("opt")
    prune(model, 0.5, importance="taylor", taylor_variant="vector")
    (salience,) = taken
    for block in find_structure(dense).blocks:
        first, last = (f"{block.name}.{name}" for name in ("fc1", "fc2"))
        # vector: the signed sum over each channel's row and column
        scores = salience[first].out_vector.abs() + salience[last].in_vector.abs()
        narrow = model.get_submodule(first)
        kept = scores.sort(descending=True).indices[: len(narrow.weight)].sort().values
        assert torch.equal(narrow.weight, dense.get_submodule(first).weight[kept])
        assert torch.equal(narrow.bias, dense.get_submodule(first).bias[kept])


def test_the_error_is_that_of_the_outputs_and_the_repair_is_least_squares(
    make_model: MakeModel, make_windows: Make, prune: Callable[..., Result]
) -> None:
    dense, plain, repaired = (make_model("llama") for _ in range(3))
    rows = {
        repair: prune(model, 0.5, repair=repair, damping=1e-6, importance="magnitude").budgets
        for repair, model in ((False, plain), (True, repaired))
    }
    name = "model.layers.0.mlp.down_proj"
    inputs: list[Tensor] = []
    down = dense.get_submodule(name).requires_grad_(False)
    down.register_forward_pre_hook(lambda _module, arguments: inputs.append(arguments[0].detach()[0]))
    with torch.no_grad():
        for ids in make_windows(3).batches(1):
            dense(input_ids=ids)
    x = torch.cat(inputs).double()
    outputs = x @ down.weight.double().t()
    alone = plain.get_submodule(name).weight.detach().double()
    (kept,) = (torch.tensor([columns_of(down.weight, alone, column) for column in range(alone.shape[1])]),)
    expected = torch.linalg.lstsq(x[:, kept], outputs).solution.t()
    found = repaired.get_submodule(name).weight.detach().double()

    def lost(columns: Tensor) -> float:
        return float((outputs - x[:, kept] @ columns.t()).square().sum() / outputs.square().sum())

    (row,) = (row for row in rows[True] if row.name == name)
    assert row.relative_error == pytest.approx(lost(found), rel=1e-3)
    assert lost(expected) <= lost(found) <= 1.02 * lost(expected) + 1e-4
    assert lost(found) < 0.8 * lost(alone)
    (row,) = (row for row in rows[False] if row.name == name)
    share = 1 - float(alone.square().sum() / down.weight.double().square().sum())
    assert row.relative_error == pytest.approx(share, rel=1e-4)  # without a statistic: squared weights


def columns_of(dense: Tensor, narrow: Tensor, column: int) -> int:
    """Where a column of the narrow weight comes from."""
    (found,) = (dense == narrow[:, column, None].to(dense.dtype)).all(dim=0).nonzero().flatten().tolist()
    return int(found)


def test_no_repaired_output_is_further_off(built_model: Any, prune: Callable[..., Result]) -> None:
    second = deepcopy(built_model)
    # One block alone, so that both runs choose the same units from the same inputs.
    skipped = tuple(linear.name for block in find_structure(second).blocks[1:] for linear in block.linears)
    plain = prune(built_model, 0.5, skipped=skipped, repair=True, damping=1e6)  # pulls back to what was there
    repaired = prune(second, 0.5, skipped=skipped, repair=True)
    for row, before in zip(repaired.budgets, plain.budgets, strict=True):
        assert row.achieved == before.achieved
        assert row.relative_error <= before.relative_error
    assert repaired.budgets[-1].relative_error < plain.budgets[-1].relative_error
    assert "uncorrelated" not in repaired.error_measure


def test_single_channels_meet_the_budget_to_the_channel(
    built_model: Any, prune: Callable[..., Result]
) -> None:
    budget = 0.55 * sum(sizes(built_model).values())
    of_one_channel = channel_step(built_model) / STEP
    prune(built_model, 0.55, round_to=1)
    assert 0 <= budget - sum(sizes(built_model).values()) < of_one_channel


def test_values_inside_a_part_count_by_their_mean(
    make_model: MakeModel, prune: Callable[..., Result], varied: Varied
) -> None:
    model, tied = make_model("qwen3"), make_model("qwen3")
    values, before = varied(model), sizes(model)
    means = {}
    for block in find_structure(model).blocks:
        for part in ("attn.", "mlp."):
            names = [linear.name for linear in block.linears if linear.role.startswith(part)]
            mean = fsum(values[n] * before[n] for n in names) / sum(before[n] for n in names)
            means |= dict.fromkeys(names, mean)
    first, second = prune(model, values), prune(tied, means)
    assert [row.achieved for row in first.budgets] == [row.achieved for row in second.budgets]
    assert [row.asked for row in first.budgets] == list(values.values())
    assert torch.equal(logits(model), logits(tied))


def test_what_the_plan_keeps_whole_stays_whole(make_model: MakeModel, prune: Callable[..., Result]) -> None:
    model = make_model("llama")
    pinned = {name: 1.0 if "layers.1" in name else 0.4 for name in sizes(model)}
    result = prune(model, pinned)
    assert {row.achieved for row in result.budgets if "layers.1" in row.name} == {1.0}
    assert {row.relative_error for row in result.budgets if "layers.1" in row.name} == {0.0}
    assert all(row.achieved < 1 for row in result.budgets if "layers.1" not in row.name)


def test_the_same_widths_for_every_block(
    built_model: Any, prune: Callable[..., Result], varied: Varied
) -> None:
    prune(built_model, varied(built_model), uniform_width=True)
    shapes = {tuple(linear.shape for linear in block.linears) for block in find_structure(built_model).blocks}
    assert len(shapes) == 1
    assert torch.isfinite(logits(built_model)).all()


def test_the_same_widths_need_every_block(make_model: MakeModel, prune: Callable[..., Result]) -> None:
    model = make_model("llama")
    skipped = tuple(name for name in sizes(model) if "layers.1" in name)
    with pytest.raises(RequestError, match=r"the plan skips the block of model\.layers\.1\."):
        prune(model, 0.5, skipped=skipped, uniform_width=True)


@pytest.mark.parametrize("name", ["llama", "opt", "falcon_alibi", "phi3"])
def test_parts_go_whole_only_when_allowed(
    make_model: MakeModel, prune: Callable[..., Result], name: str
) -> None:
    model = make_model(name)
    gone = {(1, "attn."), (2, "mlp.")}
    values = {
        linear.name: 0.0 if any(index == i and linear.role.startswith(part) for i, part in gone) else 0.7
        for index, block in enumerate(find_structure(model).blocks)
        for linear in block.linears
    }
    result = prune(model, values, allow_empty=True)
    for row in result.budgets:
        assert (row.achieved == 0) == (row.asked == 0)
        assert row.relative_error == 1 if row.asked == 0 else 0 < row.relative_error < 1
    assert torch.isfinite(logits(model)).all()
    model = make_model(name)
    assert all(row.achieved > 0 for row in prune(model, values).budgets)


def test_a_pruned_model_can_be_pruned_again(built_model: Any, prune: Callable[..., Result]) -> None:
    whole = sum(sizes(built_model).values())
    prune(built_model, 0.75)
    middle = sum(sizes(built_model).values())
    result = prune(built_model, 0.6, round_to=4)
    assert sum(sizes(built_model).values()) <= 0.6 * middle
    assert middle <= 0.75 * whole
    assert result.totals.achieved == pytest.approx(sum(sizes(built_model).values()) / middle)
    assert torch.isfinite(logits(built_model)).all()


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "unknown"])
def test_what_went_whole_has_no_part_in_a_further_removal(
    make_model: MakeModel, prune: Callable[..., Result], name: str
) -> None:
    model = make_model(name)
    first = find_structure(model).blocks[0].linears
    gone = {it.name for it in first if it.role.startswith("mlp.") or it.role == "other"}
    prune(model, {linear: float(linear not in gone) for linear in sizes(model)}, allow_empty=True)
    whole = sizes(model)
    assert not gone & whole.keys()
    result = prune(model, 0.5, repair=True)
    assert {row.name for row in result.budgets} == whole.keys()
    assert 0 < sum(sizes(model).values()) <= 0.5 * sum(whole.values())
    assert torch.isfinite(logits(model)).all()
    roles = find_roles(find_structure(model))
    assert {"mlp.fc1", "mlp.up", "mlp.gate_up"} & set(roles.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(make_model: MakeModel, prune: Callable[..., Result], dtype: torch.dtype) -> None:
    model = make_model("mistral").to(dtype)
    prune(model, 0.5, repair=True)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert torch.isfinite(logits(model)).all()


@pytest.mark.parametrize(
    ("importance", "expected"),
    [
        # A single token tells what a block returns; the last block's outputs nobody needs. A window goes
        # through the model, and is walked, before anything else.
        ("wanda", [[24, 1, 24, 1, *[24] * 3, 1, *[24] * 6], [24] * 11, [24] * 8]),
        ("magnitude", [[], [], []]),
    ],
)
def test_blocks_run_no_more_than_is_needed(
    make_model: MakeModel,
    prune: Callable[..., Result],
    forwards_counted: Callable[..., Any],
    importance: str,
    expected: list[list[int]],
) -> None:
    model = make_model("llama")
    with forwards_counted(model) as counts:
        prune(model, 0.5, importance=importance)
    assert counts == expected


def refused(model: Any, prune: Callable[..., Result], values: Any = 0.5, **options: Any) -> str:
    """The one line of the refusal; the model is as it was."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RequestError) as caught:
        prune(model, values, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_carried_out(make_model: MakeModel, prune: Callable[..., Result]) -> None:
    model = make_model("llama")
    message = refused(model, prune, round_to=65)
    assert message == "--round-to 65 is more than the 64 channels of model.layers.0: give at most that"
    message = refused(model, prune, 0.1, round_to=64)
    assert "the ratio 0.900 cannot be met with the rounding, --round-to 64" in message
    message = refused(model, prune, skipped=("model.layers.1.self_attn.v_proj",))
    assert message.startswith(
        "the plan skips model.layers.1.self_attn.v_proj and not the rest of the attention"
    )
    with pytest.raises(RequestError, match="round_to 0 is below 1"):
        Structured(round_to=0)
    with pytest.raises(ValueError, match="'best' is not a valid Importance"):
        Structured(importance="best")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("part", "other"), [(Sublayer.ATTENTION, Sublayer.MLP), (Sublayer.MLP, Sublayer.ATTENTION)]
)
def test_a_part_that_is_not_recognised(
    make_model: MakeModel,
    prune: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    part: Sublayer,
    other: Sublayer,
) -> None:
    def half_known(site: BlockSite) -> BlockAnatomy:
        found = find_anatomy(site)
        attention = None if part is Sublayer.ATTENTION else found.attention
        return BlockAnatomy(
            found.block, attention, None if part is Sublayer.MLP else found.mlp, {part: "it is odd"}
        )

    monkeypatch.setattr(parts, "find_anatomy", half_known)
    model = make_model("llama")
    expected = f"{part} of model.layers.0 is not recognised: it is odd; use --parts {other}"
    assert refused(model, prune) == expected


def test_plans_and_text_that_do_not_fit(make_model: MakeModel, make_windows: Make, plan_for: PlanFor) -> None:
    model = make_model("llama")
    plan = plan_for(model, 0.5, unit=Unit.WIDTH)
    with pytest.raises(RequestError, match="carries out budgets in width, the plan is in density"):
        compress_with_(model, plan_for(model, 0.5), Structured(), make_windows(1))
    gridded = plan_for(model, 0.5, unit=Unit.WIDTH, grid=KeptOfGrid(kept_of=4))
    with pytest.raises(RequestError, match="rounds widths itself"):
        compress_with_(model, gridded, Structured(), make_windows(1))
    for importance in ("wanda", "taylor"):
        with pytest.raises(RequestError, match="'structured' needs calibration text"):
            compress_with_(model, plan, Structured(importance=importance), None)  # type: ignore[arg-type]
    result = compress_with_(model, plan, Structured(Importance.RANDOM, round_to=8), None)
    assert result.calibration is None
