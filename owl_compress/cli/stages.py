"""The stages one by one: measure, allocate, compress."""

from pathlib import Path
from typing import Annotated

import typer

from owl_compress.cli import options
from owl_compress.cli.console import Output
from owl_compress.cli.run import execute, given_options
from owl_compress.cli.tables import plan_table, report_table
from owl_compress.documents.disk import check_output_file
from owl_compress.documents.plan import Plan
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.report import ImportanceReport
from owl_compress.errors import RequestError


def measure(
    model: options.Model,
    out: options.OutFile,
    calib: options.Calib = "c4",
    metric: Annotated[
        list[str] | None, typer.Option(help="A metric besides the default ones; repeatable.")
    ] = None,
    text_field: options.TextField = "text",
    samples: options.Samples = 128,
    seq_len: options.SeqLen = None,
    sampling: options.Sampling = "random",
    seed: options.Seed = 0,
    bos: options.Bos = "auto",
    batch_size: options.BatchSize = 1,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure the importance of every block and linear, and write the report."""
    from owl_compress.device import resolve_device
    from owl_compress.importance.estimator import measure as measure_importance
    from owl_compress.importance.metrics import with_defaults
    from owl_compress.memory import memory_errors
    from owl_compress.pipeline import stages

    output = Output(as_json=as_json, quiet=quiet)
    check_output_file(out)
    metrics = with_defaults(metric or ())
    where = resolve_device(device)
    output.say(f"loading {model}")
    with memory_errors("measuring"):
        loaded = stages.load(
            model,
            dtype=dtype,
            device=where,
            revision=revision,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
        windows = stages.calibrate(
            loaded,
            calib,
            samples=samples,
            seq_len=seq_len,
            sampling=sampling,
            seed=seed,
            bos=bos,
            text_field=text_field,
        )
        report = measure_importance(
            loaded.model,
            windows,
            metrics=metrics,
            device=where,
            batch_size=batch_size,
            identity=stages.identity_of(loaded),
            progress=output.progress,
        )
    report.write(out)
    output.answer(report.model_dump(mode="json"), report_table(report))
    output.say(f"wrote {out}")


def allocate(
    context: typer.Context,
    report: Annotated[Path, typer.Argument(help="The report that `measure` wrote.")],
    out: options.OptionalOutFile = None,
    allocator: options.AllocatorName = "owl",
    sparsity: options.Sparsity = None,
    nm: options.Nm = None,
    prune_ratio: options.PruneRatio = None,
    bits: options.Bits = None,
    bit_choices: options.BitChoices = None,
    metric: options.Metric = None,
    lam: options.Lam = None,
    owl_law: options.OwlLaw = None,
    granularity: options.Granularity = None,
    solver: options.SolverName = None,
    low: options.Low = None,
    high: options.High = None,
    pins: options.Pins = None,
    skips: options.Skips = None,
    no_tie: options.NoTie = False,
    parts: options.Parts = "attention,mlp",
    protect_first: options.ProtectFirst = 0,
    protect_last: options.ProtectLast = 0,
    seed: Annotated[int | None, typer.Option(help="Seed of the allocator random.")] = None,
    dry_run: options.DryRunOfPlan = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Divide a budget over the blocks of a report, and write the plan."""
    from owl_compress.allocators import allocate as divide
    from owl_compress.pipeline.request import allocator_of, target_of

    if out is None and not dry_run:
        raise RequestError("missing option --out / -o: name the plan file, or add --dry-run")
    if out is not None and not dry_run:
        check_output_file(out)
    # The request of a run, whose model is measured already and whose backend is still open.
    defaults = {"model": str(report), "backend": "any", "allocator": allocator}
    request = Recipe.from_options(defaults | given_options(context), "options")
    output = Output(as_json=as_json, quiet=quiet)
    plan = divide(ImportanceReport.read(report), allocator_of(request), target_of(request))
    if out is not None and not dry_run:
        plan.write(out)
    output.answer(plan.model_dump(mode="json"), plan_table(plan))
    if out is not None and not dry_run:
        output.say(f"wrote {out}")


def compress(
    context: typer.Context,
    model: options.Model,
    plan: Annotated[Path, typer.Option(help="The plan that `allocate` wrote.")],
    backend: options.BackendName = "wanda",
    out: options.OptionalOut = None,
    scope: options.Scope = None,
    group_size: options.GroupSize = None,
    asymmetric: options.Asymmetric = False,
    mse: options.Mse = False,
    activation_order: options.ActivationOrder = False,
    no_group_order: options.NoGroupOrder = False,
    format_: options.Format = None,
    importance: options.Importance = None,
    taylor_variant: options.TaylorVariant = None,
    gradient_samples: options.GradientSamples = None,
    round_to: options.RoundTo = None,
    repair: options.Repair = False,
    allow_empty: options.AllowEmpty = False,
    uniform_width: options.UniformWidth = False,
    export: options.Export = None,
    calib: options.Calib = "c4",
    data: options.OptionalData = None,
    text_field: options.TextField = "text",
    samples: options.Samples = 128,
    seq_len: options.SeqLen = None,
    sampling: options.Sampling = "random",
    seed: options.Seed = 0,
    bos: options.Bos = "auto",
    max_windows: options.MaxWindows = None,
    batch_size: options.BatchSize = 1,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    allow_pickle: options.AllowPickle = False,
    strict: options.Strict = False,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Carry a plan out with a backend, and write the checkpoint."""
    Plan.read(plan)
    defaults = {"model": model, "plan": str(plan), "backend": backend}
    recipe = Recipe.from_options(defaults | given_options(context) | {"plan": str(plan)}, "options")
    execute(recipe, out, Output(as_json=as_json, quiet=quiet), dry_run=dry_run)
