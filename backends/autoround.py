"""AutoRound: the package tunes how linears are rounded; the codes that it settles on are stored packed."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import torch
from torch import nn

from owl_compress.checkpoints.loading import LoadedModel, load_model
from owl_compress.checkpoints.packed import Packed, check_packable
from owl_compress.checkpoints.saving import save_checkpoint
from owl_compress.compression.other_packages import (
    only_new_garbage_collected,
    random_states_kept,
    silenced,
)
from owl_compress.compression.tasks import LinearOutcome
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.plan import Plan
from owl_compress.documents.stored_format import StoredFormat
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError
from owl_compress.exports.auto_round import arguments_of
from owl_compress.forms.codes import CodeFormat, QuantizedWeight, keep_codes_
from owl_compress.forms.narrowing import has_narrowed_blocks
from owl_compress.memory import memory_errors
from owl_compress.models.structure import in_rows
from owl_compress.options import option
from owl_compress.walk.input_statistics import Gram, Statistic

INSTALL = "pip install 'owl-compress[autoround]'"
_PACKAGES = {"auto_round": "auto-round", "compressed_tensors": "compressed-tensors"}
_SIDES = 32
"""The package leaves linears alone whose numbers of inputs and outputs are no multiples of it."""

_LESS_MEMORY = "use fewer --step-windows, a smaller --seq-len, or backend 'gptq'"

_TOLERANCE = 0.3
"""How far a tuned weight may lie from the code that it is read as: 8 bits in bfloat16 are off by 1/4."""


@dataclass(frozen=True)
class AutoRound:
    """Rounding tuned by signed gradients (SignRound, arXiv 2309.05516), as the package AutoRound does it.

    Block by block, a shift of the rounding of every weight within half a code, and two factors of the range
    of every group, are tuned so that the block makes of its inputs, which come from the tuned blocks before
    it, what the dense one makes of the dense model's. The step falls from `lr` to nothing, and the best of
    all steps counts. Codes are symmetric; scales have the data type of the checkpoint already while they are
    tuned, and may be negative: the lowest code, which has no counterpart, is the group's largest weight's.
    On a CPU everything is computed in float32. The last token of a window, and tokens that the tokenizer
    pads with, are no part of the loss.
    """

    group_size: int | None = option(
        64, "Inputs that share a scale: 64, 128, or none for one scale per output.", stated=True, at_least=1
    )
    iters: int = option(200, "Steps in which each block is tuned.", stated=True, at_least=1)
    lr: float | None = option(
        None, "How far the first step shifts a rounding, in codes; 1 / iters if not given.", above=0
    )
    step_windows: int = option(8, "Windows that a step looks at.", stated=True, at_least=1)
    seed: int = option(0, "Which windows the steps look at.", at_least=0)

    name: ClassVar[str] = "autoround"
    unit: ClassVar[Unit] = Unit.BITS
    statistic: ClassVar[type[Statistic] | None] = Gram
    error_measure: ClassVar[str] = "squared weight error over squared weights, from the saved codes"
    stored_format: ClassVar[StoredFormat] = Packed().describe()

    def __post_init__(self) -> None:
        """Refuse options that cannot be meant."""
        if self.lr is not None and not 0 < self.lr <= 1:
            raise ValueError(f"lr {self.lr} is outside (0, 1]: it is in codes, and 1 / iters if not given")

    @property
    def code_format(self) -> CodeFormat:
        """How the codes are grouped."""
        return CodeFormat(self.group_size, symmetric=True)

    def check_ready(self, plan: Plan | None = None) -> None:  # noqa: ARG002
        """Refuse to go on without the packages; plans of bits hold no width that those do not know."""
        for module, package in _PACKAGES.items():
            if importlib.util.find_spec(module) is None:
                raise RequestError(f"backend 'autoround' needs the package {package}: {INSTALL}")

    def compress_checkpoint(
        self, dense: Path, plan: Plan, windows: TokenWindows, device: torch.device, out: Path
    ) -> Sequence[LinearOutcome]:
        """Tune the checkpoint in `dense`, and store it with packed codes in the folder `out`.

        Raises:
            RequestError: a package is missing, refuses the model or the plan, or leaves a linear as it is; or
                the model cannot be packed.
        """
        self.check_ready(plan)
        start = perf_counter()
        loaded = load_model(str(dense))
        self._check_takes(loaded.model, plan)
        found = self._tuned(loaded, plan, windows, device)
        seconds = perf_counter() - start
        # What the package makes of a model's modules is its own affair: a fresh one is saved.
        fresh = load_model(str(dense))
        n_weights = sum(budget.n_weights for budget in plan.budgets)
        outcomes = [
            _put_(fresh.model, budget.name, found[budget.name], seconds * budget.n_weights / n_weights)
            for budget in plan.budgets
        ]
        save_checkpoint(fresh.model, fresh.tokenizer, out, Packed())
        return outcomes

    def _check_takes(self, model: nn.Module, plan: Plan) -> None:
        """Refuse, before the long work, a model that could not be stored or not be tuned as planned."""
        instead = "use backend 'gptq'"
        if has_narrowed_blocks(model):
            raise RequestError(f"backend 'autoround' takes no model with narrowed blocks: {instead}")
        names = [budget.name for budget in plan.budgets]
        try:
            check_packable(model, names, self.code_format)
        except RequestError as error:
            reason, _, _ = str(error).rpartition(": ")
            raise RequestError(f"{reason}, and backend 'autoround' stores nothing else: {instead}") from error
        for name in names:
            rows, columns = model.get_submodule(name).get_parameter("weight").shape
            if rows % _SIDES or columns % _SIDES:
                raise RequestError(
                    f"{name} is {rows} x {columns}, and AutoRound leaves linears alone whose sides are no "
                    f"multiples of {_SIDES}: leave it out with --skip, or {instead}"
                )

    def _tuned(
        self, loaded: LoadedModel, plan: Plan, windows: TokenWindows, device: torch.device
    ) -> dict[str, QuantizedWeight]:
        """The codes of every linear of the plan."""
        dtype = loaded.model.dtype
        settings = {
            **arguments_of(plan, self.group_size, symmetric=True),
            **({} if self.lr is None else {"lr": self.lr}),
            "iters": self.iters,
            "batch_size": self.step_windows,
            "seed": self.seed,
            "scale_dtype": str(dtype).removeprefix("torch."),
            "amp": device.type != "cpu" and dtype != torch.float32,  # half precision, where it is fast
            "enable_torch_compile": False,
            "low_cpu_mem_usage": False,  # blocks would go to disk and back; the model is in memory anyway
            "trust_remote_code": False,
        }
        with silenced(), random_states_kept(device), only_new_garbage_collected():
            tuned = _carried_out(loaded, windows, device, settings)
        return {
            budget.name: _codes_of(tuned, budget.name, round(budget.value), self.group_size, dtype)
            for budget in plan.budgets
        }


def _carried_out(
    loaded: LoadedModel, windows: TokenWindows, device: torch.device, settings: Mapping[str, Any]
) -> nn.Module:
    """The model as the package leaves it: every linear holds multiples of its `scale`."""
    import auto_round  # noqa: PLC0415 - optional

    # Told that nothing is padded, it does not guess from the ids, some of which models pad with as well.
    examples = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in windows.ids]
    samples, length = windows.ids.shape
    try:
        with memory_errors("AutoRound tunes", _LESS_MEMORY):
            rounding = auto_round.AutoRound(
                loaded.model,
                loaded.tokenizer,
                dataset=examples,
                nsamples=samples,
                seqlen=length,
                device_map=str(device),
                **settings,
            )
            tuned: nn.Module = rounding.quantize()[0]
    except RequestError:
        raise
    except SystemExit as error:  # its way out where calibration fails
        raise RequestError("AutoRound gave this model up without a reason: use backend 'gptq'") from error
    except Exception as error:  # whatever it is: the model, or the plan, is none that the package takes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RequestError(
            f"AutoRound does not take this model or plan: {reason}: use backend 'gptq'"
        ) from error
    return tuned


def _codes_of(
    tuned: nn.Module, name: str, bits: int, group_size: int | None, dtype: torch.dtype
) -> QuantizedWeight:
    """What a tuned linear holds, as codes; its scales are [out, groups].

    Raises:
        RequestError: it was left as it is, or its numbers are no codes of so many bits.
    """
    module = tuned.get_submodule(name)
    scales = getattr(module, "scale", None)
    if not isinstance(scales, torch.Tensor):
        raise RequestError(f"AutoRound left {name} as it is: leave it out with --skip, or use backend 'gptq'")
    weight = in_rows(module, module.get_parameter("weight").detach()).cpu().float()  # [out, in]
    scales = scales.detach().cpu().to(dtype).reshape(len(weight), -1)
    exact = weight / scales.float().repeat_interleave(weight.shape[1] // scales.shape[1], dim=1)
    codes = exact.round()
    if not float((exact - codes).abs().max()) <= _TOLERANCE:  # not: NaN too
        raise RequestError(
            f"AutoRound made of {name} no multiples of its scales: calibrate on other text, or use "
            "backend 'gptq'"
        )
    return QuantizedWeight(codes.to(torch.int8), scales.contiguous(), None, bits, group_size)


def _put_(model: nn.Module, name: str, codes: QuantizedWeight, seconds: float) -> LinearOutcome:
    """Give a linear of the dense model the weight that `codes` stand for."""
    module = model.get_submodule(name)
    weight = in_rows(module, module.get_parameter("weight").detach())
    rounded = codes.dequantised()
    lost = float((weight.double() - rounded.double()).square_().sum())
    energy = float(weight.double().square_().sum())
    weight.copy_(rounded)
    keep_codes_(module, codes)
    return LinearOutcome(
        name,
        achieved=float(codes.bits),
        relative_error=lost / energy if energy else 0.0,
        seconds=seconds,
        quantized=codes,
    )
