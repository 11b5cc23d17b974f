"""Where a CPU has no instructions for bfloat16, the visited block is computed in float32, and only that."""

from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from owl_compress.data.windows import TokenWindows
from owl_compress.models.structure import find_structure
from owl_compress.walk.blocks import BlockWalk
from owl_compress.walk.input_statistics import SecondMoments
from owl_compress.walk.widening import widened, wider_dtype

CPU = torch.device("cpu")
Make = Callable[..., TokenWindows]


def with_instructions(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, **dict.fromkeys(names, True)})


@pytest.fixture
def _slow_at_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    with_instructions(monkeypatch)


@pytest.mark.parametrize(("instruction", "wider"), [
    ("avx512_f", torch.float32), ("avx512_bf16", None), ("amx_bf16", None), ("bf16", None),
])  # fmt: skip
def test_only_a_cpu_without_instructions_for_it_widens(
    instruction: str, wider: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_instructions(monkeypatch, instruction)
    assert wider_dtype(nn.Linear(2, 2, dtype=torch.bfloat16), CPU) is wider


@pytest.mark.usefixtures("_slow_at_bfloat16")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_types_stay_what_they_are(dtype: torch.dtype) -> None:
    assert wider_dtype(nn.Linear(2, 2, dtype=dtype), CPU) is None


@pytest.mark.usefixtures("_slow_at_bfloat16")
def test_a_gpu_computes_bfloat16_itself() -> None:
    assert wider_dtype(nn.Linear(2, 2, dtype=torch.bfloat16), torch.device("cuda")) is None


def test_the_very_same_weights_come_back_also_after_an_error() -> None:
    linear = nn.Linear(3, 2, dtype=torch.bfloat16)
    held = linear.weight.data_ptr()

    def fail() -> None:
        with widened(linear, torch.float32):
            assert linear.weight.dtype is torch.float32
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert linear.weight.dtype is torch.bfloat16
    assert linear.weight.data_ptr() == held


def walked(model: nn.Module, windows: TokenWindows) -> tuple[list[Tensor], list[Tensor]]:
    """Second moments of the first input of every block, and the hidden states behind every block."""
    walk = BlockWalk(model, find_structure(model), windows.batches(1), device=CPU, may_widen=True)
    moments, states = [], []
    with closing(walk.visits()) as visits:
        for visit in visits:
            moments.append(visit.gather(SecondMoments, advance=True)[0].statistic.second_moments)
            states.append(torch.cat(walk.hidden))
    return moments, states


@pytest.mark.usefixtures("_slow_at_bfloat16")
def test_every_family_walks_widened(family_model: Any, make_windows: Make) -> None:
    windows = make_windows(2)
    exact = walked(family_model, windows)
    moments, states = walked(family_model.to(torch.bfloat16), windows)
    for found, expected in zip(moments, exact[0], strict=True):
        assert float((found - expected).norm() / expected.norm()) < 0.05
    for found, expected in zip(states, exact[1], strict=True):
        assert found.dtype is torch.bfloat16  # as the model hands them on
        assert float((found.float() - expected).norm() / expected.norm()) < 0.05
    assert {parameter.dtype for parameter in family_model.parameters()} == {torch.bfloat16}


@pytest.mark.usefixtures("_slow_at_bfloat16")
def test_a_widened_block_is_nearer_to_the_exact_one(
    make_model: Callable[[str], Any], make_windows: Make
) -> None:
    windows, model = make_windows(2), make_model("llama").to(torch.bfloat16)
    site = find_structure(model).blocks[0]
    walk = BlockWalk(model, find_structure(model), windows.batches(1), device=CPU, may_widen=True)
    with walk.prepared():
        hidden, narrow = walk.hidden[0], walk.run_block(0, 0)
        with walk.visit(0) as visit:
            visit.advance()
        wide = walk.hidden[0]
        with widened(site.module, torch.float32):
            exact = walk.run_block(0, 0, hidden.float(), dtype=torch.float32)
    assert torch.equal(wide, exact.to(torch.bfloat16))
    assert (wide.float() - exact).norm() <= (narrow.float() - exact).norm()
