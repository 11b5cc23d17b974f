"""Structured removal takes one block and its statistics beside the model, however many blocks there are."""

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from owl_compress.backends.structured import Structured
from owl_compress.compression.tasks import BlockTask, LinearOutcome

HIDDEN, SEQUENCES, SEQ_LEN = 128, 3, 32
HOST = torch.device("cpu")


@pytest.fixture
def bench() -> Iterator[Any]:
    """The benchmark, whose counter is put to the test here, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        yield importlib.import_module("structured_memory")


def memory(bench: Any, n_blocks: int, backend: Structured) -> Any:
    windows = bench.random_windows(SEQUENCES, SEQ_LEN)
    return bench.measure_memory(bench.random_llama(n_blocks, HIDDEN), windows, backend, HOST)


@pytest.mark.parametrize("repair", [False, True], ids=["wanda", "repair"])
def test_of_every_block_only_what_the_comparison_looks_at_is_kept(bench: Any, repair: bool) -> None:
    backend = Structured(repair=repair, uniform_width=True)  # all blocks of one width: all have equal peaks
    few, many = (memory(bench, n_blocks, backend) for n_blocks in (3, 9))
    assert many.model_bytes - few.model_bytes == 6 * few.block_bytes
    positions = 8 * HIDDEN * 4  # hidden states, float32
    sums = 8 * (6 * HIDDEN + 11 * HIDDEN // 4)  # one float64 for each input of q, k, v, o, gate, up and down
    assert abs(many.working_bytes - few.working_bytes) <= 6 * (positions + sums)
    assert positions + sums < few.block_bytes / 50  # of a block twice as wide it is half the share


def test_of_every_block_gradients_leave_its_inputs_and_sums(bench: Any) -> None:
    backend = Structured(importance="taylor", gradient_samples=2)
    few, many = (memory(bench, n_blocks, backend) for n_blocks in (3, 9))
    inputs = 2 * SEQ_LEN * HIDDEN * 4
    # two sums in float64 along both sides of q and o, of k and v (half as many heads), of gate, up and down
    sums = 2 * 8 * (2 * 2 * HIDDEN + 2 * 3 * HIDDEN // 2 + 3 * 15 * HIDDEN // 4)
    assert many.working_bytes - few.working_bytes <= 6 * (inputs + sums) < few.block_bytes


def test_by_wanda_it_is_less_than_one_block_more(bench: Any) -> None:
    found = memory(bench, 6, Structured())
    activations = 4 * SEQ_LEN * (4 * HIDDEN + 3 * 11 * HIDDEN // 4)  # of one sequence in one block, float32
    scores = 2 * found.largest_linear_bytes  # |W| and |W| * ||X||
    assert found.largest_linear_bytes < found.working_bytes < scores + activations < found.block_bytes
    assert found.device_bytes < 2 * found.block_bytes < found.model_bytes / 2


def hoarder(*, copies: bool) -> Structured:
    """A backend that keeps copies of the dense weights of every block, or the very weights that it cuts."""

    class Hoarder(Structured):
        hoard: ClassVar[list[Tensor]] = []

        def compress_block_(self, task: BlockTask) -> Sequence[LinearOutcome]:
            weights = [linear.module.get_parameter("weight") for linear in task.site.linears]
            self.hoard.extend(weight.detach().clone() if copies else weight for weight in weights)
            return super().compress_block_(task)

    return Hoarder()


@pytest.mark.parametrize("copies", [True, False])
def test_a_backend_that_keeps_weights_is_found_out(bench: Any, copies: bool) -> None:
    few, many = (memory(bench, n_blocks, hoarder(copies=copies)) for n_blocks in (2, 4))
    assert many.working_bytes - few.working_bytes >= 2 * 0.9 * few.block_bytes


def test_tensors_are_counted_while_they_live(bench: Any) -> None:
    model = nn.Linear(1024, 1024, bias=False)
    with torch.no_grad(), bench.TensorCount(model) as count:
        doubled = model.weight * 2  # 4 MiB
        assert count.peak_bytes == doubled.nbytes == 4 << 20
        view = doubled.t()
        del doubled
        third = view + 1  # the view holds the doubled weight
        assert count.peak_bytes == 8 << 20
        del view
        fourth = third[:512] - 1  # 2 MiB
        assert count.peak_bytes == 8 << 20
        model.weight = nn.Parameter(third)  # the old weight is gone, the new one is the model's
        del third
        more = torch.empty(7 << 20, dtype=torch.uint8)
        assert count.peak_bytes == fourth.nbytes + more.nbytes == 9 << 20
