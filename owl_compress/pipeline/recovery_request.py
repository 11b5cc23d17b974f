"""What a recovery is asked for: options as users give them, refused before anything is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import ceil, isfinite
from pathlib import Path
from typing import Any

import torch

from owl_compress.consent import NO_CONSENT, Consent
from owl_compress.data.window_checks import check_max_windows
from owl_compress.data.windows import CalibrationOptions, EvaluationOptions, check_batch_size
from owl_compress.device import resolve_device
from owl_compress.documents.quantities import n_tokens
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.recovery import LossName
from owl_compress.errors import RequestError
from owl_compress.options import build_from, option, options_of
from owl_compress.pipeline.beside import ORIGINAL
from owl_compress.pipeline.measuring import taken
from owl_compress.recovery.contract import RecoveryMethod
from owl_compress.recovery.methods import DEFAULT_METHOD, METHODS
from owl_compress.walk.ranks import Ranks

DEFAULT_TOKENS = 30_000
"""As in Table 6 of the OWL paper."""
_MOST_STEPS, _MOST_TOKENS = 10**9, 10**15
"""More than anybody trains for, and few enough to be counted."""
DEFAULT_APART = 16
"""Windows of the training text that are held apart to evaluate on, where no other text is named."""

_TEXT = ("seq_len", "bos", "text_field", "chat_template")


@dataclass(frozen=True)
class RecoveryOptions:
    """How a compressed model is trained, as a user says it."""

    loss: LossName = option(
        "lm", "'lm': the next token of the text; 'distill': what the dense model predicts."
    )
    teacher: str | None = option(
        None, "With 'distill': the dense model; default the one that the folder was made from."
    )
    tokens: str | None = option(None, "Tokens to train on, 300k; default 30k.")
    steps: int | None = option(
        None, "Steps of the optimizer, in the place of --tokens.", at_least=1, at_most=_MOST_STEPS
    )
    learning_rate: float | None = option(
        None, "Highest learning rate; default 1e-3 for lora and bias, 1e-4 for masked.", above=0
    )
    warm_up: float = option(
        0.1, "Share of the steps in which the learning rate rises; then it falls as a cosine.", at_least=0,
        below=1,
    )  # fmt: skip
    accumulate: int | None = option(
        None,
        "Forward passes of --batch-size sequences in a step; default 1, of several processes 1 each.",
        at_least=1,
        at_most=_MOST_STEPS,
    )
    checkpointing: bool = option(
        False, "Compute activations twice and keep few: less memory, a third more time."
    )
    held_out: str | None = option(
        None, "Text to evaluate on, before and after; default windows held apart from --data."
    )

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "RecoveryOptions":
        """The options among those that were given.

        Raises:
            RequestError: a value that cannot be meant.
        """
        tokens = given.get("tokens")
        if isinstance(tokens, int) and not isinstance(tokens, bool):  # from Python
            given = {**given, "tokens": str(tokens)}
        found: RecoveryOptions = build_from(cls, "recover", given)
        if found.tokens is not None and found.steps is not None:
            raise RequestError("--tokens and --steps both say how long to train: give one")
        if found.tokens is not None and not 0 < n_tokens(found.tokens) <= _MOST_TOKENS:
            raise RequestError(f"--tokens {found.tokens!r} is no number of tokens, such as 30000 or 300k")
        if found.learning_rate is not None and not isfinite(found.learning_rate):
            raise RequestError(f"--learning-rate {found.learning_rate} has no end: give one such as 1e-4")
        if found.teacher is not None and not found.teacher.strip():
            raise RequestError("--teacher '' names no model (a variable of the shell may be empty)")
        if found.teacher is not None and found.loss != "distill":
            raise RequestError("--teacher is for --loss distill: add that, or drop it")
        return found


@dataclass(frozen=True)
class RecoveryRequest:
    """A recovery, checked before the model is loaded.

    Attributes:
        folder: of ours, that a compression wrote.
        text: to train on; its `samples` count for nothing.
        held_out: to evaluate on; None for windows held apart from `text`.
        method: that trains.
        options: how.
        batch_size: sequences per forward pass.
        device: where.
        dtype: of the computation; "auto" is the device's.
        max_windows: to evaluate on, at most.
        consent: what the model in the folder may run while it loads.
    """

    folder: Path
    text: CalibrationOptions
    held_out: EvaluationOptions | None
    method: RecoveryMethod
    options: RecoveryOptions
    batch_size: int
    device: torch.device
    dtype: str
    max_windows: int | None = None
    consent: Consent = NO_CONSENT

    @classmethod
    def of(
        cls, folder: Path, data: str, given: Mapping[str, Any], consent: Consent = NO_CONSENT
    ) -> "RecoveryRequest":
        """What options ask for, under their names on the command line.

        Raises:
            RequestError: an unknown method, option or device, or a value that cannot be meant.
        """
        options = RecoveryOptions.of(given)
        own = {one.name for one in options_of(RecoveryOptions)} | {"method", "max_windows"}
        recipe = {name for name in given if name in Recipe.model_fields}
        of_method = {name: value for name, value in given.items() if name not in own | recipe}
        method = METHODS.create(given.get("method", DEFAULT_METHOD), of_method)
        method.check_ready()
        plain = Recipe.model_fields
        batch_size = given.get("batch_size", plain["batch_size"].default)
        check_batch_size(batch_size)
        dtype = given.get("dtype", "auto")
        if dtype == "float16":
            raise RequestError("--dtype float16 loses small gradients: train in bfloat16 or float32")
        text = {**taken(given, _TEXT), "seed": given.get("seed", 0)}
        max_windows = given.get("max_windows")
        check_max_windows(max_windows)
        held_out = None
        if options.held_out is not None:
            held_out = EvaluationOptions(options.held_out, max_windows=max_windows, **taken(given, _TEXT))
        return cls(
            folder,
            CalibrationOptions(data, **text),
            held_out,
            method,
            options,
            batch_size,
            resolve_device(given.get("device", "auto")),
            dtype,
            max_windows,
            consent,
        )

    @property
    def passes(self) -> int:
        """Forward passes of a step, in all processes together."""
        return self.options.accumulate or Ranks.from_environment().of

    @property
    def sequences_per_step(self) -> int:
        """That one step of the optimizer sees."""
        return self.batch_size * self.passes

    def steps(self, seq_len: int) -> int:
        """Of the optimizer: the last one may go over the tokens that were asked for."""
        if self.options.steps is not None:
            return self.options.steps
        tokens = n_tokens(self.options.tokens) if self.options.tokens else DEFAULT_TOKENS
        return ceil(tokens / (self.sequences_per_step * seq_len))

    @property
    def learning_rate(self) -> float:
        """The one that was given, or the method's own."""
        return self.options.learning_rate or self.method.learning_rate

    @property
    def teacher(self) -> str | None:
        """The dense model that is learned from; None where there is none."""
        return (self.options.teacher or ORIGINAL) if self.options.loss == "distill" else None

    @property
    def method_parameters(self) -> dict[str, Any]:
        """The options of the method, for records."""
        method: Any = self.method
        return {one.name: getattr(method, one.name) for one in fields(method)}
