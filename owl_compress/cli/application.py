"""The commands, each with the options that it takes: its own, those of a recipe, those of all methods."""

from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from inspect import Parameter
from platform import python_version
from typing import Annotated, Any

import typer

from owl_compress.cli import (
    chart,
    compare,
    demo,
    evaluate,
    exchange,
    listing,
    planning,
    recover,
    refine,
    report,
    run,
    sensitivity,
    show,
    tune,
)
from owl_compress.cli.latency import DenseOptions, LatencyOptions
from owl_compress.cli.options import (
    OWN,
    PREFIX,
    Methods,
    of_dataclass,
    of_methods,
    of_recipe,
    with_options,
)
from owl_compress.documents.option_names import plain_name
from owl_compress.documents.recipe_fields import DEFAULT_MEASURE_SAMPLES

_OF_DAMAGE = {"samples": DEFAULT_MEASURE_SAMPLES}
"""What commands that measure damage take of the calibration text where nobody says."""

_HELP = ("-h", "--help")
_TOLD = ("owl-compress", "torch", "transformers")


def application(arguments: Sequence[str]) -> typer.Typer:
    """The command line that `arguments` are for.

    The options of backends are asked of the backends themselves, which load torch: only a help text names
    them, and an option that nobody else knows.
    """
    app = typer.Typer(
        name="owl-compress",
        help="Measure layer importance once, turn it into budgets, compress with any backend.",
        no_args_is_help=True,
        context_settings={"help_option_names": list(_HELP)},
        pretty_exceptions_enable=False,
    )
    app.callback()(_about)
    for name, (command, parameters) in _commands().items():
        is_meant = name in arguments[:1]
        app.command(name)(with_options(command, parameters(arguments) if is_meant else []))
    app.command("compare")(compare.compare)
    app.command("verify")(evaluate.verify)
    app.command("chart")(chart.chart)
    app.command("report")(report.report)
    app.command("show")(show.show)
    app.command("list")(listing.list_)
    app.command("demo")(demo.demo)
    return app


def _about(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=lambda asked: _tell_versions(asked=asked),
            help="Show the versions of this program and of what it stands on.",
        ),
    ] = False,
) -> None:
    """Measure layer importance once, turn it into budgets, compress with any backend."""


def _tell_versions(*, asked: bool) -> None:
    """Answer --version; no package is loaded for that."""
    if asked:
        known = [f"{name} {found}" for name in _TOLD if (found := _version_of(name))]
        typer.echo(", ".join([*known, f"python {python_version()}"]))
        raise typer.Exit


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


Parameters = Callable[[Sequence[str]], list[Parameter]]


def _commands() -> dict[str, tuple[Callable[..., Any], Parameters]]:
    """Command, and the options that it has besides its own, by name."""
    return {
        "measure": (planning.measure, lambda _: of_recipe(*planning.MEASURE_TOPICS, without=("strict",))),
        "sensitivity": (
            sensitivity.sensitivity,
            lambda arguments: _with_methods(_of_sensitivity(), arguments),
        ),
        "allocate": (planning.allocate, _of_allocate),
        "tune": (tune.tune, lambda arguments: _with_methods(_of_tune(), arguments)),
        "refine": (refine.refine, lambda arguments: _with_methods(_of_refine(), arguments)),
        "compress": (run.compress, lambda arguments: _with_methods(_of_compress(), arguments)),
        "recover": (recover.recover, lambda _: _of_recover()),
        "eval": (
            evaluate.evaluate,
            lambda _: _of_evaluate(),
        ),
        "export": (exchange.export, lambda _: _of_tools("EXPORTERS")),
        "import": (exchange.import_, lambda _: _of_tools("IMPORTERS")),
        "run": (run.run, lambda arguments: _with_methods(_of_run(), arguments, allocates=True)),
    }


def _of_evaluate() -> list[Parameter]:
    of_text = of_recipe(
        *evaluate.EVALUATE_TOPICS, without=evaluate.NOT_FOR_EVALUATION, panels=evaluate.PANELS
    )
    of_dense = of_dataclass(DenseOptions, "The dense model beside it")
    return [*of_text, *of_dense, *of_dataclass(LatencyOptions, "Latency")]


def _of_allocate(_: Sequence[str]) -> list[Parameter]:
    from owl_compress.pipeline.methods import DEFAULT_ALLOCATOR, DEFAULT_FROM_PROFILE

    methods = _methods()
    default = f"{DEFAULT_ALLOCATOR}; of a profile {DEFAULT_FROM_PROFILE}"
    methods["allocator"] = Methods(methods["allocator"].names, default)
    of_plan = of_recipe(*planning.ALLOCATE_TOPICS, without=("candidates",), methods=methods)
    return [*of_plan, *_of_allocators()]


def _of_sensitivity() -> list[Parameter]:
    return of_recipe(
        *sensitivity.SENSITIVITY_TOPICS,
        without=sensitivity.NOT_FOR_PROFILES,
        methods=_methods(),
        defaults=_OF_DAMAGE,
    )


def _of_tune() -> list[Parameter]:
    return of_recipe(*tune.TUNE_TOPICS, without=tune.NOT_FOR_TUNING, methods=_methods(), defaults=_OF_DAMAGE)


def _of_refine() -> list[Parameter]:
    of_damage = of_recipe(
        *refine.REFINE_TOPICS,
        without=refine.NOT_FOR_REFINEMENT,
        methods=_methods(),
        defaults=_OF_DAMAGE,
    )
    return [*of_damage, *of_dataclass(refine.SearchOptions, "Refinement")]


def _of_recover() -> list[Parameter]:
    from owl_compress.pipeline.methods import RECOVERIES
    from owl_compress.pipeline.recovery_request import RecoveryOptions

    of_text = of_recipe(*recover.RECOVER_TOPICS, without=recover.NOT_FOR_RECOVERY, panels=recover.PANELS)
    return [
        *of_dataclass(RecoveryOptions, "Training"),
        *of_methods(RECOVERIES.every_option(), "Options of methods"),
        *of_text,
    ]


def _of_compress() -> list[Parameter]:
    return of_recipe(*run.COMPRESS_TOPICS, methods=_methods())


def _of_run() -> list[Parameter]:
    from owl_compress.pipeline.methods import AUTO

    methods = _methods()
    methods["allocator"] = methods["allocator"].further(AUTO)
    return of_recipe(*run.RUN_TOPICS, methods=methods)


def _methods() -> dict[str, Methods]:
    from owl_compress.pipeline.methods import ALLOCATORS, BACKENDS, DEFAULT_ALLOCATOR, DEFAULT_BACKEND

    return {
        "allocator": Methods(ALLOCATORS.names(), DEFAULT_ALLOCATOR),
        "backend": Methods(BACKENDS.names(), DEFAULT_BACKEND),
    }


def _of_allocators() -> list[Parameter]:
    from owl_compress.pipeline.methods import ALLOCATORS

    return of_methods(ALLOCATORS.every_option())


def _of_tools(table: str) -> list[Parameter]:
    from owl_compress.pipeline import exchange as tables

    return of_methods(getattr(tables, table).every_option(), "Options of tools")


def _with_methods(
    recipe: list[Parameter], arguments: Sequence[str], *, allocates: bool = False
) -> list[Parameter]:
    """The parameters of a recipe and those of methods: of backends only where the arguments want them."""
    parameters = [*recipe, *(_of_allocators() if allocates else [])]
    known = {one.name.removeprefix(PREFIX) for one in parameters} | set(OWN)
    words = {plain_name(word.partition("=")[0]) for word in arguments if word.startswith("--")}
    if not words - known and not set(_HELP) & set(arguments):
        return parameters
    from owl_compress.pipeline.methods import ALLOCATORS, BACKENDS

    every = (*(ALLOCATORS.every_option() if allocates else ()), *BACKENDS.every_option())
    return [*recipe, *of_methods(every)]
