"""How much a model takes and passes on: positions, and values of a token between its blocks."""

from typing import Any

from torch import Tensor

from owl_compress.errors import RequestError

DEFAULT_SEQ_LEN = 2048
"""Tokens of a window where the model takes as many."""

# What model configurations call the number of positions they are made for.
_MAXIMUM_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx")


def resolve_seq_len(
    requested: int | None, model_config: Any, default: int = DEFAULT_SEQ_LEN, option: str = "--seq-len"
) -> int:
    """The sequence length to use: `requested`, or by default 2048 or the model's maximum if that is less.

    Refusals name the `option` that asked. Models without a maximum (BLOOM) take any length.

    Raises:
        RequestError: over the model's maximum, or below 2 (one token predicts nothing).
    """
    maximum = _maximum_seq_len(model_config)
    if requested is None:
        return min(default, maximum or default)
    if requested < 2:
        raise RequestError(f"sequence length {requested} is below 2: set {option} to at least 2")
    if maximum is not None and requested > maximum:
        raise RequestError(
            f"sequence length {requested} is over the model's maximum of {maximum}: "
            f"set {option} {maximum} or less"
        )
    return requested


def check_vocabulary(model: Any, token_ids: Tensor) -> None:
    """Refuse token ids [..] that the model has no embedding for, before it is run on them.

    Raises:
        RequestError: with the first id that is too large, or negative.
    """
    n_embeddings = model.get_input_embeddings().weight.shape[0]
    outside = token_ids[(token_ids < 0) | (token_ids >= n_embeddings)]
    if len(outside):
        raise RequestError(
            f"token id {int(outside.max())} is outside the model's vocabulary of {n_embeddings}: "
            "the tokenizer is not this model's; use the one it was trained with"
        )


def hidden_size(model: Any) -> int:
    """Values of a token between the blocks; multimodal configurations keep it in a part of theirs."""
    config = model.config
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    stated = getattr(text, "hidden_size", 0)
    return int(stated) or int(model.get_input_embeddings().weight.shape[1])


def _maximum_seq_len(model_config: Any) -> int | None:
    """How many positions the language model has; multimodal configurations keep that in a part of theirs."""
    if hasattr(model_config, "get_text_config"):
        model_config = model_config.get_text_config()
    for name in _MAXIMUM_NAMES:
        value = getattr(model_config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
