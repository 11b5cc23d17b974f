"""How large the codes of a packed checkpoint are on disk, told from shapes."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from owl_compress.checkpoints.packed_trial import Fit
from owl_compress.checkpoints.stored_size import Sizer, WeightFiles, saved_tensors, weight_files
from owl_compress.forms.codes import CodeFormat


def packed_sizer(
    model: Any, fit: Fit, code_format: CodeFormat, *, original_names: bool | None = None
) -> Sizer:
    """Who tells the files of `packed.packed_checkpoint`, for linears of any bits that are packed as in `fit`.

    `original_names` as for `saving.write_weights`; None where the fit decides.
    """
    original_names = fit.original_names if original_names is None else original_names
    tensors = saved_tensors(model)
    weights = {name: tensors.pop(f"{name}.weight") for name in fit.packed}

    def files(bits: Mapping[str, int]) -> WeightFiles:
        codes = {
            f"{name}.{part}": tensor
            for name, weight in weights.items()
            for part, tensor in _unfilled(weight, bits[name], code_format).items()
        }
        return weight_files(model, tensors | codes, original_names=original_names)

    return files


def _unfilled(weight: Tensor, bits: int, code_format: CodeFormat) -> dict[str, Tensor]:
    """The tensors of one linear as `packed` makes them, without memory."""
    rows, columns = weight.shape
    return {
        "weight_packed": torch.empty(rows, _words(columns, bits), dtype=torch.int32, device="meta"),
        "weight_scale": torch.empty(rows, code_format.n_groups(columns), dtype=weight.dtype, device="meta"),
        "weight_shape": torch.empty(2, dtype=torch.int64, device="meta"),
    }


@cache
def _words(columns: int, bits: int) -> int:
    """Words of 32 bits that a row of codes takes; versions of the package lay them out differently."""
    from compressed_tensors.compressors.pack_quantized import pack_to_int32  # noqa: PLC0415 - optional

    return int(pack_to_int32(torch.zeros(1, columns, dtype=torch.int8), bits).shape[1])
