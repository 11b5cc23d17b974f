"""Refinement on tiny models: bad plans get better and stay on budget, worse ones never get through."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from owl_compress.backends import BACKENDS
from owl_compress.compression.driver import compress_with_
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.plan import ASKED_TARGET, AllocatorRecord, LinearBudget, Plan
from owl_compress.documents.sensitivity import PartKind
from owl_compress.documents.units import BitsGrid, Grid, KeptOfGrid, Unit
from owl_compress.errors import RequestError
from owl_compress.models.structure import find_structure
from owl_compress.refinement.refined import Refinement, RefinementOptions, RefinementWindows
from owl_compress.refinement.refinement import refine_plan
from owl_compress.refinement.swap_rounds import SwapRounds
from owl_compress.refinement.workshop import WorkOptions, Workshop
from owl_compress.walk.outputs import spread_positions

MakeWindows = Callable[..., TokenWindows]
MakeModel = Callable[[str], Any]
N_POSITIONS = 48


def bad_plan(model: nn.Module, unit: Unit, levels: dict[int, float], grid: Grid | None = None) -> Plan:
    """Blocks at levels given by their numbers."""
    structure = find_structure(model)
    budgets = tuple(
        LinearBudget(name=linear.name, block=site.name, n_weights=linear.n_weights, value=levels[index])
        for index, site in enumerate(structure.blocks)
        for linear in site.linears
    )
    mean = sum(one.value * one.n_weights for one in budgets) / sum(one.n_weights for one in budgets)
    is_bits = unit is Unit.BITS
    return Plan(
        unit=unit,
        target=mean,
        grid=grid,
        low=2.0 if is_bits else 0.0,
        high=4.0 if is_bits else 1.0,
        allocator=AllocatorRecord(name="by hand", parameters={"set": {"nothing*": 1.0}, "lam": 0.1}),
        report="none",
        budgets=budgets,
    )


# By name: backend, its options, the levels of the three blocks, and the grid.
CASES: dict[str, tuple[str, dict[str, Any], dict[int, float], Grid | None]] = {
    "density": ("wanda", {}, {0: 0.05, 1: 0.95, 2: 0.5}, None),
    "N:M": ("wanda", {}, {0: 0.125, 1: 0.875, 2: 0.5}, KeptOfGrid(kept_of=8)),
    "width": ("structured", {"round_to": 8}, {0: 0.3, 1: 0.9, 2: 0.6}, None),
    "bits": ("gptq", {"group_size": 8}, {0: 2.0, 1: 4.0, 2: 3.0}, BitsGrid(bits=(2, 3, 4))),
    "no text": ("rtn", {"group_size": 8}, {0: 2.0, 1: 4.0, 2: 3.0}, BitsGrid(bits=(2, 3, 4))),
}


@pytest.fixture(scope="module")
def windows(make_windows: MakeWindows) -> RefinementWindows:
    return RefinementWindows(
        make_windows(2, 24, seed=1), make_windows(4, 16, seed=2), make_windows(4, 16, seed=3)
    )


def refined(
    case: str, model: nn.Module, windows: RefinementWindows, work: WorkOptions | None = None, **options: Any
) -> tuple[Plan, Refinement]:
    name, given, levels, grid = CASES[case]
    backend = BACKENDS.create(name, given)
    plan = bad_plan(model, backend.unit, levels, grid)
    chosen = RefinementOptions(positions=N_POSITIONS, **options)
    return plan, refine_plan(model, plan, backend, windows, chosen, work)


@torch.no_grad()
def log_probabilities(model: Any, windows: TokenWindows) -> torch.Tensor:
    positions = spread_positions(windows.record.seq_len, N_POSITIONS // len(windows))
    logits = model(input_ids=windows.ids).logits[:, positions].double()
    return torch.log_softmax(logits, dim=-1).flatten(0, 1)


def divergence(dense: nn.Module, other: nn.Module, windows: TokenWindows) -> float:
    """An oracle: KL of plain forward passes."""
    own, changed = log_probabilities(dense, windows), log_probabilities(other, windows)
    return float((own.exp() * (own - changed)).sum(dim=-1).mean())


def spend(plan: Plan) -> float:
    return sum(one.value * one.n_weights for one in plan.budgets)


def check_lawful(before: Plan, after: Plan) -> None:
    """The same account, never over budget, and everything else of the plan kept."""
    assert spend(after) <= spend(before) * (1 + 1e-12)
    if before.grid is None and before.unit is Unit.DENSITY:
        assert spend(after) == pytest.approx(spend(before), rel=1e-12)
    same = {"unit", "target", "grid", "skipped", "coverage", "report"}
    assert after.model_dump(include=same) == before.model_dump(include=same)
    assert [(one.name, one.block, one.n_weights) for one in after.budgets] == [
        (one.name, one.block, one.n_weights) for one in before.budgets
    ]


@pytest.mark.parametrize("method", ["swaps", "evo"])
@pytest.mark.parametrize("case", CASES)
def test_a_bad_plan_gets_better_and_stays_on_budget(
    case: str, method: str, make_model: MakeModel, windows: RefinementWindows
) -> None:
    model = make_model("llama")
    dense = {key: value.clone() for key, value in model.state_dict().items()}
    more: dict[str, Any] = {"generations": 4, "offspring": 6, "seed": 1} if method == "evo" else {}
    plan, found = refined(case, model, windows, method=method, **more)
    assert all(torch.equal(value, dense[key]) for key, value in model.state_dict().items())
    check_lawful(plan, found.plan)
    assert found.is_better
    assert found.damage[1] < found.damage[0]
    assert found.plan.allocator.name == "refine"
    assert found.plan.allocator.parameters["refined_from"] == plan.fingerprint
    assert found.plan.allocator.parameters["set"] == {"nothing*": 1.0}
    # Both damages are those of the models that the driver makes of these plans.
    backend = BACKENDS.create(*CASES[case][:2])
    for one, damage in ((plan, found.damage[0]), (found.plan, found.damage[1])):
        copy = deepcopy(model)
        result = compress_with_(copy, one, backend, windows.statistics)
        assert damage == pytest.approx(divergence(model, copy, windows.gate), rel=1e-3)
        assert result.totals.achieved <= plan.target * (1 + 1e-12)
    if plan.unit is not Unit.DENSITY or plan.grid is not None:
        # What the plan says is carried out to the weight.
        rows = {one.name: one.achieved for one in result.budgets}
        assert rows == pytest.approx({one.name: one.value for one in found.plan.budgets}, rel=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_gains_are_those_of_models_with_one_part_moved(
    case: str, make_model: MakeModel, windows: RefinementWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, float, Any]] = []
    original = SwapRounds.measured

    def noted(self: SwapRounds, at: Any) -> Any:
        damage, moves = original(self, at)
        seen.append((at, damage, moves))
        return damage, moves

    monkeypatch.setattr(SwapRounds, "measured", noted)
    model = make_model("llama")
    refined(case, model, windows)
    at, damage, moves = seen[0]
    backend = BACKENDS.create(*CASES[case][:2])
    assert damage == pytest.approx(divergence(model, at.model, windows.choosing), rel=1e-3)
    for move in (moves[0], moves[len(moves) // 2], moves[-1]):
        budgets = [
            one.model_copy(update={"value": move.budgets.get(one.name, one.value)}) for one in at.plan.budgets
        ]
        changed = at.plan.model_copy(update={"budgets": tuple(budgets)})
        taken = spend(changed) - spend(at.plan)
        scale = at.plan.grid.kept_of if isinstance(at.plan.grid, KeptOfGrid) else 1
        assert scale * taken == pytest.approx(move.spend, abs=1e-6)
        raised = Plan.model_validate({**changed.model_dump(), "target": changed.high})
        moved, copy = deepcopy(model), deepcopy(at.model)
        compress_with_(moved, raised, backend, windows.statistics)
        # Later blocks stay as they are in the plan: the one that moved is put among them.
        number = next(index for index in range(3) if f"layers.{index}" in move.part)
        copy.model.layers[number] = moved.model.layers[number]
        assert damage - divergence(model, copy, windows.choosing) == pytest.approx(
            move.gain, rel=1e-2, abs=1e-6
        )


def test_at_most_the_pairs_that_were_asked_for_move(
    make_model: MakeModel, windows: RefinementWindows
) -> None:
    _, found = refined("no text", make_model("llama"), windows, pairs=1)
    assert found.attempts
    assert all(1 <= len(attempt.moves) <= 2 for attempt in found.attempts)


def test_the_same_request_gives_the_same_plan(make_model: MakeModel, windows: RefinementWindows) -> None:
    evo: dict[str, Any] = {"method": "evo", "generations": 2, "offspring": 4, "seed": 5}
    for options in ({}, evo):
        first, second = (refined("N:M", make_model("llama"), windows, **options)[1] for _ in range(2))
        assert first == second


@pytest.mark.parametrize("method", ["swaps", "evo"])
def test_the_gate_refuses_a_plan_that_does_more_damage(
    method: str, make_model: MakeModel, windows: RefinementWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = Workshop.standing, []

    def worse_each_time(self: Workshop, plan: Plan) -> Any:
        calls.append(plan)
        return replace(original(self, plan), damage=float(len(calls)))

    monkeypatch.setattr(Workshop, "standing", worse_each_time)
    options = {"generations": 2, "offspring": 4} if method == "evo" else {"part": PartKind.LINEAR}
    plan, found = refined("N:M", make_model("llama"), windows, method=method, **options)
    assert found.plan == plan
    assert not found.is_better
    assert found.damage == (1.0, 1.0)
    assert "gate" in found.ended
    # Half as many pairs each time: three, then one.
    sizes = [len(attempt.moves) for attempt in found.attempts]
    assert sizes == sorted(sizes, reverse=True)
    assert method == "evo" or sizes[-1] <= 2 < sizes[0]


@pytest.mark.parametrize("method", ["swaps", "evo"])
def test_the_gate_refuses_what_was_carried_out_otherwise(
    method: str, make_model: MakeModel, windows: RefinementWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = Workshop.standing, []

    def of_another_plan(self: Workshop, plan: Plan) -> Any:
        """The first plan as it is; of every other one, the second linear gets less."""
        calls.append(plan)
        standing = original(self, plan)
        if len(calls) == 1:
            return standing
        first, second, *others = standing.plan.budgets
        less = second.model_copy(update={"value": second.value - 0.01})
        made = standing.plan.model_copy(update={"budgets": (first, less, *others)})
        return replace(standing, plan=made, damage=standing.damage / 2)

    monkeypatch.setattr(Workshop, "standing", of_another_plan)
    options = {"generations": 2, "offspring": 4} if method == "evo" else {}
    plan, found = refined("density", make_model("llama"), windows, method=method, **options)
    assert found.plan == plan
    assert found.attempts
    for attempt in found.attempts:
        assert attempt.not_carried_out == (plan.budgets[1].name,)
        assert not attempt.is_kept


@pytest.mark.parametrize("limit", [None, 3000.0])
@pytest.mark.parametrize("method", ["swaps", "evo"])
def test_the_cost_is_counted_and_kept(
    method: str, limit: float | None, make_model: MakeModel, windows: RefinementWindows
) -> None:
    told: list[float] = []
    work = WorkOptions(announce=lambda tokens, _seconds: told.append(tokens))
    with counted() as tokens:
        _, found = refined("N:M", make_model("llama"), windows, work, method=method, max_cost=limit)
    (announced,) = told
    assert found.forward_tokens <= announced
    assert limit is None or announced == limit
    assert tokens[0] / 3 == pytest.approx(found.forward_tokens, rel=0.1)


def test_a_cost_that_pays_for_no_round_is_refused(make_model: MakeModel, windows: RefinementWindows) -> None:
    with pytest.raises(RequestError, match=r"max-cost 100 pays for no round: .* take [0-9,]+ forward tokens"):
        refined("N:M", make_model("llama"), windows, max_cost=100.0)


@contextmanager
def counted() -> Iterator[list[int]]:
    """Tokens that go through blocks; whoever stands in for one counts none."""
    tokens = [0]
    original = LlamaDecoderLayer.forward

    def noted(self: nn.Module, hidden_states: torch.Tensor, *further: Any, **named: Any) -> Any:
        tokens[0] += hidden_states.shape[0] * hidden_states.shape[1]
        return original(self, hidden_states, *further, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaDecoderLayer, "forward", noted)
        yield tokens


def test_statistics_of_the_dense_model_are_gathered_once(
    make_model: MakeModel, windows: RefinementWindows
) -> None:
    model = make_model("llama")
    plan, found = refined("density", model, windows, WorkOptions(statistics="dense"))
    assert found.is_better
    check_lawful(plan, found.plan)
    copy = deepcopy(model)
    compress_with_(copy, found.plan, BACKENDS.create("wanda", {}), windows.statistics, statistics="dense")
    assert found.damage[1] == pytest.approx(divergence(model, copy, windows.gate), rel=1e-3)
    _, sequential = refined("density", make_model("llama"), windows)
    assert sequential.plan != found.plan


def test_fixed_budgets_stay(make_model: MakeModel, windows: RefinementWindows) -> None:
    model = make_model("llama")
    fixed = frozenset(name for name in find_structure(model).linear_sizes if "layers.1" in name)
    plan, found = refined("N:M", model, windows, fixed=fixed)
    assert found.is_better
    assert all(found.plan.value_of(name) == plan.value_of(name) for name in fixed)


def test_what_a_drifting_plan_asked_for_is_carried_on(
    make_model: MakeModel, windows: RefinementWindows
) -> None:
    model = make_model("llama")
    plan = bad_plan(model, Unit.DENSITY, CASES["N:M"][2], CASES["N:M"][3])
    record = AllocatorRecord(name="drifting", parameters={ASKED_TARGET: 0.4, "drift": 0.1})
    plan = plan.model_copy(update={"allocator": record})
    found = refine_plan(
        model, plan, BACKENDS.create("wanda", {}), windows, RefinementOptions(positions=N_POSITIONS)
    )
    assert found.plan.allocator.name == "refine"
    assert found.plan.asked == 0.4


class TestRefusals:
    def plan(self, model: nn.Module, **changes: Any) -> Plan:
        plan = bad_plan(model, Unit.DENSITY, CASES["N:M"][2], CASES["N:M"][3])
        return Plan.model_validate({**plan.model_dump(), **changes})

    def test_plan_of_another_model(self, make_model: MakeModel, windows: RefinementWindows) -> None:
        with pytest.raises(
            RequestError, match="which the model does not have: the plan was made for another"
        ):
            refine_plan(
                make_model("gpt2"), self.plan(make_model("llama")), BACKENDS.create("wanda", {}), windows
            )

    def test_plan_of_another_unit(self, make_model: MakeModel, windows: RefinementWindows) -> None:
        model = make_model("llama")
        with pytest.raises(RequestError, match="carries out budgets in bits, the plan is in density"):
            refine_plan(model, self.plan(model), BACKENDS.create("rtn", {}), windows)

    def test_single_level(self, make_model: MakeModel, windows: RefinementWindows) -> None:
        model = make_model("llama")
        plan = bad_plan(model, Unit.DENSITY, dict.fromkeys(range(3), 0.5), KeptOfGrid(kept_of=8))
        narrow = Plan.model_validate({**plan.model_dump(), "low": 0.5, "high": 0.6})
        with pytest.raises(RequestError, match=r"single level between low 0\.5 and high 0\.6"):
            refine_plan(model, narrow, BACKENDS.create("wanda", {}), windows)

    def test_a_backend_that_divides_budgets_itself(
        self, make_model: MakeModel, windows: RefinementWindows
    ) -> None:
        model = make_model("llama")
        plan = bad_plan(model, Unit.DENSITY, CASES["density"][2])
        with pytest.raises(RequestError, match="divides the budget by itself: use --scope"):
            refine_plan(model, plan, BACKENDS.create("magnitude", {"scope": "model"}), windows)

    def test_windows_that_overlap(self, windows: RefinementWindows) -> None:
        with pytest.raises(RequestError, match="overlaps the windows"):
            RefinementWindows(windows.statistics, windows.choosing, windows.choosing)

    @pytest.mark.parametrize(
        ("case", "options", "message"),
        [
            ("density", {"step": 0.9}, "step 0.9 is outside"),
            ("density", {"step": 1e-9}, "step 1e-09 is outside"),
            ("N:M", {"step": 0.1}, "step 0.1: budgets in this plan move from level to level"),
            ("N:M", {"pairs": 0}, "pairs 0 must be at least 1"),
            ("N:M", {"generations": 3}, "generations are of the method evo"),
            ("width", {"part": PartKind.LINEAR}, "--part linear"),
        ],
    )
    def test_options(
        self,
        case: str,
        options: dict[str, Any],
        message: str,
        make_model: MakeModel,
        windows: RefinementWindows,
    ) -> None:
        with pytest.raises(RequestError, match=message):
            refined(case, make_model("llama"), windows, **options)

    @pytest.mark.parametrize("options", [{}, {"method": "evo"}, {"method": "evo", "generations": 2}])
    def test_nothing_that_can_move(
        self, options: dict[str, Any], make_model: MakeModel, windows: RefinementWindows
    ) -> None:
        model = make_model("llama")
        fixed = frozenset(find_structure(model).linear_sizes)
        with pytest.raises(RequestError, match="no part of the plan can move"):
            refined("N:M", model, windows, fixed=fixed, **options)


def test_a_search_without_exchanges_ends(make_model: MakeModel, windows: RefinementWindows) -> None:
    model = make_model("llama")
    plan = bad_plan(model, Unit.DENSITY, dict.fromkeys(range(3), 0.5), KeptOfGrid(kept_of=8))
    bounded = Plan.model_validate({**plan.model_dump(), "high": 0.5})
    options = RefinementOptions(positions=N_POSITIONS, method="evo")
    found = refine_plan(model, bounded, BACKENDS.create("magnitude", {}), windows, options)
    assert found.plan == bounded
    assert found.ended.startswith("no moves that keep the budget gain anything")


def test_a_part_with_a_fixed_linear_stays_whole(make_model: MakeModel, windows: RefinementWindows) -> None:
    model = make_model("llama")
    one = next(name for name in find_structure(model).linear_sizes if "layers.2" in name)
    plan, found = refined("N:M", model, windows, fixed=frozenset([one]))
    last = [budget.name for budget in plan.budgets if "layers.2" in budget.name]
    assert all(found.plan.value_of(name) == plan.value_of(name) for name in last)
    assert found.plan != plan
