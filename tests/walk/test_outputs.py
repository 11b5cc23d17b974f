"""Predictions of a model held against those of another, from the states behind the last block."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch

from owl_compress.data.windows import TokenWindows
from owl_compress.errors import RequestError
from owl_compress.importance.reference import DenseReference
from owl_compress.models.structure import find_structure
from owl_compress.walk import outputs
from owl_compress.walk.outputs import OutputDistribution, divergence, final_states, spread_positions

HOST = torch.device("cpu")


def perturbed(model: Any) -> Any:
    copy = deepcopy(model)
    with torch.no_grad():
        for linear in find_structure(copy).linears:
            linear.weight.mul_(0.5)
    return copy


@torch.no_grad()
def direct(model: Any, other: Any, ids: torch.Tensor, positions: torch.Tensor) -> float:
    own, changed = (
        torch.log_softmax(one(input_ids=ids).logits[:, positions].double(), dim=-1) for one in (model, other)
    )
    return float((own.exp() * (own - changed)).sum(dim=-1).mean())


def test_divergence_is_that_of_the_models_own_logits(
    family_model: Any, make_windows: Callable[..., TokenWindows]
) -> None:
    windows, other = make_windows(3, 24), perturbed(family_model)
    reference = DenseReference.of(family_model, find_structure(family_model), windows, HOST, n_positions=12)
    expected = direct(family_model, other, windows.ids, spread_positions(24, 4))
    assert reference.divergence_of(other) == pytest.approx(expected, rel=2e-3, abs=1e-7)
    assert reference.divergence_of(family_model) == pytest.approx(0.0, abs=1e-9)


def test_no_more_logits_are_held_than_the_limit(
    make_model: Callable[[str], Any],
    make_windows: Callable[..., TokenWindows],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, windows, shapes = make_model("llama"), make_windows(4, 24), list[int]()
    structure = find_structure(model)
    states = final_states(model, structure, windows.batches(2), HOST)
    others = [[state.roll(1, -1) for state in states]]
    positions = spread_positions(24, 10)
    expected = OutputDistribution(model, structure, windows, states, positions).divergences(others)
    monkeypatch.setattr(outputs, "_LOGITS_AT_ONCE", 3 * 259)
    monkeypatch.setattr(
        OutputDistribution,
        "_log_probabilities",
        lambda self, chosen, plain=OutputDistribution._log_probabilities: (
            shapes.append(len(chosen)) or plain(self, chosen)
        ),
    )
    in_pieces = OutputDistribution(model, structure, windows, states, positions)
    for _ in range(2):
        shapes.clear()
        assert in_pieces.divergences(others) == pytest.approx(expected, rel=1e-5)
        assert sum(shapes) == 2 * 40, "both models' logits are computed every time"
        assert max(shapes) == 3


def test_predictions_that_may_be_held_are_computed_once(
    make_model: Callable[[str], Any],
    make_windows: Callable[..., TokenWindows],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, windows = make_model("llama"), make_windows(4, 24)
    structure = find_structure(model)
    states = final_states(model, structure, windows.batches(2), HOST)
    other = [state.roll(1, -1) for state in states]
    small = OutputDistribution(model, structure, windows, states, spread_positions(24, 10))
    first = small.divergences([other]), small.losses([other])
    asked: list[int] = []
    plain = small._head.logits
    monkeypatch.setattr(small._head, "logits", lambda chosen: asked.append(len(chosen)) or plain(chosen))
    assert (small.divergences([other, states]), small.losses([other])) == (first[0] + [0.0], first[1])
    assert sum(asked) == 3 * 40, "those of the others alone"


def test_a_model_whose_head_looks_at_several_positions_is_refused(
    make_model: Callable[[str], Any],
    make_windows: Callable[..., TokenWindows],
    running_head: Callable[[Any], Any],
) -> None:
    model, windows = make_model("unknown"), make_windows(2, 24)
    structure = find_structure(model)
    states = final_states(model, structure, windows.batches(1), HOST)
    model.head = running_head(model.head)
    with pytest.raises(RequestError, match="more than one position"):
        OutputDistribution(model, structure, windows, states, spread_positions(24, 4))


@pytest.mark.parametrize(("seq_len", "count"), [(128, 16), (128, 1000), (3, 5), (2, 1), (9, 3)])
def test_positions_lie_in_the_window_rise_and_have_a_next_token(seq_len: int, count: int) -> None:
    positions = spread_positions(seq_len, count)
    assert 1 <= len(positions) <= count
    assert bool((positions.diff() > 0).all())
    assert 0 <= int(positions[0]) <= int(positions[-1]) <= seq_len - 2


def test_the_rounding_of_a_large_vocabulary_is_no_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(16, 50_000, generator=generator)
    near = logits + 0.005 * torch.randn(logits.shape, generator=generator)
    own, other = logits.double().log_softmax(dim=-1), near.double().log_softmax(dim=-1)
    exact = (own.exp() * (own - other)).sum(dim=1)  # 1e-5
    found = divergence(logits.log_softmax(dim=-1), near.log_softmax(dim=-1))
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-7)


def test_a_token_that_only_one_model_rules_out() -> None:
    own = torch.tensor([[0.0, 1.0, -torch.inf]]).log_softmax(dim=1)
    others = torch.tensor([[2.0, 3.0, 4.0], [0.0, -torch.inf, 1.0]]).log_softmax(dim=1)
    first, second = (float(divergence(own, other[None])) for other in others)
    assert first == pytest.approx(-float(others[0, :2].logsumexp(dim=0)))
    assert second == torch.inf
