"""GPTQModel: the plan is handed to that package, which quantizes a whole checkpoint folder in its format."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from owl_compress.checkpoints.gptqmodel import WIDTHS, WORD_BITS, GptqModelCodes, read_codes
from owl_compress.checkpoints.tensors import tensor_from_checkpoint
from owl_compress.compression.other_packages import silenced
from owl_compress.compression.tasks import LinearOutcome
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.plan import LinearBudget, Plan
from owl_compress.documents.result import Fallback
from owl_compress.documents.stored_format import StoredFormat
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError
from owl_compress.exports.gptqmodel import dynamic_rules
from owl_compress.forms.codes import CodeFormat
from owl_compress.options import option
from owl_compress.walk.input_statistics import Gram, Statistic

INSTALL = "pip install 'owl-compress[gptqmodel]' (it needs torch >= 2.14.1)"


@dataclass(frozen=True)
class GptqModel:
    """GPTQ (arXiv 2210.17323) as the package GPTQModel carries it out: symmetric, no activation order.

    Scale grids, data type (bfloat16 where the checkpoint is float32) and order of work are its own; for the
    algorithm in this toolkit see `owl_compress.backends.gptq`. One scale per `group_size` inputs of an
    output, or per output (None). With `group_order` columns are visited group by group, those that matter
    most first (its `act_group_aware`, arXiv 2505.14638).
    """

    group_size: int | None = option(
        64, "Inputs that share a scale: 64, 128, or none for one scale per output.", stated=True, at_least=1
    )
    group_order: bool = option(
        True, "Visit columns as they lie, as published, not the groups that matter most first."
    )
    damping: float = option(0.01, "Share of the mean diagonal that is added to the Hessian's.", at_least=0)

    name: ClassVar[str] = "gptqmodel"
    unit: ClassVar[Unit] = Unit.BITS
    statistic: ClassVar[type[Statistic] | None] = Gram
    error_measure: ClassVar[str] = "squared weight error over squared weights, from the saved codes"
    stored_format: ClassVar[StoredFormat] = GptqModelCodes().describe()

    def __post_init__(self) -> None:
        """Refuse options that cannot be meant."""
        if self.group_size is not None and self.group_size % WORD_BITS:
            raise ValueError(f"group_size {self.group_size} is no multiple of 32: give 32, 64, 128 or none")
        if not 0 < self.damping < 1:
            raise ValueError(f"damping {self.damping} is outside (0, 1)")

    @property
    def code_format(self) -> CodeFormat:
        """How the codes are grouped."""
        return CodeFormat(self.group_size, symmetric=True)

    def check_ready(self, plan: Plan | None = None) -> None:
        """Refuse, before any work is done, a plan with other widths, or to go on without the package."""
        for budget in plan.budgets if plan else ():
            if budget.value not in WIDTHS:
                raise RequestError(
                    f"{budget.name} has {budget.value:g} bits, and GPTQModel's format is read at "
                    f"{', '.join(map(str, WIDTHS))} bits: choose among these with --bit-choices"
                )
        if importlib.util.find_spec("gptqmodel") is None:
            raise RequestError(f"backend 'gptqmodel' needs the package gptqmodel: {INSTALL}")

    def compress_checkpoint(
        self, dense: Path, plan: Plan, windows: TokenWindows, device: torch.device, out: Path
    ) -> Sequence[LinearOutcome]:
        """Quantize the checkpoint in `dense` into the folder `out`; codes and errors are read back from it.

        Raises:
            RequestError: the package is missing, or refuses the model or the plan.
        """
        self.check_ready(plan)
        home, target = dense.absolute(), out.absolute()
        with silenced():
            rows = self._quantize(home, plan, windows, device, target)
        logged = {(str(row.get("layer")), row.get("module")): row for row in rows}
        return [self._outcome(dense, out, budget, logged) for budget in plan.budgets]

    def _quantize(
        self, dense: Path, plan: Plan, windows: TokenWindows, device: torch.device, out: Path
    ) -> list[dict[str, Any]]:
        from gptqmodel import GPTQModel, QuantizeConfig  # noqa: PLC0415 - optional

        try:
            config = QuantizeConfig(
                bits=max(round(budget.value) for budget in plan.budgets),
                dynamic=dynamic_rules(plan),
                group_size=self.group_size or -1,
                sym=True,
                desc_act=False,
                act_group_aware=self.group_order and self.group_size is not None,
                damp_percent=self.damping,
                fallback=None,  # else it would round linears to nearest that see few tokens, and not say so
                offload_to_disk=False,  # the model is in memory anyway; the path would end up in config.json
            )
            model = GPTQModel.load(str(dense), config, device=str(device), trust_remote_code=False)
        except (TypeError, ValueError, NotImplementedError) as error:
            reason = " ".join(str(error).split())
            raise RequestError(f"GPTQModel does not take this model or plan: {reason}") from error
        examples = [
            {"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in windows.ids.tolist()
        ]  # windows of equal length: nothing is padded
        log = model.quantize(examples, batch_size=1, calibration_sort=None)
        model.save(str(out))
        return [row for process in log.values() for row in process]

    def _outcome(
        self,
        dense: Path,
        out: Path,
        budget: LinearBudget,
        logged: Mapping[tuple[str, str | None], Mapping[str, Any]],
    ) -> LinearOutcome:
        name = budget.name
        quantized = read_codes(out, name, self.group_size)
        weight = tensor_from_checkpoint(dense, name).double()
        lost = float((weight - quantized.dequantised().double()).square_().sum())
        energy = float(weight.square().sum())
        row = logged.get((budget.block.rpartition(".")[2], name.removeprefix(f"{budget.block}.")), {})
        damping = float(row.get("damp", self.damping))
        raised = (Fallback(what=f"damping raised to {damping:g}", where=name),)
        return LinearOutcome(
            name,
            achieved=float(quantized.bits),
            relative_error=lost / energy if energy else 0.0,
            seconds=float(row.get("time", 0.0)),
            fallbacks=raised if damping > 1.001 * self.damping else (),
            quantized=quantized,
        )
