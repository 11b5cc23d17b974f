"""How fast a model runs: prefill and decode, measured, for one model or several in turn."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from statistics import median
from typing import Any, get_args

import torch
from torch import Tensor, nn

from owl_compress.device import peak_device_bytes
from owl_compress.documents.measurements import Kernel, LatencyRecord, LatencyShape, PartLatency, Speedup
from owl_compress.errors import RequestError
from owl_compress.evaluation.compiled import CompiledDecoder
from owl_compress.evaluation.perplexity import placed
from owl_compress.evaluation.stopwatch import now, stopwatch
from owl_compress.forms.semi_structured import is_semi_structured, to_semi_structured_, weight_bytes
from owl_compress.memory import peak_host_bytes
from owl_compress.models.residence import refuse_streamed
from owl_compress.models.state import cache_name, n_parameters
from owl_compress.models.structure import find_structure
from owl_compress.progress import SILENT, Progress

_WARM_UPS, _RUNS = 2, 7


@dataclass(frozen=True)
class Contender:
    """A model to be timed, on the device where that is to be; `name` is what its record says."""

    name: str
    model: Any
    kernel: Kernel = "dense"
    compiled: bool = False


def check_kernel(name: str, device: torch.device) -> Kernel:
    """The kernel called `name`; one that does not exist, or not on `device`, is refused.

    Raises:
        RequestError: see above.
    """
    kernel: Kernel | None = next((kernel for kernel in get_args(Kernel) if kernel == name), None)
    if kernel is None:
        raise RequestError(f"unknown kernel {name!r}: it is one of {', '.join(get_args(Kernel))}")
    if kernel == "semi-structured" and device.type != "cuda":
        raise RequestError(
            f"kernel 'semi-structured' needs a CUDA device and this is the {device.type}: use --kernel dense"
        )
    return kernel


def compare(
    models: Mapping[str, Any],
    shape: LatencyShape,
    device: torch.device,
    progress: Progress = SILENT,
    runs: int = _RUNS,
    *,
    compiled: bool = False,
) -> list[LatencyRecord]:
    """Time `models`, by their names, on `device`, in turn; all are there at once, and go home afterwards.

    The first is what the others are compared with: give the dense model first. With `compiled` all of them
    decode through `CompiledDecoder`.

    Raises:
        RequestError: see `latency`.
    """
    with ExitStack() as stack:
        for model in models.values():
            stack.enter_context(placed(model, device))
        contenders = [Contender(name, model, compiled=compiled) for name, model in models.items()]
        return latency(contenders, shape, progress, runs)


def compare_kernels(
    name: str,
    model: Any,
    kernel: Kernel,
    shape: LatencyShape,
    device: torch.device,
    progress: Progress = SILENT,
) -> list[LatencyRecord]:
    """Time `model` on `device`; with the semi-structured kernel, a dense and a converted copy in turn.

    Raises:
        RequestError: see `check_kernel`, `to_semi_structured_` and `latency`.
    """
    check_kernel(kernel, device)
    with placed(model, device):
        contenders = [Contender(name, model)]
        if kernel == "semi-structured":
            converted = deepcopy(model)
            to_semi_structured_(converted)
            contenders.append(Contender(name, converted, kernel))
        return latency(contenders, shape, progress)


def latency(
    contenders: Sequence[Contender], shape: LatencyShape, progress: Progress = SILENT, runs: int = _RUNS
) -> list[LatencyRecord]:
    """Time the models in turn, run by run, so that whatever else the machine does meets all of them alike.

    Args:
        contenders: the models; all on the device where they are to be timed.
        shape: see `LatencyShape`.
        progress: who is told.
        runs: timed runs of each model, after two that are not.

    Raises:
        RequestError: more positions than a model has, blocks that are not found, or see `CompiledDecoder`.
    """
    courses = [_Course(contender, shape) for contender in contenders]
    laps: list[list[_Lap]] = [[] for _ in courses]
    rounds = range(_WARM_UPS + runs)
    for _ in progress.track(rounds, total=len(rounds), what="timing"):
        for course, done in zip(courses, laps, strict=True):
            done.append(course.run())
    records = [_record(contender, shape, done) for contender, done in zip(contenders, laps, strict=True)]
    first, *others = records
    return [first, *(record.model_copy(update={"speedup": _speedup(first, record)}) for record in others)]


@dataclass(frozen=True)
class _Lap:
    """One prefill and the tokens after it."""

    model: PartLatency
    blocks: PartLatency
    head: PartLatency | None
    peak_device_bytes: int


class _Course:
    """What one model runs through, again and again."""

    def __init__(self, contender: Contender, shape: LatencyShape) -> None:
        model = contender.model
        n_positions = check_positions(model, shape)
        blocks = [site.module for site in find_structure(model).blocks]
        self._model, self._shape = model, shape
        self._device: torch.device = model.get_input_embeddings().weight.device
        self._first, self._last = blocks[0], blocks[-1]
        self._head, self._cache_name = _head(model), cache_name(model)
        self._ids = token_ids(model, shape)
        self._weight_bytes = weight_bytes(model)
        self._compiled = CompiledDecoder(model, n_positions, self._device) if contender.compiled else None

    def run(self) -> _Lap:
        others = self._start_memory()
        with torch.inference_mode(), stopwatch(self._head, self._head, self._device) as head:
            prefill, blocks_prefill, answer = self._prefill()
            head_prefill = head.take()
            decode, blocks_decode = self._decode(answer)
            head_decode = head.take()
        return _Lap(
            _part(prefill, decode, self._shape),
            _part(blocks_prefill, blocks_decode, self._shape),
            _part(head_prefill, head_decode, self._shape) if head_prefill > 0 else None,
            max(0, peak_device_bytes(self._device) - others),
        )

    def _start_memory(self) -> int:
        """Bytes on the device that are not this model's weights; the peak starts over."""
        if self._device.type != "cuda":
            return 0
        torch.cuda.reset_peak_memory_stats(self._device)
        return max(0, torch.cuda.memory_allocated(self._device) - self._weight_bytes)

    def _prefill(self) -> tuple[float, float, Any]:
        """Seconds of the model and of its blocks, and the answer, which holds the cache."""
        cache = {self._cache_name: self._compiled.empty_cache()} if self._compiled else {}
        with stopwatch(self._first, self._last, self._device) as blocks:
            start = now(self._device)
            answer = self._model(input_ids=self._ids, use_cache=True, **cache)
            return now(self._device) - start, blocks.take(), answer

    def _decode(self, answer: Any) -> tuple[float, float]:
        """Seconds of the model and of its blocks, or of what is compiled into one with them."""
        first, last = self._first, self._last
        with ExitStack() as stack:
            if self._compiled:
                first = last = self._compiled.module
                stack.enter_context(self._compiled.at_work())
            blocks = stack.enter_context(stopwatch(first, last, self._device))
            start = now(self._device)
            for _ in range(self._shape.new_tokens):
                token: Tensor = answer.logits[:, -1:].argmax(dim=-1)  # [batch, 1]
                cache = {self._cache_name: getattr(answer, self._cache_name)}
                answer = self._model(input_ids=token, use_cache=True, **cache)
            return now(self._device) - start, blocks.take()


def token_ids(model: Any, shape: LatencyShape) -> Tensor:
    """Prompts [batch, prompt_len] of any tokens, where the model is: time does not depend on which."""
    embeddings = model.get_input_embeddings().weight
    size, generator = (shape.batch_size, shape.prompt_len), torch.Generator().manual_seed(0)
    return torch.randint(embeddings.shape[0], size, generator=generator).to(embeddings.device)


def check_positions(model: Any, shape: LatencyShape) -> int:
    """Positions that are needed.

    Raises:
        RequestError: more than the model has, or one that is not in memory.
    """
    refuse_streamed(model, "timing a model")
    maximum = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    wanted = shape.prompt_len + shape.new_tokens
    if maximum is not None and wanted > maximum:
        raise RequestError(
            f"--prompt-len {shape.prompt_len} and --new-tokens {shape.new_tokens} make {wanted} positions, "
            f"the model has {maximum}: lower one of them"
        )
    return wanted


def _head(model: Any) -> nn.Module | None:
    find = getattr(model, "get_output_embeddings", None)
    head: nn.Module | None = find() if find else None
    return head


def _part(prefill: float, decode: float, shape: LatencyShape) -> PartLatency:
    return PartLatency(prefill_seconds=prefill, decode_seconds_per_token=decode / shape.new_tokens)


def _record(contender: Contender, shape: LatencyShape, laps: Sequence[_Lap]) -> LatencyRecord:
    model = contender.model
    device = model.get_input_embeddings().weight.device
    timed = laps[_WARM_UPS:]
    whole = _median([lap.model for lap in timed])
    heads = [lap.head for lap in timed if lap.head is not None]
    return LatencyRecord(
        name=contender.name,
        kernel=contender.kernel,
        compiled=contender.compiled,
        device=device_name(device),
        threads=torch.get_num_threads() if device.type == "cpu" else None,
        dtype=str(model.dtype).removeprefix("torch."),
        shape=shape,
        runs=len(timed),
        n_params=n_parameters(model),
        prefill_seconds=whole.prefill_seconds,
        decode_seconds_per_token=whole.decode_seconds_per_token,
        prefill_tokens_per_second=shape.batch_size * shape.prompt_len / whole.prefill_seconds,
        decode_tokens_per_second=shape.batch_size / whole.decode_seconds_per_token,
        blocks=_median([lap.blocks for lap in timed]),
        head=_median(heads) if heads else None,
        weight_bytes=weight_bytes(model),
        peak_device_bytes=max(lap.peak_device_bytes for lap in timed),
        peak_host_bytes=peak_host_bytes(),
        converted_linears=sum(is_semi_structured(module) for module in model.modules()),
    )


def _median(parts: Sequence[PartLatency]) -> PartLatency:
    return PartLatency(
        prefill_seconds=median(part.prefill_seconds for part in parts),
        decode_seconds_per_token=median(part.decode_seconds_per_token for part in parts),
    )


def _speedup(first: LatencyRecord, other: LatencyRecord) -> Speedup:
    heads = (first.head, other.head) if first.head and other.head else None
    return Speedup(
        prefill=first.prefill_seconds / other.prefill_seconds,
        decode=first.decode_seconds_per_token / other.decode_seconds_per_token,
        blocks_prefill=first.blocks.prefill_seconds / other.blocks.prefill_seconds,
        blocks_decode=first.blocks.decode_seconds_per_token / other.blocks.decode_seconds_per_token,
        head_prefill=heads[0].prefill_seconds / heads[1].prefill_seconds if heads else None,
        head_decode=heads[0].decode_seconds_per_token / heads[1].decode_seconds_per_token if heads else None,
    )


def device_name(device: torch.device) -> str:
    """What records call the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
