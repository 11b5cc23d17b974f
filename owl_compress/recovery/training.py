"""The training itself: AdamW on windows of a text, step by step, and what is left of it when it is ended."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from time import monotonic
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from owl_compress.errors import RequestError
from owl_compress.interrupts import undisturbed
from owl_compress.models.state import is_finite
from owl_compress.progress import SILENT, Progress
from owl_compress.recovery.contract import Trainee
from owl_compress.recovery.losses import Loss
from owl_compress.recovery.saved_state import Course, read_state_, write_state
from owl_compress.recovery.schedule import Order, learning_rate_share
from owl_compress.walk.ranks import Ranks

_BETAS = (0.9, 0.95)
_LONGEST_GRADIENT = 1.0
"""Norm that the gradient of a step is cut to."""

_SAVES = 10
"""State is saved so many times at least, evenly spread over the steps."""


@dataclass(frozen=True)
class TrainingPlan:
    """What is trained on, for how long, and how fast.

    Attributes:
        ids: windows of tokens, int64 [sequences, seq_len], on the host.
        steps: of the optimizer.
        batch_size: sequences in a forward pass.
        passes: forward passes in a step; a step sees `batch_size` * `passes` sequences.
        learning_rate: the highest.
        warm_up: share of the steps in which it rises.
        seed: of the order of sequences, and of dropout.
        autocast: type that products are computed in; None for that of the weights.
    """

    ids: Tensor
    steps: int
    batch_size: int
    passes: int
    learning_rate: float
    warm_up: float
    seed: int
    autocast: torch.dtype | None = None

    @property
    def n_tokens(self) -> int:
        """That are seen in all."""
        return self.steps * self.passes * self.batch_size * self.ids.shape[1]


@dataclass(frozen=True)
class Keeping:
    """Where an unfinished training is kept, and what must be the same when it goes on.

    Attributes:
        path: of the state; None keeps nothing.
        settings: by name.
        resumes: whether to go on from what is there.
    """

    path: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    resumes: bool = False


_ALONE = Ranks()
_NOTHING_KEPT = Keeping()


def train_(
    trainee: Trainee,
    plan: TrainingPlan,
    loss: Loss,
    *,
    device: torch.device,
    ranks: Ranks = _ALONE,
    keeping: Keeping = _NOTHING_KEPT,
    progress: Progress = SILENT,
    say: Callable[[str], None] = lambda _: None,
) -> Course:
    """Train what the `trainee` has to be trained, in place; its model lies on `device` already.

    Every step is a function of the state before it and its own number, so that a training that was ended and
    resumed comes to the same as one that was not. The random numbers of the caller are left as they were.

    Raises:
        RequestError: a loss or a gradient that is no number: the last state that was saved is kept, and
            named; or a state that is of another training.
    """
    parameters = list(trainee.parameters.values())
    optimizer = torch.optim.AdamW(parameters, lr=plan.learning_rate, betas=_BETAS, weight_decay=0.0)
    course = Course()
    if keeping.resumes and keeping.path is not None:
        course = read_state_(
            keeping.path, trainee.parameters, optimizer, keeping.settings, frozenset({"learning_rate"})
        )
    work = _Work(trainee, plan, loss, device, ranks, optimizer)
    every = max(1, plan.steps // _SAVES)
    saver = _Saver(trainee, optimizer, keeping, ranks, plan.steps, every, saved=course.step or None)
    steps = range(course.step, plan.steps)
    with work.as_trained() as model, saver.kept_at_the_end(course, say):
        for step in progress.track(steps, total=len(steps), what="training"):
            start = monotonic()
            value = work.gradient(model, step)
            if not math.isfinite(value):
                saver.forget()
                raise _diverged(step, plan, keeping, saver.saved)
            with undisturbed():
                work.update(step)
                course.step, course.seconds = step + 1, course.seconds + monotonic() - start
                course.losses.append(value)
            if not saver.save_now_and_then(course):
                saver.forget()
                raise _diverged(step, plan, keeping, saver.saved)
            if course.step % saver.every == 0:
                say(_told(course, plan))
    return course


@dataclass
class _Work:
    """One step of the training, in its parts."""

    trainee: Trainee
    plan: TrainingPlan
    loss: Loss
    device: torch.device
    ranks: Ranks
    optimizer: torch.optim.Optimizer

    @contextmanager
    def as_trained(self) -> Iterator[Any]:
        """The model that is called: in training mode, and where there are several processes, theirs."""
        model: Any = self.trainee.model
        model.train()
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            yield DistributedDataParallel(model) if self.ranks.of > 1 else model

    def gradient(self, model: Any, step: int) -> float:
        """Add up the gradient of a step; its loss, or a number that is none where the gradient has one."""
        self.optimizer.zero_grad(set_to_none=True)
        order = Order(len(self.plan.ids), self.plan.batch_size * self.plan.passes, self.plan.seed)
        ids = torch.split(self.plan.ids[order.indices(step)], self.plan.batch_size)
        mine = self.ranks.share(self.plan.passes)
        total = torch.zeros((), device=self.device)
        for place in mine:
            torch.manual_seed((self.plan.seed * 2**32 + step * 2**16 + place) % 2**63)  # dropout
            is_last = place == mine[-1]
            with nullcontext() if is_last or self.ranks.of == 1 else model.no_sync(), self._computed_as():
                batch = ids[place].to(self.device)
                value = self.loss(model(input_ids=batch, use_cache=False).logits, batch) / len(mine)
                torch.autograd.backward(value)
            total += value.detach()
        self.ranks.add_up_([total])
        total /= self.ranks.of
        for name, kept in self.trainee.kept.items():
            gradient = self.trainee.parameters[name].grad
            if gradient is not None:
                gradient.mul_(kept)
        norm = torch.nn.utils.clip_grad_norm_(list(self.trainee.parameters.values()), _LONGEST_GRADIENT)
        return float(total if torch.isfinite(norm) else norm)

    def _computed_as(self) -> AbstractContextManager[Any]:
        if self.plan.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.plan.autocast)

    def update(self, step: int) -> None:
        """Take the step that the gradient says."""
        share = learning_rate_share(step, self.plan.steps, self.plan.warm_up)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate * share
        self.optimizer.step()


@dataclass
class _Saver:
    """Who saves the state now and then; `saved` is the last step that was saved, None for none."""

    trainee: Trainee
    optimizer: torch.optim.Optimizer
    keeping: Keeping
    ranks: Ranks
    n_steps: int
    every: int
    saved: int | None = None
    is_over: bool = False

    def save_now_and_then(self, course: Course) -> bool:
        """Save after so many steps; False where there is nothing worth it, a value being no number."""
        if course.step % self.every and course.step < self.n_steps:
            return True
        if not all(is_finite(one) for one in self.trainee.parameters.values()):
            return False
        self._save(course)
        return True

    def forget(self) -> None:
        """Keep what was saved last, and not what there is now."""
        self.is_over = True

    @contextmanager
    def kept_at_the_end(self, course: Course, say: Callable[[str], None]) -> Iterator[None]:
        """Save what is there when the block is interrupted."""
        try:
            yield
        except BaseException:
            if not self.is_over and course.step and self.saved != course.step:
                with undisturbed():
                    self._save(course)
            if self.saved is not None and not self.is_over:
                say(f"step {self.saved} is kept in {self.keeping.path}: go on from there with --resume")
            raise

    def _save(self, course: Course) -> None:
        if self.keeping.path is None or not self.ranks.leads:
            return
        write_state(self.keeping.path, self.trainee.parameters, self.optimizer, course, self.keeping.settings)
        self.saved = course.step


def _told(course: Course, plan: TrainingPlan) -> str:
    """How a training goes."""
    speed = plan.n_tokens * course.step / plan.steps / course.seconds
    recent = fmean(course.losses[-max(1, plan.steps // _SAVES) :])
    return f"step {course.step} of {plan.steps}: loss {recent:.4f}, {speed:,.0f} tokens/s"


def _diverged(step: int, plan: TrainingPlan, keeping: Keeping, saved: int | None) -> RequestError:
    told = f"the loss is no number any more in step {step + 1} of {plan.steps}"
    if saved is None or keeping.path is None:
        return RequestError(f"{told}: set a smaller --learning-rate than {plan.learning_rate:g}")
    return RequestError(
        f"{told}: what was learned up to step {saved} is kept in {keeping.path}: go on from there with "
        f"--resume and a smaller --learning-rate than {plan.learning_rate:g}, or start over with --overwrite"
    )
