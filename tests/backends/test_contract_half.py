"""What every backend owes in half precision, with every kind of plan."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from owl_compress.compression.contract import Backend
from owl_compress.compression.driver import compress_with_
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.plan import Plan
from owl_compress.documents.units import Unit
from owl_compress.models.structure import find_structure

Planned = Callable[..., Plan]
Make = Callable[..., TokenWindows]
MakeModel = Callable[[str], Any]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_half_precision(
    make_model: MakeModel,
    case: Any,
    backend: Backend,
    planned: Planned,
    make_windows: Make,
    counted: Callable[..., dict[str, float]],
    dtype: torch.dtype,
) -> None:
    model = make_model("llama").to(dtype)
    plan, n_weights = planned(model), find_structure(model).linear_sizes
    result = compress_with_(model, plan, backend, make_windows(3))
    assert {row.name: row.achieved for row in result.budgets} == counted(model, plan, n_weights)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert result.totals.bits_per_weight == 16 or case.unit is Unit.BITS
    assert result.totals.bits_per_weight < 16 or case.unit is not Unit.BITS
