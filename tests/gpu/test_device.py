"""What runs on a CUDA device gives what the host gives, and takes the memory of one block."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from owl_compress.backends.magnitude import Magnitude
from owl_compress.backends.selection import Scope, keep_mask, keep_mask_of_groups
from owl_compress.backends.sparsegpt import SparseGPT
from owl_compress.backends.wanda import Wanda
from owl_compress.compression.contract import Backend
from owl_compress.compression.driver import WalkOptions, compress_with_
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.plan import AllocatorRecord, LinearBudget, Plan
from owl_compress.documents.units import KeptOfGrid, Unit
from owl_compress.importance.estimator import measure
from owl_compress.importance.reconstruction import least_error
from owl_compress.importance.spectra import tail_exponent
from owl_compress.models.structure import find_structure
from owl_compress.walk.blocks import BlockWalk
from owl_compress.walk.input_statistics import Gram, SecondMoments
from owl_compress.walk.scores import ScoredWeight, ScorePool

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

DEVICE = torch.device("cuda")
HOST = torch.device("cpu")
Make = Callable[..., TokenWindows]
BACKENDS: list[Backend] = [
    Magnitude(),
    Magnitude(Scope.MODEL),
    Wanda(),
    Wanda(Scope.LINEAR),
    Wanda(Scope.MODEL),
    SparseGPT(),
    SparseGPT(Scope.MODEL),
]


def uniform_plan(model: nn.Module, density: float, grid: KeptOfGrid | None = None) -> Plan:
    budgets = tuple(
        LinearBudget(name=linear.name, block=block.name, n_weights=linear.n_weights, value=density)
        for block in find_structure(model).blocks
        for linear in block.linears
    )
    return Plan(
        unit=Unit.DENSITY,
        target=density,
        grid=grid,
        low=0.0,
        high=1.0,
        allocator=AllocatorRecord(name="uniform"),
        report="0" * 64,
        budgets=budgets,
    )


def devices_of(model: nn.Module) -> set[str]:
    return {parameter.device.type for parameter in model.parameters()}


@pytest.mark.parametrize("kind", [SecondMoments, Gram])
@pytest.mark.parametrize("keep_on", [HOST, DEVICE])
def test_a_walk_on_the_device_sees_what_a_walk_on_the_host_sees(
    family_model: Any, make_windows: Make, kind: Any, keep_on: torch.device
) -> None:
    structure, batches = find_structure(family_model), make_windows(3).batches(2)
    gathered: list[list[Tensor]] = []
    for device in (HOST, DEVICE):
        walk = BlockWalk(family_model, structure, batches, device=device, keep_on=keep_on)
        statistics = []
        for visit in walk.visits():
            assert {p.device.type for p in visit.site.module.parameters()} == {device.type}
            statistics += [group.statistic for group in visit.gather(kind, advance=True)]
            assert all(hidden.device.type == keep_on.type for hidden in walk.hidden)
        gathered.append(
            [
                (statistic.matrix if isinstance(statistic, Gram) else statistic.second_moments).cpu()
                for statistic in statistics
            ]
        )
        assert devices_of(family_model) == {"cpu"}
    for host, device_ in zip(*gathered, strict=True):
        # Other kernels sum in another order, over three blocks: some 1e-5 of the largest entry.
        torch.testing.assert_close(device_, host, rtol=1e-3, atol=1e-4 * float(host.abs().max()))


def test_a_report_from_the_device_is_that_of_the_host(family_model: Any, make_windows: Make) -> None:
    before = {name: tensor.clone() for name, tensor in family_model.state_dict().items()}
    windows = make_windows(3)
    host, device = (measure(family_model, windows, device=place) for place in (HOST, DEVICE))
    for a, b in zip(host.blocks, device.blocks, strict=True):
        # lod counts: a few scores may fall on the other side of the threshold
        assert b.metrics == pytest.approx(a.metrics, rel=1e-3, abs=3 / a.n_weights)
    assert devices_of(family_model) == {"cpu"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in family_model.state_dict().items())


@pytest.mark.parametrize("backend", BACKENDS, ids=repr)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_masks_from_the_device_are_nearly_those_of_the_host(
    make_model: Callable[[str], Any], make_windows: Make, backend: Backend, name: str
) -> None:
    models = [make_model(name), make_model(name)]
    for model, device in zip(models, (HOST, DEVICE), strict=True):
        options = WalkOptions(device=device)
        result = compress_with_(model, uniform_plan(model, 0.5), backend, make_windows(8), options)
        n_weights = result.totals.n_weights
        kept = sum(int(torch.count_nonzero(linear.weight)) for linear in find_structure(model).linears)
        assert kept == n_weights // 2  # every linear has an even number of weights
        assert devices_of(model) == {"cpu"}
    differing = sum(
        int(((one.weight != 0) != (other.weight != 0)).sum())
        for one, other in zip(*(find_structure(model).linears for model in models), strict=True)
    )
    # Scores that are equal up to rounding change places; SparseGPT carries the difference on.
    assert differing <= (0.02 if isinstance(backend, SparseGPT) else 0.005) * n_weights


@pytest.mark.parametrize("backend", [Magnitude(), Wanda(), SparseGPT()], ids=repr)
def test_a_model_that_lives_on_the_device_stays_there(
    make_model: Callable[[str], Any], make_windows: Make, backend: Backend
) -> None:
    model = make_model("qwen3").to(DEVICE)
    plan = uniform_plan(model, 0.5, KeptOfGrid(kept_of=4))
    result = compress_with_(model, plan, backend, make_windows(4))
    assert devices_of(model) == {DEVICE.type}
    assert result.totals.achieved == 0.5
    for linear in find_structure(model).linears:
        assert set((linear.weight != 0).reshape(-1, 4).sum(dim=1).tolist()) == {2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scope", [Scope.ROW, Scope.LINEAR])
@pytest.mark.parametrize("share", [0.003, 0.5, 0.9])
def test_selection_on_the_device_breaks_ties_like_the_host(
    dtype: torch.dtype, scope: Scope, share: float
) -> None:
    scores = torch.randn(64, 513).abs().to(dtype).float()  # bfloat16: thousands of ties
    n_kept = int(share * scores.numel())
    on_device = keep_mask(scores.to(DEVICE), n_kept, scope).cpu()
    assert int(on_device.sum()) == n_kept
    assert torch.equal(on_device, keep_mask(scores, n_kept, scope))
    groups = scores[:, :512]
    assert torch.equal(keep_mask_of_groups(groups.to(DEVICE), 3, 8).cpu(), keep_mask_of_groups(groups, 3, 8))


def test_scores_on_the_device_are_exact() -> None:
    weight, scale = torch.randn(300, 700), torch.rand(700)
    values = np.sort((weight.abs() * scale).numpy().ravel())
    pool = ScorePool((ScoredWeight(weight.to(DEVICE), scale.to(DEVICE)),))
    assert pool.kth_smallest(12345) == values[12344]
    assert pool.count_above(0.5) == int((values > 0.5).sum())
    assert pool.mean == pytest.approx(values.astype(np.float64).mean(), rel=1e-9)
    assert pool.histogram() == ScorePool((ScoredWeight(weight, scale),)).histogram()


def test_tails_and_least_errors_are_those_of_the_host() -> None:
    weight, inputs = torch.randn(96, 300), torch.randn(500, 300)
    gram = inputs.t() @ inputs
    assert tail_exponent(weight.to(DEVICE)) == pytest.approx(tail_exponent(weight), rel=1e-6)
    assert least_error(weight.to(DEVICE), gram.to(DEVICE)) == pytest.approx(
        least_error(weight, gram), rel=1e-3
    )


HIDDEN, N_BLOCKS = 512, 12


@pytest.fixture
def deep_llama() -> LlamaForCausalLM:
    """Twelve blocks of 17 MB: their sum stands out against activations and workspaces."""
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=N_BLOCKS,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=128,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def peak_of(run: Callable[[], object]) -> int:
    """Bytes that `run` holds on the device at most, above what is there before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def test_the_device_holds_one_block_at_a_time(deep_llama: LlamaForCausalLM, make_windows: Make) -> None:
    # Loads the libraries whose workspaces stay.
    torch.linalg.cholesky(torch.eye(8, device=DEVICE) @ torch.eye(8, device=DEVICE))
    windows = make_windows(4, 64)
    block = sum(p.numel() * p.element_size() for p in deep_llama.model.layers[0].parameters())
    largest = 4 * (4 * HIDDEN) * HIDDEN  # bytes of the scores of the largest linear
    gram = 4 * (4 * HIDDEN) ** 2  # bytes of the largest Gram matrix
    plan = uniform_plan(deep_llama, 0.5)
    options = WalkOptions(device=DEVICE, keep_on=HOST)
    slack = 8 << 20  # activations of one window, statistics of length HIDDEN, masks

    def compress(backend: Backend) -> Callable[[], object]:
        return lambda: compress_with_(deep_llama, plan, backend, windows, options)

    # A block; and for masks: scores, a selection's copies and ranks (int64); for SparseGPT: the Gram matrix,
    # four more on the way to a factor, and the group's weights in float32 with their product.
    assert peak_of(lambda: measure(deep_llama, windows, device=DEVICE)) < block + 6 * largest + slack
    assert peak_of(compress(Wanda())) < block + 10 * largest + slack
    assert peak_of(compress(Wanda(Scope.MODEL))) < block + 10 * largest + slack
    assert peak_of(compress(SparseGPT())) < block + 6 * gram + 10 * largest + slack
    assert block + 10 * largest + slack < N_BLOCKS * block / 2  # so the bounds say something
