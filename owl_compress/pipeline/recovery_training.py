"""All that a training takes: the model, windows, a teacher; and what is recorded of it."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from owl_compress.checkpoints.identity import checkpoint_key
from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.data.text import Chats, Text
from owl_compress.data.training import TrainingWindows, training_windows
from owl_compress.data.windows import TokenWindows, read_texts, resolve_bos
from owl_compress.device import peak_device_bytes
from owl_compress.documents.measurements import PerplexityRecord
from owl_compress.documents.outputs import ADAPTER_FOLDER
from owl_compress.documents.recovery import RecoveryRecord
from owl_compress.documents.versions import versions
from owl_compress.errors import RequestError
from owl_compress.memory import peak_host_bytes
from owl_compress.models.limits import check_vocabulary, resolve_seq_len
from owl_compress.models.state import activations_recomputed
from owl_compress.models.structure import ModelStructure, find_structure
from owl_compress.pipeline.beside import Beside, check_same_vocabulary
from owl_compress.pipeline.recovery_request import DEFAULT_APART, RecoveryRequest
from owl_compress.pipeline.recovery_subject import Subject
from owl_compress.pipeline.windows import held_out_windows
from owl_compress.progress import Progress, shown
from owl_compress.recovery.contract import Trainee
from owl_compress.recovery.losses import Loss, distillation_loss, next_token_loss
from owl_compress.recovery.saved_state import Course
from owl_compress.recovery.training import Keeping, TrainingPlan, train_
from owl_compress.walk.ranks import Ranks

Say = Callable[[str], None]


@dataclass(frozen=True)
class Training:
    """A model, its windows and its teacher: all that training it takes."""

    request: RecoveryRequest
    loaded: LoadedModel
    structure: ModelStructure
    windows: TokenWindows
    held_out: TokenWindows
    teacher: LoadedModel | None
    device: torch.device

    @classmethod
    def prepare(
        cls, subject: Subject, request: RecoveryRequest, device: torch.device, progress: Progress, say: Say
    ) -> "Training":
        """Read the texts, load the models and put them on the device.

        Raises:
            RequestError: too little text, or a model that cannot be loaded.
        """
        text, held_out_text = read_texts(request.text, request.held_out)
        loaded = shown(progress, "loading", partial(subject.load, _loading_dtype(request, device)))
        structure = find_structure(loaded.model)
        found = _windows(request, loaded, structure, text, progress)
        held_out = found.apart
        if request.held_out is not None:
            held_out = held_out_windows(loaded, structure, request.held_out, held_out_text, progress)
        if held_out is None:
            raise TypeError("windows are held apart where no other text is named")
        teacher = _teacher(request, loaded, say)
        loaded.model.to(device)
        if teacher is not None:
            teacher.model.to(device)
        return cls(request, loaded, structure, found.training, held_out, teacher, device)

    def run(self, keeping: Keeping, ranks: Ranks, progress: Progress, say: Say) -> tuple[Course, Trainee]:
        """Train the model, in place."""
        request = self.request
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(request.text.seed % 2**63)  # what a method draws to begin with
            trainee = request.method.prepare_(self.loaded.model, self.structure)
        say(
            f"{trainee.n_trained:,} values are trained for {self.plan.steps:,} steps of "
            f"{request.sequences_per_step} x {self.windows.record.seq_len} tokens"
        )
        model = self.loaded.model
        with activations_recomputed(model) if request.options.checkpointing else nullcontext():
            course = train_(
                trainee,
                self.plan,
                self._loss,
                device=self.device,
                ranks=ranks,
                keeping=keeping,
                progress=progress,
                say=say,
            )
        return course, trainee

    @property
    def plan(self) -> TrainingPlan:
        """What is trained on, for how long, and how fast."""
        request = self.request
        return TrainingPlan(
            self.windows.ids,
            request.steps(self.windows.record.seq_len),
            request.batch_size,
            request.passes,
            request.learning_rate,
            request.options.warm_up,
            request.text.seed,
            None if _computed_in(request, self.device) == "float32" else torch.bfloat16,
        )

    @property
    def _loss(self) -> Loss:
        return next_token_loss if self.teacher is None else distillation_loss(self.teacher.model)

    def settings(self, ranks: Ranks) -> dict[str, Any]:
        """What must be the same where a training goes on."""
        request, record = self.request, self.windows.record
        return {
            "model": checkpoint_key(str(request.folder)),
            "method": request.method.name,
            **{f"option {name}": value for name, value in request.method_parameters.items()},
            "loss": request.options.loss,
            "teacher": self.teacher.source if self.teacher else None,
            "seed": request.text.seed,
            "steps": self.plan.steps,
            "sequences per step": request.sequences_per_step,
            "batch_size": request.batch_size,
            "learning_rate": request.learning_rate,
            "warm_up": request.options.warm_up,
            "text": record.token_ids_sha256,
            "dtype": _computed_in(request, self.device),
            "processes": ranks.of,
            **{f"version of {name}": value for name, value in versions().items()},
        }

    def record(
        self,
        course: Course,
        trainee: Trainee,
        ranks: Ranks,
        before: PerplexityRecord,
        after: PerplexityRecord,
    ) -> RecoveryRecord:
        """What is written of it."""
        request, plan = self.request, self.plan
        return RecoveryRecord(
            method=request.method.name,
            parameters=request.method_parameters,
            loss=request.options.loss,
            teacher=self.teacher.id if self.teacher else None,
            text=self.windows.record,
            tokens=plan.n_tokens,
            steps=plan.steps,
            sequences_per_step=request.sequences_per_step,
            learning_rate=plan.learning_rate,
            warm_up=plan.warm_up,
            seed=plan.seed,
            trained_parameters=trainee.n_trained,
            adapter=ADAPTER_FOLDER if trainee.write_adapter else None,
            before=before,
            after=after,
            losses=course.in_tenths,
            seconds=course.seconds,
            tokens_per_second=plan.n_tokens / course.seconds,
            processes=ranks.of,
            peak_device_bytes=peak_device_bytes(self.device),
            peak_host_bytes=peak_host_bytes(),
            versions=versions(),
        )


def _loading_dtype(request: RecoveryRequest, device: torch.device) -> str:
    """Weights that are trained lie in float32; others as they compute fastest."""
    return "float32" if request.method.changes_weights else _computed_in(request, device)


def _computed_in(request: RecoveryRequest, device: torch.device) -> str:
    """The type of products: what was asked for, else bfloat16 on a GPU that has it, and float32 elsewhere."""
    if request.dtype != "auto":
        return request.dtype
    has_it = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return "bfloat16" if has_it else "float32"


def _windows(
    request: RecoveryRequest,
    loaded: LoadedModel,
    structure: ModelStructure,
    text: Text | Chats | None,
    progress: Progress,
) -> TrainingWindows:
    if text is None:
        raise TypeError("a recovery names a text")
    seq_len = resolve_seq_len(request.text.seq_len, loaded.model.config)
    found = training_windows(
        loaded.tokenizer,
        text,
        samples=request.steps(seq_len) * request.sequences_per_step,
        apart=0 if request.held_out else request.max_windows or DEFAULT_APART,
        seq_len=seq_len,
        seed=request.text.seed,
        bos=resolve_bos(request.text.bos, structure.bos),
        progress=progress,
    )
    check_vocabulary(loaded.model, found.training.ids)
    if request.sequences_per_step > len(found.training):
        raise RequestError(
            f"a step of {request.sequences_per_step} sequences is more than the text has windows, "
            f"{len(found.training)}: give more text, or a smaller --batch-size or --accumulate"
        )
    return found


def _check_same_logits(student: LoadedModel, teacher: LoadedModel) -> None:
    """Refuse a teacher whose predictions are of more or fewer ids, as of vocabularies that were filled up.

    Raises:
        RequestError: with both numbers.
    """
    ours, theirs = (one.model.get_input_embeddings().weight.shape[0] for one in (student, teacher))
    if ours != theirs:
        raise RequestError(
            f"{teacher.source} has {theirs:,} ids in its vocabulary and {student.source} {ours:,}: name a "
            "--teacher with as many, such as the dense model that the folder was made from"
        )


def _teacher(request: RecoveryRequest, loaded: LoadedModel, say: Say) -> LoadedModel | None:
    """The dense model that is learned from.

    Raises:
        RequestError: it cannot be loaded, or has another vocabulary.
    """
    if request.teacher is None:
        return None
    try:
        teacher = Beside(request.teacher).load(loaded, say)
        check_same_vocabulary(loaded, teacher)
        _check_same_logits(loaded, teacher)
    except RequestError as error:
        raise RequestError(
            str(error).replace("--against original", "--loss distill").replace("--against", "--teacher")
        ) from error
    for parameter in teacher.model.parameters():
        parameter.requires_grad = False
    return teacher
