"""The whole line in one command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from owl_compress.cli import options
from owl_compress.cli.console import Output
from owl_compress.cli.tables import plan_table, prediction_table, result_table
from owl_compress.documents.recipe import Recipe, is_recipe
from owl_compress.errors import RequestError

if TYPE_CHECKING:  # --help must not wait for torch
    from owl_compress.checkpoints.loading import LoadedModel
    from owl_compress.pipeline.line import Line


def run(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A model as elsewhere, or a recipe (.yaml).")],
    out: options.OptionalOut = None,
    allocator: options.AllocatorName = "owl",
    backend: options.BackendName = "wanda",
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
    measure_samples: options.MeasureSamples = None,
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
    """Measure, allocate, compress and evaluate in one go; or do again what a recipe says."""
    given = given_options(context)
    if is_recipe(model):
        recipe = Recipe.read(model).beside(Path(model).parent).with_options(given)
    else:
        recipe = Recipe.from_options(
            {"model": model, "allocator": allocator, "backend": backend} | given, "options"
        )
    execute(recipe, out, Output(as_json=as_json, quiet=quiet), dry_run=dry_run)


_NOT_IN_RECIPES = {"model", "report", "out", "dry_run", "as_json", "quiet"}
_RECIPE_NAMES = {"pins": "set", "skips": "skip", "format_": "format"}


def given_options(context: typer.Context) -> dict[str, object]:
    """The options that the user typed, under their names in a recipe; defaults are left to the recipe."""
    return {
        _RECIPE_NAMES.get(name, name): value
        for name, value in context.params.items()
        if name not in _NOT_IN_RECIPES and _is_typed(context, name)
    }


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def execute(recipe: Recipe, out: Path | None, output: Output, *, dry_run: bool) -> None:
    """Carry the recipe out and show what came of it."""
    from owl_compress.pipeline.line import Line

    if out is None and not dry_run:
        raise RequestError("missing option --out / -o: name the folder to write, or add --dry-run")
    line = Line(recipe, output.progress)
    line.check(None if dry_run else out)
    output.say(f"loading {recipe.model}")
    loaded = line.load()
    if dry_run:
        _show_prediction(line, loaded, output)
        return
    done = line.run(out, loaded)
    output.answer(done.result.model_dump(mode="json"), plan_table(done.plan))
    output.show(result_table(done.result))
    output.say(f"wrote {out}")


def _show_prediction(line: "Line", loaded: "LoadedModel", output: Output) -> None:
    """Measure and allocate, and show what the rest of the run would need and leave."""
    from owl_compress.compression.gradient_memory import settled_backend
    from owl_compress.compression.prediction import predict
    from owl_compress.device import resolve_device
    from owl_compress.models.structure import find_structure
    from owl_compress.pipeline.request import backend_of

    recipe, model = line.recipe, loaded.model
    calibration = line.windows(loaded)
    _, plan = line.plan(loaded, calibration)
    device, structure = resolve_device(recipe.device), find_structure(model)
    backend, notes = settled_backend(
        backend_of(recipe), model, structure, calibration, recipe.batch_size, device
    )
    for note in notes:
        output.say(note)
    is_packed = line.storage == "packed"
    prediction = predict(model, plan, backend, calibration, recipe.batch_size, is_packed=is_packed)
    answer = {"plan": plan.model_dump(mode="json"), "prediction": prediction.as_dict()}
    output.answer(answer, plan_table(plan))
    output.show(prediction_table(prediction))
