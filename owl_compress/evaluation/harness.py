"""Scoring by lm-eval. Imported only where it is there: it is an extra, and takes ten seconds to import."""

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from importlib import import_module
from typing import Any

from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import resolve_max_length

from owl_compress.errors import RequestError
from owl_compress.evaluation.task_loading import LoadedTasks
from owl_compress.progress import Progress

BOOTSTRAPS = 1000
"""Resamples for the standard error of metrics that have no formula for it; accuracy has one."""

_WITH_BARS = ("lm_eval.api.task", "lm_eval.api.model", "lm_eval.models.huggingface")
"""Modules in which lm-eval draws how far it is, with a `tqdm` of their own."""

Pair = tuple[tuple[str, str], list[int], list[int]]
"""What lm-eval scores: prompt and continuation, as text and as the ids of their tokens."""


class LiveModel(HFLM):  # type: ignore[misc]  # lm-eval has no types for us
    """A model in memory, as lm-eval sees it, that refuses what lm-eval would let pass.

    Log-likelihoods are in float32 whatever the model's type. lm-eval by itself sums them up in that type, and
    a sum of -100 is known to no more than 0.5 in bfloat16: choices would often be equally likely.

    Attributes:
        cut: prompts that were longer than the model's context and lost their beginning.
        longest: tokens of the longest of these, with its continuation.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int | str, **options: Any) -> None:
        # It ties weights anew, which nobody asked for, and gives the tokenizer a padding token.
        max_length = resolve_max_length(model.config, tokenizer)
        tokenizer = deepcopy(tokenizer)
        tokenizer.model_max_length = sys.maxsize  # it would warn of every longer text, which is counted below
        with _replaced(model, "tie_weights", _nothing):
            super().__init__(
                pretrained=model,
                tokenizer=tokenizer,
                backend="causal",
                batch_size=batch_size,
                **{"max_length": max_length, "softmax_dtype": "float32"} | options,
            )
        if self.prefix_token_id is None:
            raise RequestError(
                "the tokenizer has neither a begin-of-text nor an end-of-text token, and lm-eval needs one: "
                "set eos_token in its tokenizer_config.json"
            )
        self.cut: set[str] = set()
        self.longest = 0

    def _loglikelihood_tokens(self, requests: Sequence[Pair], **options: Any) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether greedy decoding would write it."""
        for (prompt, choice), prompt_ids, choice_ids in requests:
            if not choice_ids or len(choice_ids) > self.max_length:
                raise RequestError(
                    f"choice {choice[:40]!r} after {prompt[-40:]!r} has {len(choice_ids)} tokens, and the "
                    f"model scores 1 to {self.max_length}: leave it out"
                )
            length = len(prompt_ids) + len(choice_ids)
            if length > self.max_length + 1:
                self.cut.add(prompt)
                self.longest = max(self.longest, length)
        found: list[tuple[float, bool]] = super()._loglikelihood_tokens(requests, **options)
        n_broken = sum(math.isnan(value) for value, _ in found)
        if n_broken:
            dtype = str(self.model.dtype).removeprefix("torch.")
            raise RequestError(
                f"the model's log-likelihood is NaN for {n_broken} of {len(found)} choices: its weights are "
                f"broken, or overflow {dtype}; check the checkpoint, or use --dtype float32"
            )
        return found


def scored(live: LiveModel, loaded: LoadedTasks, limit: int | None, progress: Progress) -> dict[str, Any]:
    """What lm-eval finds of the tasks: `results`, `versions`, `n-shot` and `samples`, each by task."""
    tasks = {"tasks": dict(loaded.tasks), "groups": dict(loaded.groups)}
    with _bars_drawn_by(progress):
        found: dict[str, Any] = evaluator.evaluate(live, tasks, limit=limit, bootstrap_iters=BOOTSTRAPS)
    return found


@contextlib.contextmanager
def _bars_drawn_by(progress: Progress) -> Iterator[None]:
    """Inside, lm-eval's bars over the model's work are steps of `progress`, and its others are not drawn."""
    with contextlib.ExitStack() as replaced:
        for module in _WITH_BARS:
            replaced.enter_context(_replaced(import_module(module), "tqdm", _bar_for(progress)))
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Inside, `owner` has another value under `name`; what it had by itself comes back, its class's shows."""
    own = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


def _nothing(*_: Any, **__: Any) -> None:
    """Do nothing, whatever is asked."""


def _bar_for(progress: Progress) -> Callable[..., Any]:
    def bar(items: Any = None, *, total: int | None = None, **_: Any) -> Any:
        return items if items is not None else _Bar(progress, total or 0)

    return bar


class _Bar:
    """A bar that is told of steps, where `Progress` wants to hand them out."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._steps = progress.track(range(total), total, "scoring choices")
        next(self._steps, None)

    def update(self, n: int = 1) -> None:
        """Go on by so many steps."""
        for _ in range(n):
            next(self._steps, None)

    def close(self) -> None:
        """Nothing comes after this."""
        for _ in self._steps:
            pass
