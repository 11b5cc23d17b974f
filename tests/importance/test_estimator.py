"""The report says of a model what the equations say."""

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any
from weakref import ReferenceType, ref

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM

from owl_compress import registry
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.provenance import ModelIdentity
from owl_compress.documents.report import ImportanceReport
from owl_compress.errors import RequestError
from owl_compress.importance import metrics as metrics_module
from owl_compress.importance.estimator import measure, outline
from owl_compress.importance.metrics import DEFAULT_METRICS, METRICS, find_metric
from owl_compress.importance.reconstruction import least_error
from owl_compress.importance.spectra import tail_exponent
from owl_compress.models.state import identify
from owl_compress.models.structure import find_structure
from owl_compress.walk import scores as scores_module
from owl_compress.walk.input_statistics import Gram
from owl_compress.walk.scores import ScoredWeight, ScorePool

Make = Callable[..., TokenWindows]


def share_above(multiple: float, scores: Tensor) -> float:
    return float((scores > multiple * scores.mean()).double().mean())


def with_outliers(model: Any) -> Any:
    """Heavy tails, so that even lod@10 is not zero."""
    with torch.no_grad():
        for linear in find_structure(model).linears:
            linear.weight.pow_(5).div_(linear.weight.std())
    return model


def test_every_metric_follows_its_equation(
    family_model: Any, make_windows: Make, wanda_scores: Callable[..., dict[str, Tensor]]
) -> None:
    model, windows = with_outliers(family_model), make_windows(3)
    scores = wanda_scores(model, windows, find_structure(model).linears)
    report = measure(model, windows)
    for block in report.blocks:
        for linear in block.linears:
            check_metrics(linear.metrics, scores[linear.name])
        # one mean for the whole block
        check_metrics(block.metrics, torch.cat([scores[linear.name].flatten() for linear in block.linears]))
        for part in (block, *block.linears):
            weights = torch.cat(
                [
                    model.get_parameter(f"{name}.weight").detach().double().flatten()
                    for name in scores
                    if name == part.name or name.startswith(f"{part.name}.")
                ]
            )
            assert part.n_weights == weights.numel()
            assert part.metrics["weight_l1"] == pytest.approx(float(weights.abs().sum()), rel=1e-6)
            assert part.metrics["weight_l2"] == pytest.approx(float(weights.square().sum().sqrt()), rel=1e-6)


def check_metrics(metrics: dict[str, float], scores: Tensor) -> None:
    one_score = 1 / scores.numel()  # at the threshold a score may fall on either side by rounding
    for multiple in (3, 5, 7, 10):
        assert metrics[f"lod@{multiple}"] == pytest.approx(
            share_above(multiple, scores), abs=1.001 * one_score
        )
    assert metrics["lod@3"] > 0
    assert metrics["score_mean"] == pytest.approx(float(scores.mean()), rel=1e-5)
    assert metrics["score_median"] == pytest.approx(float(scores.flatten().median()), rel=1e-5)


def test_any_multiple_of_the_mean_can_be_asked_for(
    tiny_llama: LlamaForCausalLM, make_windows: Make, wanda_scores: Callable[..., dict[str, Tensor]]
) -> None:
    windows = make_windows(2)
    scores = wanda_scores(tiny_llama, windows, find_structure(tiny_llama).linears)
    report = measure(tiny_llama, windows, metrics=["lod@1.5"])
    for block in report.blocks:
        for linear in block.linears:
            assert linear.metrics.keys() == {"lod@1.5"}
            assert linear.metrics["lod@1.5"] == pytest.approx(
                share_above(1.5, scores[linear.name]), abs=1.001 / linear.n_weights
            )


def test_the_block_has_one_mean_and_each_linear_its_own(
    tiny_llama: LlamaForCausalLM, make_windows: Make
) -> None:
    # One linear with scores far above the others: it holds the outliers of the block, and none of its own.
    down = tiny_llama.model.layers[0].mlp.down_proj.weight
    with torch.no_grad():
        down.copy_(100.0 * torch.ones_like(down))
    block = measure(tiny_llama, make_windows(2), metrics=["lod@3"]).blocks[0]
    by_name = {linear.name.rpartition(".")[2]: linear.metrics["lod@3"] for linear in block.linears}
    assert by_name["down_proj"] < 0.1
    assert block.metrics["lod@3"] > 0.1


def test_histograms_count_every_weight(family_model: Any, make_windows: Make) -> None:
    report = measure(family_model, make_windows(2))
    for block in report.blocks:
        for linear in block.linears:
            assert linear.score_histogram is not None
            assert linear.score_histogram.total == linear.n_weights


def test_the_report_survives_its_file(family_model: Any, make_windows: Make, tmp_path: Path) -> None:
    report = measure(family_model, make_windows(2))
    report.write(tmp_path / "report.json")
    assert ImportanceReport.read(tmp_path / "report.json") == report


def test_the_same_request_gives_the_same_bytes(make_model: Callable[[str], Any], make_windows: Make) -> None:
    first, second = (measure(make_model("qwen3"), make_windows(3)).to_json() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("batch_size", [2, 5])
def test_the_batch_size_changes_nothing_but_rounding(
    tiny_llama: LlamaForCausalLM, make_windows: Make, batch_size: int
) -> None:
    windows = make_windows(5)
    one, many = (measure(tiny_llama, windows, batch_size=size) for size in (1, batch_size))
    for a, b in zip(one.blocks, many.blocks, strict=True):
        assert a.metrics == pytest.approx(b.metrics, rel=1e-5, abs=2 / a.n_weights)


def test_every_block_runs_once_per_batch_after_a_first_look(
    family_model: Any, make_windows: Make, forwards_counted: Callable[..., Any]
) -> None:
    with forwards_counted(family_model) as counts:
        measure(family_model, make_windows(5), batch_size=2)
    # First a window within the model and one walked; before each walk one token tells what a block returns.
    assert counts == [[24, 1, 24, 1, 24, 24, 24], [24] * 5, [24] * 5]


def test_the_model_is_left_as_it_was(family_model: Any, make_windows: Make) -> None:
    before = {name: tensor.clone() for name, tensor in family_model.state_dict().items()}
    measure(family_model, make_windows(2))
    after = family_model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_the_report_says_which_model_and_text(tiny_llama: LlamaForCausalLM, make_windows: Make) -> None:
    windows = make_windows(2)
    report = measure(tiny_llama.to(torch.bfloat16), windows)
    assert report.model == ModelIdentity(
        id="LlamaForCausalLM", revision=None, family="llama", dtype="bfloat16"
    )
    assert report.provenance.calibration == windows.record
    assert report.provenance.versions["torch"] == torch.__version__
    assert report.notes == ()
    told = ModelIdentity(id="org/name", revision="abc", family="llama", dtype="float32")
    assert measure(tiny_llama, windows, identity=told).model == told
    assert identify(tiny_llama, find_structure(tiny_llama), "here").id == "here"


def test_an_unknown_architecture_is_measured_with_a_note(
    make_model: Callable[[str], Any], make_windows: Make
) -> None:
    report = measure(make_model("unknown"), make_windows(2))
    assert "found by structure" in report.notes[0]
    assert report.model.family == "plain"


def test_an_outline_has_the_names_and_sizes_of_a_measurement(family_model: Any, make_windows: Make) -> None:
    measured, outlined = measure(family_model, make_windows(1)), outline(family_model)
    assert outlined.provenance.calibration is None
    for a, b in zip(measured.blocks, outlined.blocks, strict=True):
        assert (a.name, a.n_weights) == (b.name, b.n_weights)
        for x, y in zip(a.linears, b.linears, strict=True):
            assert (x.name, x.role, x.shape, x.n_weights) == (y.name, y.role, y.shape, y.n_weights)
            assert y.metrics == {}


def test_a_block_whose_weights_are_all_shared_is_passed_through(
    tiny_llama: LlamaForCausalLM, make_windows: Make
) -> None:
    tiny_llama.model.layers[1] = tiny_llama.model.layers[0]
    report = measure(tiny_llama, make_windows(1))
    assert [block.name for block in report.blocks] == ["model.layers.0", "model.layers.2"]


class LargestNewTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that an operation newly makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        old = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, Tensor)}
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in old:
            self.numel = max(self.numel, result.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_streamed(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(scores_module, "_CHUNK", 4096)
    pool = ScorePool((ScoredWeight(torch.randn(1024, 512).to(dtype), torch.rand(512)),))
    with LargestNewTensor() as largest:
        for name in DEFAULT_METRICS:
            find_metric(name)(pool)
        pool.histogram()
    assert largest.numel >= 4096  # the chunks were seen
    assert largest.numel <= 1 << 16  # a table of counts by 16 bits; the weight has 2^19 entries


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package that registers two metrics."""
    package = ModuleType("someones_metrics")
    package.share_negative = lambda pool: float(  # type: ignore[attr-defined]
        sum(int((member.weight < 0).sum()) for member in pool.members) / pool.size
    )
    package.traces = traces  # type: ignore[attr-defined]
    package.count_above = lambda pool, limit: float(pool.count_above(limit))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "someones_metrics", package)
    points = [
        EntryPoint("share_negative", "someones_metrics:share_negative", METRICS.group),
        EntryPoint("above", "someones_metrics:count_above", METRICS.group),
        EntryPoint("lod", "someones_metrics:share_negative", METRICS.group),
        EntryPoint("traces", "someones_metrics:traces", METRICS.group),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == METRICS.group else [])
    monkeypatch.setattr(
        metrics_module, "METRICS", registry.Registry(METRICS.kind, METRICS.group, METRICS.builtin)
    )
    return


def traces(pool: ScorePool, power: float) -> float:
    """Someone's metric with a parameter that looks at Gram matrices."""
    return float(sum(member.gram.trace() ** power for member in pool.members if member.gram is not None))


vars(traces)["reads_gram"] = True


@pytest.mark.usefixtures("plugins")
def test_a_metric_from_another_package_is_given_the_gram_matrices_it_reads(
    tiny_llama: LlamaForCausalLM, make_windows: Make
) -> None:
    metrics = [measure(tiny_llama, make_windows(2), metrics=[name]) for name in ("traces@1", "traces@2")]
    first, second = (report.blocks[0].linears[0].metrics for report in metrics)
    assert first["traces@1"] > 0
    assert second["traces@2"] == pytest.approx(first["traces@1"] ** 2)


@pytest.mark.usefixtures("plugins")
def test_a_metric_from_another_package(
    tiny_llama: LlamaForCausalLM, make_windows: Make, wanda_scores: Callable[..., dict[str, Tensor]]
) -> None:
    windows = make_windows(2)
    scores = wanda_scores(tiny_llama, windows, find_structure(tiny_llama).linears)
    report = measure(tiny_llama, windows, metrics=["share_negative", "above@0.5", "lod@3"])
    linear = report.blocks[0].linears[0]
    weight = tiny_llama.get_parameter(f"{linear.name}.weight")
    assert linear.metrics["share_negative"] == int((weight < 0).sum()) / weight.numel()
    assert linear.metrics["above@0.5"] == int((scores[linear.name] > 0.5).sum())
    # a built-in name cannot be taken over
    assert linear.metrics["lod@3"] == pytest.approx(
        share_above(3, scores[linear.name]), abs=1.001 / linear.n_weights
    )


def test_a_metric_of_gram_matrices_changes_nothing_else(
    family_model: Any, make_windows: Make, inputs_of: Callable[..., dict[str, Tensor]]
) -> None:
    windows = make_windows(3)
    plain, report = (
        measure(family_model, windows, metrics=[*DEFAULT_METRICS, *further])
        for further in ((), ("alpha", "reconstruction_error"))
    )
    names = [linear.name for linear in report.blocks[0].linears]
    inputs = inputs_of(family_model, windows, names)
    sites = {site.name: site for site in find_structure(family_model).linears}
    for linear in report.blocks[0].linears:
        seen = inputs[linear.name].double()  # [tokens, in]
        weight = sites[linear.name].weight.detach()
        error = least_error(weight.double(), (seen.t() @ seen).float())
        assert linear.metrics["reconstruction_error"] == pytest.approx(error, rel=1e-3)
        assert linear.metrics["alpha"] == tail_exponent(weight)
    for before, after in zip(plain.blocks, report.blocks, strict=True):
        assert after.metrics == before.metrics | {
            name: fmean(linear.metrics[name] for linear in after.linears)
            for name in ("alpha", "reconstruction_error")
        }
        for one, other in zip(before.linears, after.linears, strict=True):
            assert one.metrics.items() <= other.metrics.items()
            assert one.score_histogram == other.score_histogram


@pytest.fixture
def inputs_of() -> Callable[..., dict[str, Tensor]]:
    """All inputs of some linears, taken from the model as a whole, shape [tokens, in]."""

    def gathered(model: Any, windows: TokenWindows, names: list[str]) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        hooks = [
            model.get_submodule(name).register_forward_pre_hook(
                lambda _module, arguments, name=name: found[name].append(arguments[0].flatten(0, -2))
            )
            for name in names
        ]
        with torch.no_grad():
            for batch in windows.batches(1):
                model(batch, use_cache=False)
        for hook in hooks:
            hook.remove()
        return {name: torch.cat(parts) for name, parts in found.items()}

    return gathered


def test_gram_matrices_are_held_for_one_block_at_a_time(
    tiny_llama: LlamaForCausalLM, make_windows: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    grams: list[ReferenceType[Gram]] = []
    most = 0

    def empty(n_inputs: int, device: torch.device) -> Gram:
        nonlocal most
        gram = Gram(torch.zeros(n_inputs, n_inputs, device=device))
        grams.append(ref(gram))
        most = max(most, sum(one() is not None for one in grams))
        return gram

    monkeypatch.setattr(Gram, "empty", empty)
    measure(tiny_llama, make_windows(2), metrics=["reconstruction_error"])
    assert len(grams) == 4 * len(tiny_llama.model.layers)  # inputs of q/k/v, o, gate/up and down
    assert most == 4


def test_a_metric_without_a_finite_value_is_told_of(tiny_llama: LlamaForCausalLM, make_windows: Make) -> None:
    torch.nn.init.eye_(tiny_llama.model.layers[1].self_attn.q_proj.weight)
    with pytest.raises(RequestError, match=r"metric alpha of model\.layers\.1\.self_attn\.q_proj is inf"):
        measure(tiny_llama, make_windows(1), metrics=["alpha"])


def test_an_unknown_metric_is_refused_before_anything_runs(
    tiny_llama: LlamaForCausalLM, make_windows: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "forward", lambda *_: pytest.fail("the model ran"))
    with pytest.raises(RequestError, match="unknown metric 'lodd@5': did you mean 'lod@5'"):
        measure(tiny_llama, make_windows(1), metrics=["lodd@5"])


def test_activations_with_nan_name_the_linear(tiny_llama: LlamaForCausalLM, make_windows: Make) -> None:
    tiny_llama.model.layers[2].input_layernorm.weight.data[0] = float("nan")
    with pytest.raises(RequestError, match=r"inputs of model\.layers\.2\.self_attn\.q_proj hold NaN or Inf"):
        measure(tiny_llama, make_windows(1))


def test_weights_with_nan_name_the_linear(tiny_llama: LlamaForCausalLM, make_windows: Make) -> None:
    # Nothing follows the last down projection within the blocks: no activation tells of it.
    tiny_llama.model.layers[2].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(RequestError, match=r"model\.layers\.2\.mlp\.down_proj holds NaN or Inf"):
        measure(tiny_llama, make_windows(1), metrics=["lod@5"])
