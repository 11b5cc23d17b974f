"""Training on a GPU: in bfloat16 products, on float32 values, and as sparse as on a CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from owl_compress.data.windows import TokenWindows
from owl_compress.models.structure import find_structure
from owl_compress.recovery.contract import RecoveryMethod
from owl_compress.recovery.lora import Lora
from owl_compress.recovery.losses import next_token_loss
from owl_compress.recovery.masked import Masked
from owl_compress.recovery.training import TrainingPlan, train_

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


@pytest.mark.parametrize("method", [Masked(), Lora(rank=4), Lora(rank=4, merge=True)], ids=repr)
def test_a_training_on_a_gpu_lowers_the_loss_and_leaves_zeros_zero(
    make_model: Callable[[str], Any], make_windows: Callable[..., TokenWindows], method: RecoveryMethod
) -> None:
    model, ids = make_model("llama").to(CUDA), make_windows(4).ids
    structure = find_structure(model)
    for linear in structure.linears:
        linear.weight.flatten()[::2] = 0
    zeros = {f"{linear.name}.weight": linear.weight == 0 for linear in structure.linears}
    trainee = method.prepare_(model, structure)
    plan = TrainingPlan(ids, 8, 2, 1, 1e-2, 0.1, 0, autocast=torch.bfloat16)
    course = train_(trainee, plan, next_token_loss, device=CUDA)
    assert course.losses[-1] < course.losses[0]
    assert {one.dtype for one in trainee.parameters.values()} == {torch.float32}
    for name, weight in trainee.learned().items():
        if name in zeros:
            assert not bool(weight[zeros[name]].any())
