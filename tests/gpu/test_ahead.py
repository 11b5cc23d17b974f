"""Blocks that wait on the host or on disk are brought to a CUDA device while another is computed there."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from owl_compress.checkpoints.loading import load_model
from owl_compress.data.windows import TokenWindows
from owl_compress.models.structure import find_structure
from owl_compress.walk.blocks import BlockWalk
from owl_compress.walk.input_statistics import Gram

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

DEVICE = torch.device("cuda")


def grams(model: Any, windows: TokenWindows) -> list[Tensor]:
    found = []
    walk = BlockWalk(model, find_structure(model), windows.batches(1), device=DEVICE)
    with closing(walk.visits()) as visits:
        for visit in visits:
            found += [group.statistic.matrix.cpu() for group in visit.gather(Gram)]  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("offload", ["host", "disk"])
def test_what_is_brought_ahead_computes_the_same_to_the_last_bit(
    here: Path, make_windows: Callable[..., TokenWindows], offload: Any
) -> None:
    windows = make_windows(4)
    resident = grams(load_model("model").model.to(DEVICE), windows)
    model = load_model("model", offload=offload).model
    for _ in range(3):  # a copy that was used before it was whole would differ now and then
        assert all(map(torch.equal, grams(model, windows), resident))
    assert all(one.device.type in {"cpu", "meta"} for one in model.parameters())
