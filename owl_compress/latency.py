"""How fast a model runs: prefill and decode, measured, for one model or several in turn."""

from collections.abc import Mapping
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured

from owl_compress.device import peak_device_bytes, peak_host_bytes
from owl_compress.errors import RequestError
from owl_compress.evaluation import placed
from owl_compress.families import find_structure
from owl_compress.files import Frozen
from owl_compress.progress import SILENT, Progress
from owl_compress.verification import verify

Kernel = Literal["dense", "semi-structured"]
KERNELS: tuple[Kernel, ...] = ("dense", "semi-structured")

_WARM_UPS, _RUNS = 2, 7


class LatencyShape(Frozen):
    """What is timed: a batch of prompts of one length, then tokens one at a time."""

    batch_size: PositiveInt = 1
    prompt_len: PositiveInt = 128
    new_tokens: PositiveInt = 32


class LatencyRecord(Frozen):
    """Medians over `runs`, warm-up left out; tokens per second count the whole batch.

    Prefill is one forward pass over the prompts. Decode is each further token, greedily chosen, with the
    key-value cache. `peak_device_bytes` holds weights, cache and activations (0 on a CPU);
    `peak_host_bytes` is of the whole process since its start.
    """

    kernel: Kernel
    device: str
    dtype: str
    shape: LatencyShape
    runs: int
    prefill_seconds: float
    decode_seconds_per_token: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    peak_device_bytes: int
    peak_host_bytes: int
    converted_linears: int = 0


def check_kernel(name: str, device: torch.device) -> Kernel:
    """The kernel called `name`; one that does not exist, or not on `device`, is refused.

    Raises:
        RequestError: see above.
    """
    kernel = next((kernel for kernel in KERNELS if kernel == name), None)
    if kernel is None:
        raise RequestError(f"unknown kernel {name!r}: it is one of {', '.join(KERNELS)}")
    if kernel == "semi-structured" and device.type != "cuda":
        raise RequestError(
            f"kernel 'semi-structured' needs a CUDA device and this is the {device.type}: use --kernel dense"
        )
    return kernel


def check_two_of_four(folder: Path) -> None:
    """Refuse a checkpoint that keeps more than 2 of 4 weights anywhere, counted from its tensors.

    Raises:
        RequestError: no folder, or the first linear that breaks the pattern.
    """
    found = verify(folder, "2:4")
    if not found.ok:
        first = found.violations[0]
        raise RequestError(
            f"kernel 'semi-structured' needs 2 of every 4 weights at most, and {first.linear} in {folder} "
            f"keeps more in {first.violating} of {first.groups} groups ({len(found.violations)} such "
            "linears): make it with --nm 2:4 --allocator uniform"
        )


def compare_kernels(
    model: Any, kernel: Kernel, shape: LatencyShape, device: torch.device, progress: Progress = SILENT
) -> list[LatencyRecord]:
    """Time `model` on `device`; with the semi-structured kernel, a dense and a converted copy in turn.

    Raises:
        RequestError: see `check_kernel`, `to_semi_structured_` and `latency`.
    """
    check_kernel(kernel, device)
    with ExitStack() as stack:
        stack.enter_context(placed(model, device))
        models: dict[Kernel, Any] = {"dense": model}
        if kernel == "semi-structured":
            models[kernel] = deepcopy(model)
            to_semi_structured_(models[kernel])
        return latency(models, shape, progress)


def latency(
    models: Mapping[Kernel, Any], shape: LatencyShape, progress: Progress = SILENT, runs: int = _RUNS
) -> list[LatencyRecord]:
    """Time the models in turn, run by run, so that whatever else the machine does meets all of them alike.

    Args:
        models: by kernel; all on the device where they are to be timed.
        shape: see `LatencyShape`.
        progress: who is told.
        runs: timed runs of each model, after two that are not.

    Raises:
        RequestError: more positions than the model has.
    """
    for model in models.values():
        _check_positions(model, shape)
    times: dict[Kernel, list[tuple[float, float]]] = {kernel: [] for kernel in models}
    peaks = dict.fromkeys(models, 0)
    rounds = range(_WARM_UPS + runs)
    for index in progress.track(rounds, total=len(rounds), what="timing"):
        for kernel, model in models.items():
            measured, peak = _timed(model, shape)
            peaks[kernel] = max(peaks[kernel], peak)
            if index >= _WARM_UPS:
                times[kernel].append(measured)
    return [_record(kernel, models[kernel], shape, times[kernel], peaks[kernel]) for kernel in models]


def _check_positions(model: Any, shape: LatencyShape) -> None:
    maximum = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    wanted = shape.prompt_len + shape.new_tokens
    if maximum is not None and wanted > maximum:
        raise RequestError(
            f"--prompt-len {shape.prompt_len} and --new-tokens {shape.new_tokens} make {wanted} positions, "
            f"the model has {maximum}: lower one of them"
        )


@torch.inference_mode()
def _timed(model: Any, shape: LatencyShape) -> tuple[tuple[float, float], int]:
    """Seconds of prefill and of a decoded token, and the peak of device memory meanwhile."""
    device = model.get_input_embeddings().weight.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    # Some tokens or other: time does not depend on which.
    size = (shape.batch_size, shape.prompt_len)
    ids = torch.randint(model.get_input_embeddings().weight.shape[0], size, generator=_seeded()).to(device)
    start = _now(device)
    answer = model(input_ids=ids, use_cache=True)
    after_prefill = _now(device)
    for _ in range(shape.new_tokens):
        token: Tensor = answer.logits[:, -1:].argmax(dim=-1)  # [batch, 1]
        answer = model(input_ids=token, past_key_values=answer.past_key_values, use_cache=True)
    end = _now(device)
    return (after_prefill - start, (end - after_prefill) / shape.new_tokens), peak_device_bytes(device)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _now(device: torch.device) -> float:
    """Seconds, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def _record(
    kernel: Kernel, model: Any, shape: LatencyShape, times: list[tuple[float, float]], peak: int
) -> LatencyRecord:
    prefill, decode = (median(column) for column in zip(*times, strict=True))
    return LatencyRecord(
        kernel=kernel,
        device=_device_name(model.get_input_embeddings().weight.device),
        dtype=str(model.dtype).removeprefix("torch."),
        shape=shape,
        runs=len(times),
        prefill_seconds=prefill,
        decode_seconds_per_token=decode,
        prefill_tokens_per_second=shape.batch_size * shape.prompt_len / prefill,
        decode_tokens_per_second=shape.batch_size / decode,
        peak_device_bytes=peak,
        peak_host_bytes=peak_host_bytes(),
        converted_linears=sum(is_semi_structured(module) for module in model.modules()),
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def is_semi_structured(module: nn.Module) -> bool:
    """Whether the module's weight is stored 2:4."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and type(weight.data).__name__.startswith("SparseSemiStructured")


def to_semi_structured_(model: nn.Module) -> int:
    """Store the linears of all blocks 2:4, in place, as torch's semi-structured tensors (CUDA only).

    The values stay what they are; the model cannot be saved or compressed any more. Returns their number.

    Raises:
        RequestError: torch refuses a linear's shape or data type, naming it; or one is no torch.nn.Linear.
    """
    converted = 0
    for site in find_structure(model).linears:
        if not isinstance(site.module, nn.Linear):
            raise RequestError(
                f"{site.name} is a {type(site.module).__name__}, and only torch.nn.Linear has this kernel: "
                "use --kernel dense"
            )
        try:
            sparse = to_sparse_semi_structured(site.module.weight.detach())
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise RequestError(
                f"{site.name} cannot be stored semi-structured ({reason}): use --dtype bfloat16 or --kernel "
                "dense"
            ) from error
        site.module.weight = nn.Parameter(sparse, requires_grad=False)
        converted += 1
    return converted
