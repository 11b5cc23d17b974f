"""What every backend makes of the dense model's statistics: it works on them in one pass, or refuses them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from owl_compress.backends import BACKENDS
from owl_compress.backends.wanda import Wanda
from owl_compress.compression.contract import ApartSolver, Backend
from owl_compress.compression.driver import compress_with_
from owl_compress.compression.statistics import asked_statistics, check_statistics
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.plan import Plan
from owl_compress.documents.units import KeptOfGrid
from owl_compress.errors import RequestError
from owl_compress.importance.estimator import measure_with_statistics
from owl_compress.models.structure import find_structure
from owl_compress.walk.input_statistics import SecondMoments

Make = Callable[..., TokenWindows]
MakeModel = Callable[[str], Any]
Planned = Callable[..., Plan]
PlanFor = Callable[..., Plan]
LOOK = [[24, 1, 24], [24] * 2, [24] * 2]  # a window goes through the model, and is walked, before all else


@pytest.fixture
def case(way: Any) -> Any:
    return way


def states(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_every_backend_is_told_of_the_dense_model_in_one_pass_or_refuses(
    make_model: MakeModel, backend: Backend, planned: Planned, make_windows: Make,
    forwards_counted: Callable[..., Any],
) -> None:  # fmt: skip
    model, windows = make_model("llama"), make_windows(3)
    plan, before = planned(model), states(model)
    if not asked_statistics(backend) <= {SecondMoments}:
        with pytest.raises(
            RequestError,
            match=r"needs more than the norms of inputs .* use sequential( or true-sequential)?$",
        ):
            compress_with_(model, plan, backend, windows, statistics="dense")
        assert same(states(model), before)
        return
    with forwards_counted(model) as counts:
        result = compress_with_(model, plan, backend, windows, statistics="dense")
    if not asked_statistics(backend):
        assert (counts, result.statistics) == ([[], [], []], None)
        return
    # A single token tells what the first block returns.
    passes = [[1, *[24] * 3], [24] * 3, [24] * 3]
    assert counts == [look + one for look, one in zip(LOOK, passes, strict=True)]
    assert result.statistics == "dense"


def test_what_was_gathered_with_importance_is_what_the_backend_would_gather(
    make_model: MakeModel, backend: Backend, planned: Planned, make_windows: Make,
    forwards_counted: Callable[..., Any],
) -> None:  # fmt: skip
    if asked_statistics(backend) != {SecondMoments}:
        pytest.skip("is not told of norms")
    gathering, told, windows = make_model("gemma3"), make_model("gemma3"), make_windows(3)
    plan = planned(gathering)
    compress_with_(gathering, plan, backend, windows, statistics="dense")
    known = measure_with_statistics(told, windows).statistics
    with forwards_counted(told) as counts:
        compress_with_(told, plan, backend, windows, statistics=known)
    assert counts == LOOK
    assert same(states(told), states(gathering))


def test_statistics_make_a_difference_and_sequential_is_what_it_was(
    make_model: MakeModel, backend: Backend, planned: Planned, make_windows: Make
) -> None:
    if asked_statistics(backend) != {SecondMoments}:
        pytest.skip("is not told of norms")
    plan, windows = planned(make_model("llama")), make_windows(3)
    found = {}
    for source in (None, "sequential", "dense"):
        model = make_model("llama")
        options: Any = {} if source is None else {"statistics": source}
        result = compress_with_(model, plan, backend, windows, **options)
        assert result.statistics == (source or "sequential")
        found[source] = states(model)
    assert same(found[None], found["sequential"])
    assert not same(found["dense"], found["sequential"])


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("kept_of", [None, 4])
def test_wanda_on_dense_statistics_keeps_the_highest_scores_of_the_dense_model(
    make_model: MakeModel, make_windows: Make, plan_for: PlanFor,
    wanda_scores: Callable[..., dict[str, Tensor]], name: str, kept_of: int | None,
) -> None:  # fmt: skip
    model, windows = make_model(name), make_windows(3)
    grid = KeptOfGrid(kept_of=kept_of) if kept_of else None
    plan = plan_for(model, 0.5, grid=grid)
    scores = wanda_scores(model, windows, find_structure(model).linears)
    compress_with_(model, plan, BACKENDS.create("wanda", {}), windows, statistics="dense")
    for site in find_structure(model).linears:
        rows = scores[site.name].reshape(-1, kept_of or site.shape[1])
        n_kept = rows.shape[1] // 2
        highest = torch.zeros_like(rows).scatter(1, rows.topk(n_kept).indices, value=1.0)
        assert torch.equal(site.weight != 0, highest.reshape(site.shape).bool()), site.name


def test_a_model_wide_comparison_and_the_masks_share_one_pass(
    make_model: MakeModel, make_windows: Make, plan_for: PlanFor,
    wanda_scores: Callable[..., dict[str, Tensor]], forwards_counted: Callable[..., Any],
) -> None:  # fmt: skip
    model, windows = make_model("llama"), make_windows(3)
    sites = list(find_structure(model).linears)
    scores = wanda_scores(model, windows, sites)
    everything = torch.cat([scores[site.name].flatten() for site in sites])
    threshold = everything.sort(descending=True).values[len(everything) // 2 - 1]
    with forwards_counted(model) as counts:
        compress_with_(
            model, plan_for(model, 0.5), BACKENDS.create("wanda", {"scope": "model"}), windows,
            statistics="dense",
        )  # fmt: skip
    assert [lengths.count(24) for lengths in counts] == [look.count(24) + 3 for look in LOOK]
    for site in sites:
        expected = int((scores[site.name] >= threshold).sum())
        assert abs(int(site.weight.count_nonzero()) - expected) <= 1, site.name


def test_a_backend_that_wants_more_with_some_options_refuses_with_these_alone() -> None:
    check_statistics(BACKENDS.create("structured", {}), "dense")
    with pytest.raises(RequestError, match=r"'structured' with these options needs more .*\(Gram\)"):
        check_statistics(BACKENDS.create("structured", {"repair": True}), "dense")
    check_statistics(BACKENDS.create("structured", {"repair": True}), "sequential")


def test_statistics_of_other_text_are_refused(
    make_model: MakeModel, make_windows: Make, plan_for: PlanFor
) -> None:
    model = make_model("llama")
    before, known = states(model), measure_with_statistics(model, make_windows(2)).statistics
    with pytest.raises(
        RequestError, match=r"dense model are of 2 sequences from random ids .*, the calibrat"
    ):
        compress_with_(
            model, plan_for(model, 0.5), BACKENDS.create("wanda", {}), make_windows(3), statistics=known
        )
    assert same(states(model), before)


def test_a_linear_that_nothing_is_known_of_is_refused_before_any_block_is_changed(
    make_model: MakeModel, make_windows: Make, plan_for: PlanFor
) -> None:
    model, windows = make_model("llama"), make_windows(2)
    before, known = states(model), measure_with_statistics(model, windows).statistics
    *_, last = known.blocks
    fewer = replace(known, blocks={**known.blocks, last: known.blocks[last][:-1]})
    plan, wanda = plan_for(model, 0.5), BACKENDS.create("wanda", {})
    with pytest.raises(RequestError, match=r"^no token reached model\.layers\.2\.mlp\.down_proj: .* --skip$"):
        compress_with_(model, plan, wanda, windows, statistics=fewer)
    assert same(states(model), before)


def test_an_unknown_source_is_refused_with_the_nearest(
    make_model: MakeModel, make_windows: Make, plan_for: PlanFor
) -> None:
    model, wrong = make_model("llama"), "denze"
    with pytest.raises(RequestError, match="unknown statistics 'denze': did you mean 'dense'"):
        compress_with_(
            model, plan_for(model, 0.5), BACKENDS.create("wanda", {}), make_windows(1), statistics=wrong
        )


def test_every_backend_that_solves_groups_apart_is_told_of_linears_in_turn(
    make_model: MakeModel, backend: Backend, planned: Planned, make_windows: Make,
    forwards_counted: Callable[..., Any],
) -> None:  # fmt: skip
    model, windows = make_model("llama"), make_windows(3)
    plan, before = planned(model), states(model)
    if not isinstance(backend, ApartSolver):
        with pytest.raises(RequestError, match=r"decides on a block as a whole: use sequential$"):
            compress_with_(model, plan, backend, windows, statistics="true-sequential")
        assert same(states(model), before)
        return
    with forwards_counted(model) as counts:
        result = compress_with_(model, plan, backend, windows, statistics="true-sequential")
    assert [row.name for row in result.budgets] == [budget.name for budget in plan.budgets]
    if not asked_statistics(backend):
        assert result.statistics is None
        return
    assert result.statistics == "true-sequential"
    assert len(counts[-1]) <= len(LOOK[-1]) + 2 * 3, "a pass for each turn"


def test_the_last_linears_of_a_block_read_what_the_compressed_first_ones_give(
    make_model: MakeModel, make_windows: Make, plan_for: PlanFor
) -> None:
    windows, rows = make_windows(3), {}
    for source in ("sequential", "true-sequential"):
        model = make_model("llama")
        result = compress_with_(model, plan_for(model, 0.5), Wanda(), windows, statistics=source)
        rows[source] = {row.name: row.relative_error for row in result.budgets}
    first, *others = rows["sequential"]
    assert first.endswith("layers.0.self_attn.q_proj")
    assert rows["sequential"][first] == rows["true-sequential"][first]
    later = [name for name in others if "layers.0" in name and not name.endswith(("k_proj", "v_proj"))]
    assert all(rows["sequential"][name] != rows["true-sequential"][name] for name in later)


def test_linears_without_a_turn_are_named(
    make_model: MakeModel,
    make_windows: Make,
    plan_for: PlanFor,
    monkeypatch: pytest.MonkeyPatch,
    up_called_twice: Callable[..., Tensor],
) -> None:
    found = []
    for source in ("sequential", "true-sequential"):
        model = make_model("llama")
        monkeypatch.setattr(type(model.model.layers[0].mlp), "forward", up_called_twice)
        result = compress_with_(model, plan_for(model, 0.5), Wanda(), make_windows(3), statistics=source)
        found.append((result, states(model)))
    (plain, before), (turns, after) = found
    assert not plain.fallbacks
    assert [one.where for one in turns.fallbacks] == [
        row.name for row in turns.budgets if row.name.endswith("up_proj")
    ]
    assert not same(before, after)
