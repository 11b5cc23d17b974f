"""A training that can go on: what was learned so far and the optimizer's moments, in one file."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from owl_compress.documents.disk import disk_errors, put_in_place
from owl_compress.documents.notes import KeptError
from owl_compress.models.tensor_file import opened_tensors

_REMEDY = "start over with --overwrite"
_MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter, besides the number of its steps."""


@dataclass
class Course:
    """How far a training is.

    Attributes:
        step: steps that are done.
        losses: of each of them, in nats.
        seconds: that they took.
    """

    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def in_tenths(self) -> tuple[float, ...]:
        """Mean loss of each tenth of the steps, or of each step where there are fewer."""
        n = min(10, len(self.losses))
        bounds = [len(self.losses) * part // n for part in range(n + 1)] if n else []
        return tuple(fmean(self.losses[a:b]) for a, b in pairwise(bounds))


def write_state(
    path: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    course: Course,
    settings: Mapping[str, Any],
) -> None:
    """Write all that it takes to go on into the file `path`, whole or not at all.

    `settings` are what must be the same then.

    Raises:
        RequestError: the disk is full, or the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"learned.{name}"] = parameter.detach().cpu().contiguous()
        for moment in _MOMENTS:
            if moment in optimizer.state[parameter]:
                tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment].cpu().contiguous()
    told = {"settings": dict(settings), **vars(course)}
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with put_in_place(path) as temporary:
        save_file(tensors, temporary, metadata={"owl-compress": json.dumps(told)})


def read_state_(
    path: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    settings: Mapping[str, Any],
    may_differ: frozenset[str] = frozenset(),
) -> Course:
    """Give parameters and optimizer what the file `path` has of them.

    Raises:
        KeptError: it cannot be read, is of another training (what differs is named), or not whole.
    """
    told = _told(path)
    _check_same(path, told["settings"], settings, may_differ)
    course = Course(told["step"], told["losses"], told["seconds"])
    with _opened(path) as tensors:
        there = set(tensors.keys())
        for name, parameter in parameters.items():
            _check_there(path, f"learned.{name}", there)
            parameter.data.copy_(_like(parameter, tensors.get_tensor(f"learned.{name}"), path, name))
            if course.step:
                for moment in _MOMENTS:
                    _check_there(path, f"{moment}.{name}", there)
                optimizer.state[parameter] = {
                    "step": torch.tensor(float(course.step)),
                    **{
                        moment: _like(parameter, tensors.get_tensor(f"{moment}.{name}"), path, name)
                        for moment in _MOMENTS
                    },
                }
    return course


def _like(parameter: nn.Parameter, tensor: Tensor, path: Path, name: str) -> Tensor:
    """The tensor on the device of its parameter, which it has to fit."""
    if tensor.shape != parameter.shape or tensor.dtype != parameter.dtype:
        raise KeptError(f"{path} has another shape or type of {name!r}: {_REMEDY}")
    return tensor.to(parameter.device)


def _check_numbers(told: Mapping[str, Any]) -> None:
    """Refuse a course that no training has taken.

    Raises:
        ValueError, TypeError: a step that is not the number of losses, or something that is no number.
    """
    is_step = isinstance(told["step"], int) and told["step"] == len(told["losses"])
    if not is_step or not isinstance(told["settings"], dict):
        raise ValueError(f"step {told['step']} of another number of losses, or settings without names")
    if not all(isinstance(one, float) for one in (*told["losses"], float(told["seconds"]))):
        raise TypeError("a loss or a time is no number")


def _told(path: Path) -> dict[str, Any]:
    with _opened(path) as tensors:
        metadata = tensors.metadata() or {}
    try:
        told: dict[str, Any] = json.loads(metadata["owl-compress"])
        told = {name: told[name] for name in ("settings", "step", "losses", "seconds")}
        _check_numbers(told)
    except (KeyError, TypeError, ValueError) as error:
        raise KeptError(f"{path} is no unfinished recovery: {_REMEDY}") from error
    return told


def _check_same(
    path: Path, then: Mapping[str, Any], now: Mapping[str, Any], may_differ: frozenset[str]
) -> None:
    for name, value in now.items():
        if name not in may_differ and then.get(name) != value:
            raise KeptError(
                f"--resume: {name} differs: {then.get(name)} in the unfinished recovery in {path.parent}, "
                f"{value} now; give what was given then, or {_REMEDY}"
            )


def _check_there(path: Path, name: str, there: set[str]) -> None:
    if name not in there:
        raise KeptError(f"{path} lacks {name!r}: {_REMEDY}")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with opened_tensors(path) as tensors:
            yield tensors
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise KeptError(f"{path} cannot be read ({reason}): {_REMEDY}") from error
