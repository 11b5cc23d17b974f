"""Evaluation of a model or of an output folder: perplexity, and whether it keeps what was asked."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from owl_compress.cli import options
from owl_compress.cli.console import Output
from owl_compress.cli.original import dense_model
from owl_compress.cli.tables import latency_table, perplexity_table, verification_table
from owl_compress.errors import RequestError

Against = Annotated[
    str | None,
    typer.Option(
        help="With --latency: a dense model to time in turn with MODEL. For a folder of ours with heads or "
        "channels removed, by default the model it was made from.",
        rich_help_panel="Latency",
    ),
]


def evaluate(
    model: options.Model,
    data: options.Data = "wikitext2",
    text_field: options.TextField = "text",
    seq_len: options.SeqLen = None,
    bos: options.Bos = "auto",
    max_windows: options.MaxWindows = None,
    batch_size: options.BatchSize = 1,
    latency: options.Latency = False,
    kernel: options.Kernel = None,
    compiled: options.Compile = False,
    against: Against = None,
    prompt_len: options.PromptLen = 128,
    new_tokens: options.NewTokens = 32,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure the perplexity of a model or of a folder that `compress` or `run` wrote, and how fast it is.

    With --quiet the number alone is printed.
    """
    from owl_compress.checkpoints.verification import check_two_of_four
    from owl_compress.device import resolve_device
    from owl_compress.documents.measurements import LatencyShape
    from owl_compress.evaluation.latency import check_kernel, compare, compare_kernels
    from owl_compress.memory import memory_errors
    from owl_compress.pipeline import stages

    output = Output(as_json=as_json, quiet=quiet)
    where = resolve_device(device)
    _check_latency_options(model, kernel, against, latency=latency, compiled=compiled)
    timed = check_kernel(kernel or "dense", where)
    if timed == "semi-structured":
        check_two_of_four(Path(model))
    output.say(f"loading {model}")
    with memory_errors("evaluating"):
        load = partial(stages.load, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
        loaded = load(model, dtype=dtype, revision=revision)
        dense = {}
        if latency and timed == "dense":  # what cannot be loaded is told before the long evaluation
            dense = dense_model(model, against, load, loaded.dtype, output)
        record = stages.evaluate(
            loaded,
            data,
            seq_len=seq_len,
            bos=bos,
            max_windows=max_windows,
            text_field=text_field,
            batch_size=batch_size,
            device=where,
            progress=output.progress,
        )
        shape = LatencyShape(batch_size=batch_size, prompt_len=prompt_len, new_tokens=new_tokens)
        rows = []
        if latency and timed == "dense":
            rows = compare(dense | {model: loaded.model}, shape, where, output.progress, compiled=compiled)
        elif latency:
            rows = compare_kernels(model, loaded.model, timed, shape, where, output.progress)
    answer = record.model_dump(mode="json")
    if latency:
        answer["latency"] = [row.model_dump(mode="json") for row in rows]
    output.answer(answer, perplexity_table(record))
    if latency:
        output.show(latency_table(rows))
    if quiet and not as_json:
        sys.stdout.write(f"{record.perplexity:.4f}\n")


def _check_latency_options(
    model: str, kernel: str | None, against: str | None, *, latency: bool, compiled: bool
) -> None:
    if kernel is not None and not latency:
        raise RequestError("--kernel says how --latency is measured: add --latency, or drop it")
    if compiled and not latency:
        raise RequestError("--compile says how --latency is measured: add --latency, or drop it")
    if compiled and kernel not in {None, "dense"}:
        raise RequestError(f"--compile is for dense kernels: drop it, or --kernel {kernel}")
    if against is not None and not latency:
        raise RequestError(f"--against {against} is timed by --latency: add --latency, or drop it")
    if against is not None and kernel not in {None, "dense"}:
        raise RequestError(
            f"--kernel {kernel} times {model} against itself: drop --against {against}, or the kernel"
        )
    if against == model:
        raise RequestError(f"--against {against} is the model itself: name the dense one it was made from")


def verify(
    folder: Annotated[Path, typer.Argument(help="A folder that compress or run wrote.")],
    pattern: Annotated[
        str, typer.Option(help="'plan', or N:M with N weights KEPT at most of every M inputs.")
    ] = "plan",
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Count the saved tensors group by group; exit code 2 if any group keeps more than it may."""
    from owl_compress.checkpoints.verification import verify as verify_folder

    verification = verify_folder(folder, pattern)
    Output(as_json=as_json, quiet=quiet).answer(verification.as_dict(), verification_table(verification))
    if not verification.ok:
        first = verification.violations[0]
        raise RequestError(
            f"{len(verification.violations)} of {verification.linears} linears in {folder} keep more than "
            f"{pattern} allows: first {first.linear}, {first.kept} instead of {first.allowed} from row "
            f"{first.row}, input {first.first_input}"
        )
