"""Losses held against the library called directly, and against the equation."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from owl_compress.data.windows import TokenWindows
from owl_compress.recovery.losses import distillation_loss, next_token_loss


def test_the_next_token_loss_is_that_of_transformers(
    make_model: Callable[[str], Any], make_windows: Callable[..., TokenWindows]
) -> None:
    model, ids = make_model("llama"), make_windows().ids
    expected = model(input_ids=ids, labels=ids).loss
    assert torch.allclose(next_token_loss(model(input_ids=ids).logits, ids), expected)


def test_distillation_is_the_mean_divergence_from_the_teacher() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(2, 5, 7, generator=generator) for _ in range(2))
    ids = torch.zeros(2, 5, dtype=torch.int64)
    loss = distillation_loss(lambda input_ids: SimpleNamespace(logits=theirs))(ours, ids)
    p, q = theirs.softmax(-1), ours.softmax(-1)
    assert torch.allclose(loss, (p * (p / q).log()).sum(-1).mean(), atol=1e-6)


def test_a_model_that_predicts_what_its_teacher_does_has_nothing_to_learn(
    make_model: Callable[[str], Any], make_windows: Callable[..., TokenWindows]
) -> None:
    model, ids = make_model("llama"), make_windows().ids
    logits = model(input_ids=ids).logits
    loss = distillation_loss(model)(logits, ids)
    loss.backward()
    assert abs(float(loss.detach())) < 1e-6
    assert max(float(one.grad.abs().max()) for one in model.parameters() if one.grad is not None) < 1e-6
