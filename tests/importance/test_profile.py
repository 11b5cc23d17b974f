"""Profiles held against plain forward passes of a model in which the part was compressed by the driver."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from owl_compress.backends import BACKENDS
from owl_compress.compression.driver import compress_with_
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.plan import AllocatorRecord, LinearBudget, Plan
from owl_compress.documents.sensitivity import Measure, PartKind, SensitivityProfile
from owl_compress.documents.units import BitsGrid, KeptOfGrid, Unit
from owl_compress.errors import RequestError
from owl_compress.importance.cost import ProfileCost, forward_tokens
from owl_compress.importance.profile import ProfileOptions, ProfileRun, profile
from owl_compress.models.structure import find_structure
from owl_compress.walk.agreement import settled_structure
from owl_compress.walk.outputs import spread_positions

Windows = Callable[..., TokenWindows]

CASES: dict[str, tuple[str, dict[str, Any], ProfileOptions]] = {
    "wanda": ("wanda", {}, ProfileOptions(levels=(0.3, 0.7))),
    "wanda N:M": ("wanda", {}, ProfileOptions(levels=(0.25, 0.5), grid=KeptOfGrid(kept_of=8))),
    "magnitude by linear": ("magnitude", {}, ProfileOptions(levels=(0.3, 0.6), part=PartKind.LINEAR)),
    "sparsegpt by sublayer": ("sparsegpt", {}, ProfileOptions(levels=(0.4, 0.6), part=PartKind.SUBLAYER)),
    "gptq": ("gptq", {"group_size": 8}, ProfileOptions(levels=(2, 4))),
    "rtn by role": ("rtn", {"group_size": 8}, ProfileOptions(levels=(2, 3), part=PartKind.ROLE)),
    "structured": ("structured", {"round_to": 8}, ProfileOptions(levels=(0.5, 0.75))),
    "structured with repair": (
        "structured",
        {"round_to": 8, "repair": True},
        ProfileOptions(levels=(0.5, 0.75), part=PartKind.BLOCK),
    ),
    "structured by gradients": (
        "structured",
        {"round_to": 8, "importance": "taylor", "gradient_samples": 2},
        ProfileOptions(levels=(0.5, 0.75)),
    ),
}
N_POSITIONS = 12


@pytest.fixture(scope="module")
def seen(make_windows: Windows) -> TokenWindows:
    return make_windows(3, 24, seed=1)


@pytest.fixture(scope="module")
def judged(make_windows: Windows) -> TokenWindows:
    return make_windows(2, 16, seed=2)


def plan_of_one(profile: SensitivityProfile, part: int, level: float) -> Plan:
    """A plan that compresses one part alone; the rest is kept whole, or left out where bits cannot say so."""
    chosen = profile.parts[part]
    members, unit = set(chosen.linears), profile.unit
    is_bits = unit is Unit.BITS
    names = [one for one in profile.linears if not is_bits or one.name in members]
    budgets = tuple(
        LinearBudget(
            name=one.name,
            block=one.block,
            n_weights=one.n_weights,
            value=level if one.name in members else 1.0,
        )
        for one in names
    )
    mean = sum(b.value * b.n_weights for b in budgets) / sum(b.n_weights for b in budgets)
    return Plan(
        unit=unit,
        target=mean,
        grid=BitsGrid(bits=(2, 3, 4)) if is_bits else profile.grid,
        low=2 if is_bits else 0.0,
        high=4 if is_bits else 1.0,
        allocator=AllocatorRecord(name="by hand"),
        report="none",
        skipped=tuple(one.name for one in profile.linears if is_bits and one.name not in members),
        budgets=budgets,
    )


@torch.no_grad()
def log_probabilities(model: Any, windows: TokenWindows) -> torch.Tensor:
    """Of the model's own forward pass at the positions that are compared, [positions, vocabulary]."""
    positions = spread_positions(windows.record.seq_len, N_POSITIONS // len(windows))
    logits = model(input_ids=windows.ids).logits[:, positions].double()
    return torch.log_softmax(logits, dim=-1).flatten(0, 1)


def divergence(own: torch.Tensor, other: torch.Tensor) -> float:
    return float((own.exp() * (own - other)).sum(dim=-1).mean())


@pytest.mark.parametrize("case", CASES)
def test_damage_is_the_divergence_of_the_model_with_that_part_compressed(
    case: str, make_model: Callable[[str], Any], seen: TokenWindows, judged: TokenWindows
) -> None:
    name, given, options = CASES[case]
    model = make_model("llama")
    backend = BACKENDS.create(name, given)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = profile(model, backend, seen, judged, replace(options, positions=N_POSITIONS))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    dense = log_probabilities(model, judged)
    for index in (0, len(found.parts) // 2, len(found.parts) - 1):
        part = found.parts[index]
        compressed_levels = [level for level in part.levels if level != 1.0 or found.unit is Unit.BITS]
        assert len(compressed_levels) == len(part.levels) - (found.unit is not Unit.BITS)
        for level in compressed_levels:
            copy = deepcopy(model)
            compress_with_(copy, plan_of_one(found, index, level), backend, seen)
            expected = divergence(dense, log_probabilities(copy, judged))
            damage = part.damage[part.levels.index(level)]
            assert damage == pytest.approx(expected, rel=1e-3, abs=1e-7), (part.name, level)


def test_loss_is_what_the_loss_of_the_next_token_rises_by(
    make_model: Callable[[str], Any], seen: TokenWindows, judged: TokenWindows
) -> None:
    model, backend = make_model("llama"), BACKENDS.create("wanda", {})
    options = ProfileOptions(levels=(0.2, 0.5), measure=Measure.LOSS, positions=N_POSITIONS)
    found = profile(model, backend, seen, judged, options)
    positions = spread_positions(16, N_POSITIONS // 2)
    targets = judged.ids[:, positions + 1].flatten()
    copy = deepcopy(model)
    compress_with_(copy, plan_of_one(found, 1, 0.2), backend, seen)
    rows = torch.arange(len(targets))
    own, other = (log_probabilities(one, judged)[rows, targets] for one in (model, copy))
    assert found.parts[1].damage[0] == pytest.approx(float((own - other).mean()), rel=1e-3, abs=1e-7)


def test_output_error_is_that_of_the_blocks_output(
    make_model: Callable[[str], Any], seen: TokenWindows, judged: TokenWindows
) -> None:
    model, backend = make_model("llama"), BACKENDS.create("wanda", {})
    options = ProfileOptions(levels=(0.2, 0.5), measure=Measure.OUTPUT_ERROR)
    found = profile(model, backend, seen, judged, options)
    copy = deepcopy(model)
    compress_with_(copy, plan_of_one(found, 1, 0.2), backend, seen)
    own, other = (behind_block(one, 1, judged) for one in (model, copy))
    expected = float((other - own).square().sum() / own.square().sum())
    assert found.parts[1].damage[0] == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def behind_block(model: Any, index: int, windows: TokenWindows) -> torch.Tensor:
    caught: list[torch.Tensor] = []
    block = find_structure(model).blocks[index].module
    handle = block.register_forward_hook(
        lambda _module, _inputs, outputs: caught.append(
            outputs if isinstance(outputs, torch.Tensor) else outputs[0]
        )
    )
    model(input_ids=windows.ids)
    handle.remove()
    return caught[0].double()


def test_fisher_approaches_the_divergence_of_a_small_change(
    make_model: Callable[[str], Any], seen: TokenWindows, make_windows: Windows
) -> None:
    model, backend = make_model("llama"), BACKENDS.create("wanda", {})
    # Logits of a trained model differ; here the head is turned up so that predictions are no coin tosses.
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    judged = make_windows(24, 32, seed=5)
    levels = (0.7, 0.8)
    fisher, divergence = (
        profile(
            model, backend, seen, judged, ProfileOptions(levels=levels, measure=measure, positions=10_000)
        )
        for measure in (Measure.FISHER, Measure.KL)
    )
    for estimated, measured in zip(fisher.parts, divergence.parts, strict=True):
        for a, b in zip(estimated.damage[:-1], measured.damage[:-1], strict=True):
            assert 0.4 < a / b < 2.5, (estimated.name, a, b)  # one draw of the next token at each position


def test_a_family_that_no_table_knows_has_a_profile(
    make_model: Callable[[str], Any], seen: TokenWindows, judged: TokenWindows
) -> None:
    found = profile(
        make_model("unknown"), BACKENDS.create("wanda", {}), seen, judged, ProfileOptions(levels=(0.2, 0.6))
    )
    assert len(found.parts) == 3
    assert all(part.damage[0] > 0 for part in found.parts)


def test_the_same_request_gives_the_same_bytes(
    make_model: Callable[[str], Any], seen: TokenWindows, judged: TokenWindows
) -> None:
    options = ProfileOptions(levels=(0.2, 0.6))
    one, two = (
        profile(make_model("llama"), BACKENDS.create("wanda", {}), seen, judged, options) for _ in range(2)
    )
    assert one.to_json() == two.to_json()


def test_the_cost_is_told_before_and_is_what_runs(
    make_model: Callable[[str], Any],
    seen: TokenWindows,
    judged: TokenWindows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, told, tokens = make_model("llama"), list[ProfileCost](), list[int]()
    structure = settled_structure(model, find_structure(model), judged.ids)
    kind = type(structure.blocks[0].module)
    original = kind.forward

    def counted(self: nn.Module, hidden: torch.Tensor, *positional: Any, **named: Any) -> Any:
        tokens.append(hidden.shape[0] * hidden.shape[1])
        return original(self, hidden, *positional, **named)

    monkeypatch.setattr(kind, "forward", counted)
    options, run = ProfileOptions(levels=(0.2, 0.6)), ProfileRun(announce=told.append)
    found = profile(model, BACKENDS.create("wanda", {}), seen, judged, options, run, structure=structure)
    (cost,) = told
    assert cost.trials == 6
    assert cost.forward_tokens == found.forward_tokens
    # Statistics; two passes; three blocks at two levels.
    assert cost.forward_tokens == pytest.approx(3 * 24 + 2 * 16 * (2 + 2 * (3 + 2 + 1) / 3))
    in_full = sum(count for count in tokens if count > 1)  # single tokens tell what a block returns
    assert in_full / 3 == pytest.approx(cost.forward_tokens)


def test_extending_measures_only_what_is_missing(
    make_model: Callable[[str], Any], seen: TokenWindows, judged: TokenWindows
) -> None:
    model, backend = make_model("llama"), BACKENDS.create("wanda", {})
    first = profile(model, backend, seen, judged, ProfileOptions(levels=(0.2, 0.6)))
    told: list[ProfileCost] = []
    both = ProfileOptions(levels=(0.2, 0.4, 0.6))
    second = profile(model, backend, seen, judged, both, ProfileRun(announce=told.append), known=first)
    whole = profile(model, backend, seen, judged, both)
    assert [cost.trials for cost in told] == [3]
    assert second.parts == whole.parts
    assert second.forward_tokens > first.forward_tokens
    assert profile(model, backend, seen, judged, both, known=second) == second


def test_extending_widths_knows_levels_by_what_was_asked_for(
    make_model: Callable[[str], Any], seen: TokenWindows, judged: TokenWindows
) -> None:
    model, backend = make_model("llama"), BACKENDS.create("structured", {"round_to": 8})
    first = profile(model, backend, seen, judged, ProfileOptions(levels=(0.45, 0.6)))
    assert any(part.asked for part in first.parts)
    told: list[ProfileCost] = []
    again, run = ProfileOptions(levels=(0.45, 0.6)), ProfileRun(announce=told.append)
    assert profile(model, backend, seen, judged, again, run, known=first) == first
    assert told == []
    third = profile(model, backend, seen, judged, ProfileOptions(levels=(0.8, 0.6)), run, known=first)
    assert [cost.trials for cost in told] == [len(first.parts)]
    for before, after in zip(first.parts, third.parts, strict=True):
        assert after.known >= before.known | {0.8}
        assert set(after.levels) >= set(before.levels)


def test_a_profile_is_extended_by_a_level_that_changes_nothing(
    make_model: Callable[[str], Any], judged: TokenWindows
) -> None:
    model, backend = make_model("llama"), BACKENDS.create("magnitude", {})
    with torch.no_grad():
        for linear in find_structure(model).linears:
            sizes = linear.weight.abs()
            linear.weight.masked_fill_(sizes < sizes.median(), 0.0)
    first = profile(model, backend, None, judged, ProfileOptions(levels=(0.2, 0.3)))
    second = profile(model, backend, None, judged, ProfileOptions(levels=(0.7,)), known=first)
    for before, after in zip(first.parts, second.parts, strict=True):
        assert after.levels == (0.2, 0.3, 0.7, 1.0)
        assert after.damage == (*before.damage[:2], 0.0, 0.0)


def test_extending_names_what_the_windows_kept_clear_of_and_what_differs_in_a_model(
    make_model: Callable[[str], Any], judged: TokenWindows, make_windows: Callable[..., TokenWindows]
) -> None:
    model, backend = make_model("llama"), BACKENDS.create("magnitude", {})
    known = profile(model, backend, None, judged, ProfileOptions(levels=(0.2, 0.6)))
    more = ProfileOptions(levels=(0.4,))
    with pytest.raises(RequestError, match="give the --samples, --seq-len and --seed it was measured with"):
        profile(model, backend, None, make_windows(1, 8), more, known=known)
    with pytest.raises(RequestError, match=r"its model .dtype float32, now bfloat16.: measure a profile"):
        profile(model.to(torch.bfloat16), backend, None, judged, more, known=known)


@pytest.mark.parametrize(
    ("name", "given", "options", "words"),
    [
        ("wanda", {"scope": "linear"}, ProfileOptions(levels=(0.2, 0.4)), "backend or its options"),
        ("magnitude", {}, ProfileOptions(levels=(0.2, 0.4)), "backend or its options"),
        ("wanda", {}, ProfileOptions(levels=(0.2, 0.4), part=PartKind.LINEAR), "by block, not by linear"),
        ("wanda", {}, ProfileOptions(levels=(0.2, 0.4), measure=Measure.LOSS), "measure"),
        ("gptq", {"group_size": 8}, ProfileOptions(levels=(2, 3)), "unit"),
        ("wanda", {}, ProfileOptions(levels=(0.25, 0.5), grid=KeptOfGrid(kept_of=8)), "N:M grid"),
    ],
)
def test_a_profile_of_something_else_is_not_extended(
    name: str,
    given: dict[str, Any],
    options: ProfileOptions,
    words: str,
    make_model: Callable[[str], Any],
    seen: TokenWindows,
    judged: TokenWindows,
) -> None:
    model = make_model("llama")
    known = profile(model, BACKENDS.create("wanda", {}), seen, judged, ProfileOptions(levels=(0.2, 0.6)))
    with pytest.raises(RequestError, match=words):
        profile(model, BACKENDS.create(name, given), seen, judged, options, known=known)


@pytest.mark.parametrize("kind", [PartKind.BLOCK, PartKind.TIED])
def test_a_part_is_not_extended_by_one_with_other_linears(
    kind: PartKind, make_model: Callable[[str], Any], seen: TokenWindows, judged: TokenWindows
) -> None:
    model, backend = make_model("llama"), BACKENDS.create("wanda", {})
    names = {name for name in find_structure(model).linear_sizes if not name.endswith("q_proj")}
    some = ProfileOptions(levels=(0.2, 0.6), part=kind, names=names)
    known = profile(model, backend, seen, judged, some)
    told: list[ProfileCost] = []
    run, further = ProfileRun(announce=told.append), replace(some, levels=(0.4, 0.5), names=None)
    with pytest.raises(RequestError, match=r"without \S+\.q_proj, and would be with it"):
        profile(model, backend, seen, judged, further, run, known=known)
    assert not told


def test_a_level_on_a_grid_is_that_of_the_grid_to_the_last_bit(
    make_model: Callable[[str], Any], seen: TokenWindows, judged: TokenWindows
) -> None:
    grid = KeptOfGrid(kept_of=20)  # the mean of 0.55 over linears of unequal sizes is rounded
    config = LlamaConfig(
        vocab_size=259, hidden_size=40, intermediate_size=80, num_hidden_layers=1, num_attention_heads=4
    )
    model, backend = LlamaForCausalLM(config).eval(), BACKENDS.create("magnitude", {})
    found = profile(model, backend, None, judged, ProfileOptions(levels=(0.25, 0.55), grid=grid))
    assert found.parts[0].levels == (0.25, 0.55, 1.0)


def test_a_measure_is_what_its_name_says_or_refused() -> None:
    assert ProfileOptions(measure="loss", part="role") == ProfileOptions(
        measure=Measure.LOSS, part=PartKind.ROLE
    )
    assert ProfileOptions(measure="kl").measure is Measure.KL
    with pytest.raises(RequestError, match=r"unknown measure 'kld'.*'kl'"):
        ProfileOptions(measure="kld")
    with pytest.raises(RequestError, match=r"unknown part 'blocks'.*'block'"):
        ProfileOptions(part="blocks")


def test_windows_that_overlap_are_refused(
    make_model: Callable[[str], Any], seen: TokenWindows, make_windows: Windows
) -> None:
    with pytest.raises(RequestError, match=r"window 0 .* overlaps"):
        profile(make_model("llama"), BACKENDS.create("wanda", {}), seen, make_windows(3, 24, seed=1))


def test_nothing_to_measure_or_to_predict_is_refused(
    make_model: Callable[[str], Any], seen: TokenWindows, make_windows: Windows
) -> None:
    model, backend = make_model("llama"), BACKENDS.create("wanda", {})
    with pytest.raises(RequestError, match="no linear is left to measure"):
        profile(model, backend, seen, make_windows(2, 16, seed=2), ProfileOptions(names=[]))
    with pytest.raises(RequestError, match="windows of 1 token hold no prediction"):
        profile(model, backend, seen, make_windows(2, 1, seed=2))


def test_a_part_that_no_level_changes_is_named(
    make_model: Callable[[str], Any], seen: TokenWindows, judged: TokenWindows
) -> None:
    model = make_model("llama")
    with torch.no_grad():
        for linear in find_structure(model).blocks[1].linears:
            linear.weight.zero_()
    with pytest.raises(RequestError, match=r"no level changes model\.layers\.1.*--levels"):
        profile(model, BACKENDS.create("magnitude", {}), None, judged, ProfileOptions(levels=(0.2, 0.6)))


def test_a_damage_that_is_no_number_names_part(
    make_model: Callable[[str], Any], judged: TokenWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "owl_compress.walk.outputs.OutputDistribution.divergences",
        lambda _self, others: [float("nan")] * len(others),
    )
    with pytest.raises(RequestError, match=r"damage of model\.layers\.0 at level 0\.2 is nan"):
        profile(
            make_model("llama"),
            BACKENDS.create("magnitude", {}),
            None,
            judged,
            ProfileOptions(levels=(0.2, 0.6)),
        )


def test_a_backend_without_its_text_is_refused(
    make_model: Callable[[str], Any], judged: TokenWindows
) -> None:
    with pytest.raises(RequestError, match="'wanda' needs calibration text"):
        profile(make_model("llama"), BACKENDS.create("wanda", {}), None, judged)


def test_a_level_below_the_least_is_passed_over_unless_it_was_asked_for(
    make_model: Callable[[str], Any], seen: TokenWindows, judged: TokenWindows
) -> None:
    model, backend = make_model("llama"), BACKENDS.create("structured", {"round_to": 32})
    usual = profile(model, backend, seen, judged)
    feed_forward = next(part for part in usual.parts if part.name.endswith("mlp"))
    assert feed_forward.levels == (0.5, 1.0)
    with pytest.raises(RequestError, match="cannot be met with the rounding"):
        profile(model, backend, seen, judged, ProfileOptions(levels=(0.1, 0.5)))


def test_a_part_none_of_whose_usual_levels_can_be_carried_out_says_why(
    make_model: Callable[[str], Any], judged: TokenWindows
) -> None:
    with pytest.raises(RequestError, match="which groups of 64 do not divide"):
        profile(make_model("llama"), BACKENDS.create("rtn", {}), None, judged)


def test_forward_tokens_count_a_trial_by_the_blocks_that_it_runs() -> None:
    assert forward_tokens([0], 4, 100, 0, Measure.KL) == 300
    assert forward_tokens([3], 4, 100, 0, Measure.KL) == 225
    assert forward_tokens([0], 4, 100, 50, Measure.OUTPUT_ERROR) == 275
    assert forward_tokens([], 4, 100, 0, Measure.FISHER) == 500
