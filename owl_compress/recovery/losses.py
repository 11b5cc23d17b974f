"""What is learned from: the text, or the dense model's predictions of it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of logits [sequences, seq_len, vocabulary] and ids [sequences, seq_len]: nats a position, their mean."""


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Cross-entropy of every token but the first of each sequence, in float32."""
    predicted = logits[:, :-1].flatten(0, 1).float()  # [sequences * (seq_len - 1), vocabulary]
    return functional.cross_entropy(predicted, ids[:, 1:].flatten().to(predicted.device))


def distillation_loss(teacher: Any) -> Loss:
    """KL(teacher ‖ student) of the next-token distributions at every position, in float32.

    At temperature 1, with nothing of the text's own next token (knowledge distillation, arXiv 1503.02531).
    """

    def loss(logits: Tensor, ids: Tensor) -> Tensor:
        with torch.no_grad():
            expected = teacher(input_ids=ids).logits
        n_positions = ids.numel()
        total = logits.new_zeros((), dtype=torch.float32)
        for ours, theirs in zip(logits, expected, strict=True):  # [seq_len, vocabulary] each
            total = total + functional.kl_div(
                ours.float().log_softmax(dim=-1),
                theirs.float().log_softmax(dim=-1),
                log_target=True,
                reduction="sum",
            )
        return total / n_positions

    return loss
