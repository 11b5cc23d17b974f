"""What the stages of a run will take of memory and disk, told before they start; too much is refused.

Counted from shapes, so that a model on the meta device is told of as well as one that is loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from owl_compress.compression.contract import AnyBackend
from owl_compress.compression.prediction import matrix_bytes, walk_bytes
from owl_compress.data.windows import TokenWindows
from owl_compress.device import free_device_bytes
from owl_compress.documents.measurements import StageNeeds
from owl_compress.documents.recipe_fields import ActivationsName
from owl_compress.errors import RequestError
from owl_compress.memory import free_host_bytes
from owl_compress.models.limits import hidden_size
from owl_compress.models.residence import is_streamed
from owl_compress.models.state import parameter_device
from owl_compress.models.structure import ModelStructure
from owl_compress.pages.words import size_in_words
from owl_compress.pipeline.session import Session
from owl_compress.walk.input_statistics import SecondMoments, Statistic
from owl_compress.walk.states import place_of, room_on_device, room_on_host
from owl_compress.walk.widening import wider_dtype

Waiting = Literal["device", "host", "disk"]
"""Where weights wait until they are worked on."""

_FLOAT32 = 4
_COPIES_OF_LOGITS = 3
"""Of a chunk of logits, in float32: themselves, their exponentials, and what the loss makes of them."""
_STATES_WHILE_REPLACED = 2
"""Hidden states that are kept for going on are there twice while they are replaced."""
_CHUNK_BYTES = 64 * 2**20
"""Logits are widened so many bytes at a time."""


@dataclass(frozen=True)
class Weights:
    """Bytes of a model's weights: all of them, those outside its blocks, and those of its largest block.

    `ahead` are those of a block that is read while another is at work, `staged` of the memory that it goes
    through on its way to a device: pinned, for one tensor at a time, which takes up to twice its size.
    """

    total: int
    outside: int
    block: int
    ahead: int
    staged: int

    @classmethod
    def of(cls, model: nn.Module, structure: ModelStructure) -> "Weights":
        """Count them; shared ones once."""
        blocks = [_n_bytes(site.module) for site in structure.blocks]
        total = _n_bytes(model)
        tensors = [one for site in structure.blocks for one in site.module.parameters()]
        staged = 2 * max(one.numel() * one.element_size() for one in tensors)
        return cls(total, total - sum(blocks), max(blocks), max(blocks) if len(blocks) > 1 else 0, staged)

    def waiting(self, where: Waiting) -> tuple[int, int]:
        """Bytes of the host and of the device that they take while nobody works on them."""
        return {"device": (0, self.total), "host": (self.total, 0), "disk": (self.outside, 0)}[where]


def _n_bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


@dataclass(frozen=True)
class Course:
    """How a run goes, as far as its needs depend on it.

    Attributes:
        backend: who compresses.
        waiting: where weights wait.
        has_device: whether blocks run elsewhere than on the host.
        calibration: windows of the backend; None for one that reads none.
        measuring: windows that importance is measured on; None if it is not.
        held_out: windows of the evaluation; None if there is none.
        batch_size: sequences per forward pass.
        keeps_blocks: whether each block that is done is kept on disk until all are.
        checkpoint_bytes: of the outcome.
        activations: where hidden states wait between blocks.
        room_for_states: bytes that they may take on the device, where it is for `auto` to find a place.
        room_on_host: the same of the host; None where the system does not tell.
        widens: whether a block is computed in float32 beside its own weights, see `walk.widening`.
        in_turns: whether linears of a block are compressed in turn, see `walk.turns`.
    """

    backend: AnyBackend
    waiting: Waiting
    has_device: bool
    calibration: TokenWindows | None = None
    measuring: TokenWindows | None = None
    held_out: TokenWindows | None = None
    batch_size: int = 1
    keeps_blocks: bool = False
    checkpoint_bytes: int = 0
    activations: ActivationsName = "auto"
    room_for_states: int | None = None
    room_on_host: int | None = None
    widens: bool = False
    in_turns: bool = False

    def place_of_states(self, n_bytes: int) -> Waiting:
        """Where so many bytes of hidden states wait."""
        room = self.room_for_states if self.has_device else 0
        return place_of(n_bytes, self.activations, room, self.room_on_host)


def needs_of(model: Any, structure: ModelStructure, course: Course) -> tuple[StageNeeds, ...]:
    """The needs of each stage, in order."""
    weights = Weights.of(model, structure)
    stages = []
    if course.measuring is not None:
        stages.append(_of_walk("measuring", model, structure, course, SecondMoments))
    if course.held_out is not None:
        stages.append(_of_evaluation(model, weights, course, course.held_out))
    stages.append(_of_walk("compressing", model, structure, course, course.backend.statistic))
    host, _ = weights.waiting(course.waiting)
    # Finished blocks are linked into the output where weights wait on disk; else they are there twice.
    twice = course.checkpoint_bytes if course.keeps_blocks and course.waiting != "disk" else 0
    stages.append(
        StageNeeds(
            stage="writing",
            host_bytes=host + weights.block,
            device_bytes=0,
            disk_bytes=course.checkpoint_bytes + twice,
        )
    )
    return tuple(stages)


def _of_walk(
    stage: str, model: Any, structure: ModelStructure, course: Course, statistic: type[Statistic] | None
) -> StageNeeds:
    """A pass over the blocks: one of them at work, statistics, one batch, and hidden states in between."""
    weights = Weights.of(model, structure)
    compresses = stage == "compressing"
    windows = course.calibration if compresses else course.measuring
    working, activations = walk_bytes(model, structure, statistic, windows, course.batch_size)
    if course.widens and windows is not None:  # bfloat16 as float32 beside itself, before matrices are made
        largest = max(structure.blocks, key=lambda block: block.n_weights)
        working += max(0, 2 * weights.block - matrix_bytes(largest))
    if compresses and course.in_turns:
        working += held_in_turns(model, structure, course)
    done = weights.total - weights.outside if compresses else _STATES_WHILE_REPLACED * activations
    return _placed(stage, weights, course, working, activations, done if course.keeps_blocks else 0)


def held_in_turns(model: Any, structure: ModelStructure, course: Course) -> int:
    """What all batches hold in the middle of a block, about; none where they are run anew for every turn.

    For each token that is the stream past the linears, what the widest of them has given and the widest is
    about to read, and the scores of attention where it keeps them.
    """
    if course.calibration is None:
        return 0
    hidden, n_tokens = hidden_size(model), course.calibration.ids.numel()
    element = next(model.parameters()).element_size()
    activations = n_tokens * hidden * element
    shapes = [linear.shape for block in structure.blocks for linear in block.linears]
    widths = hidden + max(rows for rows, _ in shapes) + max(columns for _, columns in shapes)
    config = model.config.get_text_config()
    if getattr(config, "_attn_implementation", None) == "eager":
        widths += getattr(config, "num_attention_heads", 1) * course.calibration.record.seq_len
    held = n_tokens * widths * (_FLOAT32 if course.widens else element)
    elsewhere = ("host", "disk") if course.has_device else ("disk",)
    room = course.room_for_states if course.has_device else course.room_on_host
    is_held = course.place_of_states(activations) not in elsewhere and (room is None or held <= room)
    return held if is_held else 0


def _of_evaluation(model: Any, weights: Weights, course: Course, windows: TokenWindows) -> StageNeeds:
    """One batch through all blocks at a time; from disk, all batches through one block at a time."""
    element = next(model.parameters()).element_size()
    n_logits = course.batch_size * windows.record.seq_len * _vocabulary(model)
    logits, chunk = n_logits * element, _COPIES_OF_LOGITS * min(_CHUNK_BYTES, n_logits * _FLOAT32)
    states = windows.ids.numel() * hidden_size(model) * element if course.waiting == "disk" else 0
    visiting = 0 if course.waiting == "device" or not course.has_device else weights.outside
    return _placed("evaluating", weights, course, weights.block + logits + chunk + visiting, states, 0)


def _vocabulary(model: Any) -> int:
    """Logits of one position."""
    head = model.get_output_embeddings() or model.get_input_embeddings()
    return int(head.weight.shape[0])


def _placed(
    stage: str, weights: Weights, course: Course, working: int, between: int, disk: int
) -> StageNeeds:
    """`working` bytes where blocks run, `between` them hidden states, beside the weights that wait."""
    host, device = weights.waiting(course.waiting)
    place = course.place_of_states(between)
    if place == "disk":
        disk, between = disk + between, 0
    if course.has_device:
        if course.waiting == "device":
            working -= weights.block  # it is there already
        else:
            working += weights.ahead
            host += weights.staged
        states_on_host = between if place == "host" else 0
        return StageNeeds(
            stage=stage,
            host_bytes=host + states_on_host,
            device_bytes=device + working + between - states_on_host,
            disk_bytes=disk,
        )
    working += weights.ahead if course.waiting == "disk" else -weights.block
    return StageNeeds(
        stage=stage, host_bytes=host + device + working + between, device_bytes=0, disk_bytes=disk
    )


def course_of(session: Session, checkpoint_bytes: int = 0, *, resume: bool = False) -> Course:
    """How a session will go."""
    model, device = session.loaded.model, session.request.device
    streams, has_device = is_streamed(model), device.type != "cpu"
    on_device = has_device and parameter_device(model).type == device.type
    return Course(
        session.request.backend,
        "disk" if streams else "device" if on_device else "host",
        has_device,
        session.calibration if session.request.backend.statistic is not None else None,
        session.measuring,
        session.held_out,
        session.recipe.batch_size,
        keeps_blocks=streams or resume,
        checkpoint_bytes=checkpoint_bytes,
        activations=session.recipe.activations,
        room_for_states=room_on_device(device) if has_device else None,
        room_on_host=room_on_host(),
        widens=wider_dtype(session.structure.blocks[0].module, device) is not None,
        in_turns=session.request.statistics == "true-sequential",
    )


def needs_of_session(
    session: Session, checkpoint_bytes: int | None = None, *, resume: bool = False
) -> tuple[StageNeeds, ...]:
    """The needs of a session; the checkpoint is as large as the model where nobody knows better."""
    model, structure = session.loaded.model, session.structure
    n_bytes = _n_bytes(model) if checkpoint_bytes is None else checkpoint_bytes
    return needs_of(model, structure, course_of(session, n_bytes, resume=resume))


def check_room(session: Session, needs: Sequence[StageNeeds]) -> None:
    """Refuse a stage that memory has no room for, as far as the system tells how much there is.

    The weights that wait are there already.

    Raises:
        RequestError: naming the stage, what it takes, what is free, and the option that would make it fit.
    """
    course = course_of(session)
    model, device = session.loaded.model, session.request.device
    host, on_device = Weights.of(model, session.structure).waiting(course.waiting)
    if not course.has_device:
        host += on_device
    free_host, free_device = free_host_bytes(), free_device_bytes(device) if course.has_device else 0
    remedy = "a smaller --batch-size, fewer --samples or a shorter --seq-len"
    for one in needs:
        beyond = one.host_bytes - host
        if 0 < free_host < beyond:
            other = remedy if course.waiting == "disk" else f"--offload disk, or {remedy}"
            other = f"--activations disk, {other}" if course.activations == "host" else other
            raise RequestError(_no_room(one.stage, beyond, free_host, "host memory", other))
        beyond = one.device_bytes - on_device
        if course.has_device and 0 < free_device < beyond:
            other = f"--offload host, or {remedy}" if course.waiting == "device" else remedy
            other = f"--activations host, {other}" if course.activations == "device" else other
            raise RequestError(_no_room(one.stage, beyond, free_device, f"memory on {device}", other))


def _no_room(stage: str, wanted: int, free: int, what: str, remedy: str) -> str:
    return (
        f"{stage} takes about {size_in_words(wanted)} of {what} beside the weights, and "
        f"{size_in_words(free)} are free: use {remedy}"
    )


def in_words(needs: Sequence[StageNeeds], device: torch.device) -> str:
    """One line for who waits."""
    told = []
    for one in needs:
        parts = [f"{size_in_words(one.host_bytes)} host"]
        parts += [f"{size_in_words(one.device_bytes)} {device}"] if one.device_bytes else []
        parts += [f"{size_in_words(one.disk_bytes)} disk"] if one.disk_bytes else []
        told.append(f"{one.stage} {' + '.join(parts)}")
    return f"estimated peaks: {'; '.join(told)}"
