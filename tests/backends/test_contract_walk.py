"""What every backend owes to its model: an interrupt does no harm, blocks run no more than is needed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from owl_compress.compression.contract import Backend
from owl_compress.compression.driver import WalkOptions, compress_with_
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.plan import Plan
from owl_compress.models.structure import find_structure

Planned = Callable[..., Plan]
Make = Callable[..., TokenWindows]
MakeModel = Callable[[str], Any]


@pytest.fixture
def case(first_case: Any) -> Any:
    return first_case


@pytest.mark.parametrize("name", ["gemma3", "gpt2"])
def test_an_interrupt_leaves_a_model_that_works(
    make_model: MakeModel,
    backend: Backend,
    planned: Planned,
    make_windows: Make,
    interrupted_at_second: WalkOptions,
    name: str,
) -> None:
    model = make_model(name).train()
    with pytest.raises(KeyboardInterrupt):
        compress_with_(model, planned(model), backend, make_windows(2), interrupted_at_second)
    assert all(module.training for module in model.modules())
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert model.eval()(input_ids=make_windows(1).ids).logits.isfinite().all()


@pytest.mark.parametrize("name", ["gemma3", "gpt2"])
def test_a_block_runs_once_to_be_looked_at_and_once_for_the_next(
    make_model: MakeModel,
    backend: Backend,
    planned: Planned,
    make_windows: Make,
    forwards_counted: Callable[..., Any],
    name: str,
) -> None:
    model = make_model(name)
    plan = planned(model)
    with forwards_counted(model) as counts:
        compress_with_(model, plan, backend, make_windows(3))
    # Nothing follows the last block; a single token tells what a block returns.
    expected: list[list[int]] = [[1, *[24] * 6], [24] * 6, [24] * 3]
    if backend.survey is not None:  # which runs a dense block once, for its statistic and for the next
        expected = [[1, *[24] * 3, *expected[0]], [24] * 3 + expected[1], [24] * 3 + expected[2]]
    # A window goes through the model, and is walked, before anything else.
    expected = [look + rest for look, rest in zip([[24, 1, 24], [24] * 2, [24] * 2], expected, strict=True)]
    assert counts == ([[], [], []] if backend.statistic is None else expected)


def test_a_block_left_alone_runs_once(
    make_model: MakeModel,
    backend: Backend,
    planned: Planned,
    make_windows: Make,
    forwards_counted: Callable[..., Any],
) -> None:
    model = make_model("llama")
    skipped = tuple(linear.name for linear in find_structure(model).blocks[1].linears)
    with forwards_counted(model) as counts:
        compress_with_(model, planned(model, skipped=skipped), backend, make_windows(3))
    walks = 1 if backend.survey is None else 2
    first_look = 2
    assert counts[1] == ([] if backend.statistic is None else [24] * (first_look + 3 * walks))


def test_linears_with_the_same_input_share_one_statistic(
    make_model: MakeModel,
    backend: Backend,
    planned: Planned,
    make_windows: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if backend.statistic is None:
        pytest.skip("needs no statistic")
    made: list[int] = []
    original = backend.statistic.empty

    def counted(n_inputs: int, device: torch.device) -> Any:
        made.append(n_inputs)
        return original(n_inputs, device)

    monkeypatch.setattr(backend.statistic, "empty", counted)
    model = make_model("llama")
    compress_with_(model, planned(model), backend, make_windows(2))
    walks = 1 if backend.survey is None else 2
    assert made == [32, 32, 32, 64] * 3 * walks  # q/k/v, o, gate/up, down
