"""The format of GPTQModel: codes in words of 32 bits, with the widths of single linears under `dynamic`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from owl_compress.checkpoints.door import from_config
from owl_compress.checkpoints.never_loaded import NeverLoaded
from owl_compress.checkpoints.reading import CheckpointSource
from owl_compress.checkpoints.tensors import tensor_from_checkpoint
from owl_compress.checkpoints.verification import compare_bits
from owl_compress.documents.measurements import Verification
from owl_compress.documents.stored_format import VLLM_AS_DOCUMENTED, StoredFormat
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError
from owl_compress.forms.codes import CodeFormat, QuantizedWeight
from owl_compress.models.structure import LinearSite, ModelStructure

WIDTHS = (2, 3, 4, 8)
"""The widths that the kernels of this format know."""

WORD_BITS = 32
_METHODS = ("gptq", "gptqmodel")


def read_codes(folder: Path, name: str, group_size: int | None) -> QuantizedWeight:
    """The codes and scales of the linear `name` in a folder of GPTQModel's, without that package.

    Its `qweight` holds the codes of an output one after the other, without gaps, in words of 32 bits along
    the inputs, raised by 2^(bits - 1); `g_idx` counts an input's group; scales are [groups, out].

    Raises:
        RequestError: a tensor is missing.
        ValueError: sizes that do not fit each other, or an order of inputs.
    """
    words = tensor_from_checkpoint(folder, f"{name}.qweight")  # int32 [in * bits / 32, out]
    groups = tensor_from_checkpoint(folder, f"{name}.g_idx").long()  # [in]
    scales = tensor_from_checkpoint(folder, f"{name}.scales")  # [groups, out]
    n_inputs = len(groups)
    bits, rest = divmod(words.shape[0] * WORD_BITS, n_inputs)
    if rest or bits not in WIDTHS:
        raise ValueError(f"{name}: {words.shape[0]} words for {n_inputs} inputs are no whole width")
    if not torch.equal(groups, torch.arange(n_inputs) // (group_size or n_inputs)):
        raise ValueError(f"{name}: groups are not {group_size} consecutive inputs")
    codes = _unpacked(words, bits) - 2 ** (bits - 1)
    return QuantizedWeight(
        codes.t().contiguous().to(torch.int8), scales.t().contiguous(), None, bits, group_size
    )


def _unpacked(words: Tensor, bits: int) -> Tensor:
    """Unsigned numbers of `bits` bits, [in, out], from words [in * bits / 32, out]; lowest bits first."""
    places = torch.arange(WORD_BITS, dtype=torch.int32)[None, :, None]
    single = ((words[:, None, :] >> places) & 1).to(torch.int16)  # [words, 32, out]
    single = single.reshape(-1, bits, words.shape[1])  # [in, bits, out]
    return (single << torch.arange(bits, dtype=torch.int16)[None, :, None]).sum(dim=1, dtype=torch.int16)


class GptqModelCodes(NeverLoaded):
    """Written by the package GPTQModel alone, and read by it; single codes are read back here."""

    name: ClassVar[str] = "gptqmodel"
    option_defaults: ClassVar[Mapping[str, Any]] = {}
    is_asked_for: ClassVar[bool] = False
    holds_codes: ClassVar[bool] = True

    def recognise(self, source: CheckpointSource) -> bool:
        """By the method that its configuration names."""
        description = source.described.get("quantization_config")
        return isinstance(description, dict) and description.get("quant_method") in _METHODS

    def check_loadable(self, source: CheckpointSource) -> None:
        """Refuse it: its linears are the package's own, which nothing here takes apart.

        Raises:
            RequestError: always.
        """
        raise RequestError(
            f"{source.named} holds codes in the format of GPTQModel, which that package loads: name the "
            "model that it was made from"
        )

    def check_request(self, unit: Unit, parts: Sequence[str], options: Mapping[str, Any]) -> None:
        """The package decides."""

    def check_holds(self, model: Any, structure: ModelStructure, code_format: CodeFormat | None) -> None:
        """The package decides."""

    def save(self, model: Any, folder: Path, *, max_shard_size: str) -> tuple[str, ...]:
        """The package does."""
        raise NotImplementedError("only the package gptqmodel writes its format")

    def describe(self) -> StoredFormat:
        """Who reads it."""
        return StoredFormat(
            tag="gptqmodel",
            description="They are stored as packed integers in the format of GPTQModel (`gptq`), with the "
            "widths of single linears under `dynamic` in config.json",
            how_to_load="It takes `pip install gptqmodel`; transformers by itself does not know the mixed "
            "widths.\n\n```python\nfrom gptqmodel import GPTQModel\n\n"
            'model = GPTQModel.load("path/to/this/folder")\n'
            "tokenizer = model.tokenizer\n```",
            vllm=f"vLLM serves this format where all widths are 4 or 8 bits.\n\n{VLLM_AS_DOCUMENTED}",
            lm_eval="lm-eval knows this format by `--model hf` with `gptqmodel=True` among its "
            "`--model_args`, which was not tried.",
            library="gptqmodel",
        )

    def verify(self, source: CheckpointSource, pattern: str) -> Verification:
        """Compare the bits of the stored codes with the plan."""
        with torch.device("meta"):
            model = from_config(AutoModelForCausalLM, source.config, trust_remote_code=source.trusts_code)
        folder = Path(source.where)

        def bits_of(linear: LinearSite) -> int:
            words = tensor_from_checkpoint(folder, f"{linear.name}.qweight")  # [in * bits / 32, out]
            return int(words.shape[0]) * WORD_BITS // linear.shape[1]

        return compare_bits(folder, model, pattern, bits_of)
