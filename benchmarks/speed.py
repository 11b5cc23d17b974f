"""What do the steps cost? Paired timings in one process; quote ratios and medians, never single seconds.

    python benchmarks/speed.py --calib validation.txt [--samples 12] [--repeats 5] > rows.jsonl

Seconds are of the CPU, in all threads, where there is no GPU: other work on the machine then counts little.

- measure: against the plain forward pass of the same model on the same tokens.
- run_owl: measuring on the default number of sequences, allocating and pruning, against pruning alone.
- dense_statistics: owl, measured on all sequences, on the dense model's statistics, against sequential ones.
- sparsegpt: against wanda.
- gptq: three bits in groups of 64, against sparsegpt.
- gathering: a pass that gathers second moments, which ends at the last linear's input, and one that advances,
  as a backend on sequential statistics takes them, against one pass that does both.
- gram: Gram matrices of a block's inputs as they are summed, against whole products.
- bfloat16: the walk over a bfloat16 model as it is done here, against blocks in their own type.
- short_windows: the walk over 64 tokens a window, eight at a time, against one at a time.
- loading: the embedded GGUF, parsed once, against as often as transformers asks.
- profile: 150 trials of a sensitivity profile (30 blocks at five densities, Wanda) on 200 tokens, compressing
  included, against as many plain forward passes over these tokens.
- against_gptqmodel: gptq against the backend gptqmodel, where that package is installed.
"""

import argparse
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

import torch
from rows import print_row
from torch import Tensor, nn

from owl_compress import Recipe, Session, load, make_plan, measure
from owl_compress.backends import BACKENDS
from owl_compress.checkpoints import loading
from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.data.apart import windows_apart
from owl_compress.data.text import load_text
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.recipe_fields import DEFAULT_MEASURE_SAMPLES
from owl_compress.importance.profile import ProfileOptions, profile
from owl_compress.models.state import parameter_device
from owl_compress.models.structure import find_structure
from owl_compress.pipeline.execution import compress_
from owl_compress.walk.blocks import BlockWalk
from owl_compress.walk.input_statistics import Gram, SecondMoments, Statistic

_PUBLISHED_SAMPLES = 128
_TRIALS = 150

Pair = tuple[Callable[[], None], Callable[[], None]]
"""What is compared with, and what is measured."""


def main() -> None:
    """Run the pairs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    recipe = Recipe.from_options(
        {
            "model": "builtin",
            "allocator": "uniform",
            "backend": "wanda",
            "sparsity": 0.6,
            "statistics": "sequential",
            "calib": arguments.calib,
            "samples": arguments.samples,
            "seq_len": arguments.seq_len,
        }
    )
    session = Session.open(recipe)
    loaded, windows = session.loaded, session.calibration
    if windows is None:
        raise ValueError("Wanda needs calibration text")
    for name, (base, ours) in _pairs(loaded, recipe, windows).items():
        if arguments.only in ("", name):
            _pair(name, base, ours, arguments.repeats, samples=arguments.samples, seq_len=arguments.seq_len)


def _pairs(loaded: LoadedModel, recipe: Recipe, windows: TokenWindows) -> dict[str, Pair]:
    """All pairs by name; what differs from `recipe`, uniform Wanda, is said of each."""
    bits = {"bits": 3, "bit_choices": (2, 3, 4), "group_size": 64}
    sparsegpt = recipe.with_options({"backend": "sparsegpt"})
    gptq = recipe.with_options({"backend": "gptq", **bits})
    owl = recipe.with_options({"allocator": "owl", "measure_samples": len(windows)})
    pairs: dict[str, Pair] = {
        "measure": (lambda: _forward(loaded, windows), lambda: measure(loaded.model, windows)),
        "run_owl": _owl_pair(loaded, recipe, windows),
        "dense_statistics": (
            lambda: _compress(loaded, owl, windows),
            lambda: _compress(loaded, owl.with_options({"statistics": "dense"}), windows),
        ),
        "sparsegpt": (
            lambda: _compress(loaded, recipe, windows),
            lambda: _compress(loaded, sparsegpt, windows),
        ),
        "gptq": (lambda: _compress(loaded, sparsegpt, windows), lambda: _compress(loaded, gptq, windows)),
    }
    pairs |= _passes(loaded, windows)
    damage = _held_apart(loaded, recipe, windows)
    options = ProfileOptions(levels=(0.2, 0.3, 0.4, 0.5, 0.6), positions=100)
    pairs["profile"] = (
        lambda: _forwards(loaded, damage, _TRIALS),
        lambda: _profile(loaded, windows.first(1), damage, options),
    )
    if find_spec("gptqmodel"):
        other = recipe.with_options({"backend": "gptqmodel", **bits})
        pairs["against_gptqmodel"] = (
            lambda: _compress(loaded, other, windows),
            lambda: _compress(loaded, gptq, windows),
        )
    return pairs


def _passes(loaded: LoadedModel, windows: TokenWindows) -> dict[str, Pair]:
    """What a single pass costs, and what is saved on it."""
    model, short = loaded.model, [ids[:, :64] for ids in windows.batches(1) for _ in range(8)]
    together = [torch.cat(short[first : first + 8]) for first in range(0, len(short), 8)]
    narrow = deepcopy(model).to(torch.bfloat16)
    return {
        "gathering": (
            lambda: _walk(model, windows.batches(1), SecondMoments, advance=True),
            lambda: _walk(model, windows.batches(1), SecondMoments, advance=False),
        ),
        "gram": (
            lambda: _walk(model, windows.batches(1), _WholeGram, advance=True),
            lambda: _walk(model, windows.batches(1), Gram, advance=True),
        ),
        "bfloat16": (
            lambda: _walk(narrow, windows.batches(1), SecondMoments, advance=True),
            lambda: _walk(narrow, windows.batches(1), SecondMoments, advance=True, may_widen=True),
        ),
        "short_windows": (
            lambda: _walk(model, short, SecondMoments, advance=True),
            lambda: _walk(model, together, SecondMoments, advance=True),
        ),
        "loading": (_load_as_asked, _load),
    }


class _WholeGram(Gram):
    """The whole product of each batch."""

    def add(self, inputs: Tensor) -> None:
        inputs = inputs.float()
        self._matrix.addmm_(inputs.t(), inputs)
        self.n_tokens += inputs.shape[0]


def _walk(
    model: nn.Module,
    batches: Sequence[Tensor],
    statistic: type[Statistic],
    *,
    advance: bool,
    may_widen: bool = False,
) -> None:
    device = parameter_device(model)
    walk = BlockWalk(model, find_structure(model), batches, device=device, may_widen=may_widen)
    with closing(walk.visits()) as visits:
        for visit in visits:
            visit.gather(statistic, advance=advance)


def _load() -> None:
    load("builtin")


def _load_as_asked() -> None:
    parsed_once = loading.parsed_once
    loading.parsed_once = nullcontext
    try:
        load("builtin")
    finally:
        loading.parsed_once = parsed_once


def _held_apart(loaded: LoadedModel, recipe: Recipe, windows: TokenWindows) -> TokenWindows:
    text = load_text(recipe.calib, purpose="calibration")
    return windows_apart(loaded.tokenizer, text, [windows], samples=2, seq_len=100, seed=0, bos="first")


def _forwards(loaded: LoadedModel, windows: TokenWindows, times: int) -> None:
    with torch.no_grad():
        for _ in range(times):
            loaded.model(input_ids=windows.ids, use_cache=False)


def _profile(
    loaded: LoadedModel, windows: TokenWindows, damage: TokenWindows, options: ProfileOptions
) -> None:
    profile(loaded.model, BACKENDS.create("wanda"), windows, damage, options)


def _pair(name: str, base: Callable[[], None], ours: Callable[[], None], repeats: int, **facts: int) -> None:
    times = [(_seconds(base), _seconds(ours)) for _ in range(repeats)]
    print_row(
        "speed",
        name=name,
        median_base_seconds=median(base for base, _ in times),
        median_seconds=median(ours for _, ours in times),
        median_ratio=median(ours / base for base, ours in times),
        ratios=[round(ours / base, 3) for base, ours in times],
        **facts,
    )


def _seconds(function: Callable[[], object]) -> float:
    clock = perf_counter if torch.cuda.is_available() else process_time
    start = clock()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def _forward(loaded: LoadedModel, windows: TokenWindows) -> None:
    with torch.inference_mode():
        for batch in windows.batches(1):
            loaded.model(batch.to(loaded.model.device), use_cache=False)


def _compress(loaded: LoadedModel, recipe: Recipe, windows: TokenWindows) -> None:
    """Allocate and compress; the weights are changed further each time, which costs the same."""
    session = Session.open(recipe, loaded, windows)
    _, plan = make_plan(session)
    with TemporaryDirectory() as folder:
        compress_(session, plan, Path(folder))


def _owl_pair(loaded: LoadedModel, recipe: Recipe, windows: TokenWindows) -> Pair:
    """The share of sequences that is measured stays that of a default run: 128 calibrated."""
    share = DEFAULT_MEASURE_SAMPLES / _PUBLISHED_SAMPLES
    measured = max(1, round(share * len(windows)))
    owl = recipe.with_options({"allocator": "owl", "measure_samples": measured})
    return lambda: _compress(loaded, recipe, windows), lambda: _compress(loaded, owl, windows)


if __name__ == "__main__":
    main()
