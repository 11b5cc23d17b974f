"""Recovery of a compressed model, from its folder to another: train, write, count, evaluate."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from owl_compress.arguments import checked
from owl_compress.consent import NO_CONSENT, Consent
from owl_compress.documents.disk import disk_errors
from owl_compress.documents.measurements import PerplexityRecord
from owl_compress.documents.output_folders import check_output_folder, output_folder
from owl_compress.documents.paths import given_path
from owl_compress.documents.recovery import RecoveryRecord
from owl_compress.documents.result import Result
from owl_compress.documents.temporary import remove_dead
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError
from owl_compress.evaluation.perplexity import perplexity
from owl_compress.interrupts import is_interrupt
from owl_compress.memory import memory_errors
from owl_compress.pipeline.beside import is_same
from owl_compress.pipeline.recovered_folder import (
    check_as_compressed,
    count_bytes,
    loaded_again,
    write_learned_weights,
    write_recovered_documents,
    write_weights_beside,
)
from owl_compress.pipeline.recovery_request import RecoveryRequest
from owl_compress.pipeline.recovery_subject import Subject
from owl_compress.pipeline.recovery_training import Say, Training
from owl_compress.pipeline.unfinished import (
    BOTH,
    STATE,
    clean,
    discard,
    folder_beside,
    forget,
    held,
    holds_nothing,
    start_over,
)
from owl_compress.progress import SILENT, Progress
from owl_compress.recovery.contract import Trainee
from owl_compress.recovery.training import Keeping
from owl_compress.walk.ranks import Ranks

_REMEDIES = (
    "use a smaller --batch-size or --seq-len, --checkpointing, --method lora or bias, or a device with more "
    "memory"
)


@checked
def recover(
    folder: Path | str,
    out: Path | str,
    data: Path | str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
    say: Say = lambda _: None,
    consent: Consent = NO_CONSENT,
    **options: Any,
) -> Result | None:
    """Train the compressed model in `folder` on the text `data`, and write it to `out`; whole or not at all.

        recover("OUT", "OUT2", "train.txt", method="lora", loss="distill", tokens="300k")

    What was compressed stays so: zeros are zeros, N:M patterns and widths are what they were, which is
    counted from the tensors that were written. Under torchrun the sequences of each step are divided among
    the processes, of which the first writes.

    Args:
        folder: that a compression of ours wrote, with weights and not codes in it.
        out: folder to write, new or empty.
        data: text to train on.
        resume: go on where an earlier call for the same `out` was ended.
        overwrite: replace an output of ours that is there, when the new one is whole.
        progress: who is told how far a step is.
        say: who is told remarks.
        consent: what the model in the folder may run while it loads.
        options: as on the command line: method and its own options, those of
            `owl_compress.pipeline.recovery_request.RecoveryOptions`, seq_len, bos, text_field, chat_template,
            seed, max_windows, batch_size, device, dtype.

    Returns:
        The result that was written, the last of whose `recoveries` is this one; None in every process but
        the first.

    Raises:
        RequestError: no folder of ours, codes, a method that would change quantized weights, too little
            text, a loss that is no number any more, or settings that differ from those of what is resumed.
    """
    request = RecoveryRequest.of(given_path(folder), str(data), options, consent)
    with memory_errors("training", _REMEDIES):
        return carry_out(
            request, given_path(out), resume=resume, overwrite=overwrite, progress=progress, say=say
        )


def carry_out(
    request: RecoveryRequest,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
    say: Say = lambda _: None,
) -> Result | None:
    """Do what `request` asks for; see `recover`."""
    subject = Subject.of(request)
    ranks = Ranks.from_environment()
    ranks.share(request.passes)
    if not ranks.leads:
        progress, say = SILENT, lambda _: None
    if resume and (done := _finished(out, subject.result, request)) is not None:
        if ranks.leads:
            forget(out)
        say(f"{out} is finished already")
        return done if ranks.leads else None
    check_output_folder(out, overwrite=overwrite, inputs=[request.folder])
    _check_unfinished(out, resume=resume, overwrite=overwrite)
    device, state = request.device, folder_beside(out) / STATE
    if resume and not state.exists():
        say(f"nothing to resume ({state} is not there): starting at the first step")
    with ExitStack() as stack:
        with ranks.joined(device):
            if ranks.leads:
                stack.enter_context(_kept_until_whole(out, overwrite=overwrite))
            training = Training.prepare(subject, request, device, progress, say)
            before = perplexity(training.loaded.model, training.held_out, device=device, progress=progress)
            keeping = Keeping(state, training.settings(ranks), resume and state.exists())
            course, trainee = training.run(keeping, ranks, progress, say)
        if not ranks.leads:
            return None
        # Alone from here on: what is evaluated now waits for nobody.
        record = partial(training.record, course, trainee, ranks, before)
        result = _write(subject, training, trainee, out, record, overwrite=overwrite, progress=progress)
    say(f"wrote {out}")
    return result


@contextmanager
def _kept_until_whole(out: Path, *, overwrite: bool) -> Iterator[None]:
    """Hold the folder of what is unfinished until the output is in its place, and then remove it.

    With `overwrite` all that was in it goes at once.

    Raises:
        RequestError: another process makes the same output.
    """
    folder = folder_beside(out)
    with disk_errors(folder):
        if overwrite and folder.exists():
            with held(out):
                start_over(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with held(out):
            clean(folder)
            try:
                yield
            except BaseException as error:
                if holds_nothing(folder):
                    shutil.rmtree(folder, ignore_errors=True)
                elif is_interrupt(error):
                    kept = f"what is done is kept in {folder}"
                    raise KeyboardInterrupt(f"interrupted: {kept}: go on with --resume") from error
                raise
            discard(folder)


def _finished(out: Path, source: Result, request: RecoveryRequest) -> Result | None:
    """The result of `out` where that is this recovery of the same compression.

    Raises:
        RequestError: it is another one; the first option that differs is named.
    """
    path = out / "result.json"
    if not path.is_file():
        return None
    found = Result.read(path)
    if found.plan != source.plan or len(found.recoveries) <= len(source.recoveries):
        return None
    for name, (there, asked) in _told_and_asked(found.recoveries[-1], request).items():
        if there != asked:
            raise RequestError(
                f"{out} is finished, with {name} {there}, and {asked} is asked for: name another folder, or "
                "replace it with --overwrite in the place of --resume"
            )
    return found


def _told_and_asked(done: RecoveryRecord, request: RecoveryRequest) -> dict[str, tuple[object, object]]:
    """What a record tells of a recovery and what is asked for, as far as no model is needed to tell."""
    text = request.text
    source = _as_told(text.source, done.text.source)
    held_out = _as_told(request.held_out.source if request.held_out else text.source, done.after.data)
    return {
        "--method": (done.method, request.method.name),
        **{
            f"--{name.replace('_', '-')}": (done.parameters.get(name), value)
            for name, value in request.method_parameters.items()
        },
        "--loss": (done.loss, request.options.loss),
        "--teacher": (done.teacher, _as_told(request.options.teacher, done.teacher)),
        "--held-out": (done.after.data, held_out),
        "--bos": (done.text.bos, done.text.bos if text.bos == "auto" else text.bos),
        "--data": (done.text.source, source),
        "--seed": (done.seed, text.seed),
        "--seq-len": (done.text.seq_len, text.seq_len or done.text.seq_len),
        "--learning-rate": (done.learning_rate, request.learning_rate),
        "--warm-up": (done.warm_up, request.options.warm_up),
        "sequences in a step": (done.sequences_per_step, request.sequences_per_step),
        "steps": (done.steps, request.steps(done.text.seq_len)),
    }


def _as_told(asked: str | None, told: str | None) -> str | None:
    """What is asked for; as a record tells it where that is the same, or where nothing is asked for."""
    return told if asked is None or (told is not None and is_same(told, asked)) else asked


def _check_unfinished(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse to begin anew where something unfinished would be lost.

    Raises:
        RequestError: there is something.
    """
    folder = folder_beside(out)
    remove_dead(folder.parent, folder.name)
    if resume and overwrite:
        raise RequestError(BOTH)
    if folder.is_file():
        raise RequestError(f"{folder} was left by an earlier version, which kept one file: remove it")
    if (folder / STATE).exists() and not resume and not overwrite:
        raise RequestError(
            f"an unfinished recovery lies in {folder}: go on with --resume, or start over with --overwrite"
        )
    if not (folder / STATE).exists() and not holds_nothing(folder) and not overwrite:
        raise RequestError(
            f"{folder} holds what was not begun by recover: finish that with the command that began it, or "
            "name another output"
        )


def _write(
    subject: Subject,
    training: Training,
    trainee: Trainee,
    out: Path,
    record: Callable[[PerplexityRecord], RecoveryRecord],
    *,
    overwrite: bool,
    progress: Progress,
) -> Result:
    """Write the folder, count its tensors, and evaluate it as it was written."""
    request, source = subject.request, subject.request.folder
    trusts = request.consent.trust_remote_code
    with output_folder(out, overwrite=overwrite) as folder:
        stored, notes = training.loaded, tuple[str, ...]()
        if trainee.write_adapter is not None:
            write_weights_beside(source, folder, trainee)
        else:
            stored = subject.load("auto")
            notes = write_learned_weights(stored, folder, subject.form, trainee.learned())
        check_as_compressed(source, folder, subject.plan, trust_remote_code=trusts)
        again = loaded_again(folder, training.loaded.dtype, trust_remote_code=trusts)
        after = perplexity(again.model, training.held_out, device=training.device, progress=progress)
        n_bytes = count_bytes(folder)
        totals: dict[str, float] = {"bytes_on_disk": n_bytes}
        if all(step.unit is not Unit.BITS for step in subject.result.as_earlier):
            totals["bits_per_weight"] = 8 * n_bytes / subject.result.totals.n_params_after
        result = subject.result.model_copy(
            update={
                "recoveries": (*subject.result.recoveries, record(after)),
                "totals": subject.result.totals.model_copy(update=totals),
                "notes": tuple(dict.fromkeys((*subject.result.notes, *notes))),
            }
        )
        write_recovered_documents(source, out, folder, result, subject.plan, subject.form, stored)
    return result
