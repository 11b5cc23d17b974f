"""Options of the commands: a recipe's and its methods' from where they are declared, others here."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from owl_compress.consent import CONSENT_NAMES
from owl_compress.documents.option_names import option_name
from owl_compress.documents.paths import given_path
from owl_compress.documents.recipe import RECIPE_NAMES, Recipe
from owl_compress.documents.recipe_fields import Topic
from owl_compress.errors import RequestError
from owl_compress.options import Option, options_of

_CONSENT = "Consent"

Model = Annotated[
    str, typer.Argument(help="Hub id, checkpoint folder, .gguf file, or 'builtin' (SmolLM2-135M).")
]


def out_option(text: str) -> Any:
    """The option -o, for paths that a user wrote."""
    return typer.Option("--out", "-o", parser=given_path, metavar="PATH", help=text)


def check_out_named(out: Path | None, what: str, *, dry_run: bool) -> None:
    """Refuse to work for nothing: only a dry run needs no output, which is `what`.

    Raises:
        RequestError: neither.
    """
    if out is None and not dry_run:
        raise RequestError(f"missing option --out / -o: name {what}, or add --dry-run")


def path_argument(name: str, text: str) -> Any:
    """An argument that is a path which a user wrote."""
    return typer.Argument(parser=given_path, metavar=name, help=text)


def path_option(text: str) -> Any:
    """An option that is a path which a user wrote."""
    return typer.Option(parser=given_path, metavar="PATH", help=text)


_FOLDER = "Folder to write; must be new or empty."
_NEEDED = "Required, but for --dry-run."

Out = Annotated[Path, out_option(_FOLDER)]
OptionalOut = Annotated[Path | None, out_option(f"{_FOLDER} {_NEEDED}")]
OptionalOutFile = Annotated[Path | None, out_option(f"File to write. {_NEEDED}")]
OutPicture = Annotated[Path, out_option("Picture to write, NAME.png.")]
OutPage = Annotated[Path, out_option("Page to write, NAME.html.")]
OutFile = Annotated[Path, out_option("File to write.")]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace a folder that owl-compress wrote, when the new one is whole."),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Keep what is done beside the output until all is, and go on with what was cut off.",
    ),
]

AsJson = Annotated[bool, typer.Option("--json", help="The answer as JSON, alone on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no tables.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show budgets, predicted size and memory; write nothing.")
]
DryRunOfTrials = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be tried, and the cost of it; write nothing.")
]
DryRunOfPlan = Annotated[bool, typer.Option("--dry-run", help="Show the budgets; write nothing.")]

TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run code from the repository or folder of MODEL, and of no other model.",
        rich_help_panel=_CONSENT,
    ),
]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Load pickled weights of MODEL, which can run code while they load.",
        rich_help_panel=_CONSENT,
    ),
]
OWN = (
    "out", "overwrite", "resume", "plan", "extend", "model", "json", "quiet", "dry_run", "help",
    *CONSENT_NAMES,
)  # fmt: skip
"""Options of the commands themselves, which no method can have."""

PREFIX = "recipe_"
"""Of the parameters that stand for options of a recipe or a method: their names may be words of Python."""


def with_options(
    command: Callable[..., None], parameters: Iterable[inspect.Parameter]
) -> Callable[..., None]:
    """`command`, which takes `**given`, with a parameter for each of these options in its signature.

    What the user did not type is not handed over: defaults are left to whoever reads the options.
    """
    own = inspect.signature(command).parameters.values()
    named = [one for one in own if one.kind is not inspect.Parameter.VAR_KEYWORD]
    signature = inspect.Signature([*named, *parameters])

    def wrapped(context: typer.Context, **values: Any) -> None:
        plain = {name: value for name, value in values.items() if not name.startswith(PREFIX)}
        command(**plain, **typed_options(context))

    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    keyword = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in signature.parameters.values()]
    described: Any = wrapped
    described.__signature__ = inspect.Signature([context, *keyword])
    described.__annotations__ = {one.name: one.annotation for one in (context, *keyword)}
    described.__doc__ = command.__doc__
    return wrapped


def typed_options(context: typer.Context) -> dict[str, Any]:
    """The options of a recipe or a method that the user typed, by their names there."""
    return {
        name.removeprefix(PREFIX): value
        for name, value in context.params.items()
        if name.startswith(PREFIX) and _is_typed(context, name)
    }


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


@dataclass(frozen=True)
class Methods:
    """What is registered, and which of it is meant where nobody says."""

    names: tuple[str, ...]
    default: str

    def further(self, name: str) -> "Methods":
        """The same and one that is not registered."""
        return Methods((*self.names, name), self.default)


def of_recipe(
    *topics: Topic,
    without: Sequence[str] = (),
    methods: Mapping[str, Methods] | None = None,
    panels: Mapping[Topic, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> list[inspect.Parameter]:
    """Parameters for the fields of a recipe that are about these topics.

    `without` are left out, by the names that users type. `methods` holds, by the name of a field, the names
    that it may have. `panels` are the headings that help shows topics under, where those are not their own
    names; `defaults` what help shows for a field of which the command has a default of its own.
    """
    methods, defaults = methods or {}, defaults or {}
    return [
        _parameter_of_field(
            field.alias or name,
            field,
            (panels or {}).get(topic, topic.value),
            methods.get(name),
            defaults.get(name, field.get_default(call_default_factory=True)),
        )
        for topic in topics
        for name, field in Recipe.model_fields.items()
        if (field.alias or name) not in without and _topic(field) == topic.value
    ]


def _topic(field: FieldInfo) -> object:
    extra = field.json_schema_extra
    return extra.get("topic") if isinstance(extra, dict) else None


def _parameter_of_field(
    name: str, field: FieldInfo, panel: str, methods: Methods | None, default: Any
) -> inspect.Parameter:
    text = field.description or ""
    if methods:
        text = f"{text.removesuffix('.')}: {', '.join(methods.names)}."
        return _parameter(name, str, methods.default, text, panel, words=methods.names)
    kind = _simple_type(field.annotation)
    if kind == list[str] or field.is_required():
        default = None
    elif kind == (str | None) and isinstance(default, tuple):
        default = ",".join(default)
    return _parameter(name, kind, default, text, panel)


def _simple_type(annotation: Any) -> Any:
    """What the parser has to know of a field's type: the recipe itself checks the rest."""
    if annotation is bool:
        return bool
    inner = [kind for kind in get_args(annotation) if kind is not type(None)] or [annotation]
    first = inner[0] if get_origin(annotation) is not Literal else str
    if get_origin(first) is Annotated:
        first = get_args(first)[0]
    if get_origin(annotation) is dict or annotation == tuple[str, ...]:
        return list[str]
    return (first if first in {int, float} and get_origin(annotation) is not tuple else str) | None


def of_dataclass(kind: type, panel: str) -> list[inspect.Parameter]:
    """Parameters for the fields of a dataclass that holds options of one command."""
    return [
        _parameter(
            one.name,
            one.annotation if one.annotation in {bool, int} else str | None,
            one.default,
            one.help,
            panel,
        )
        for one in options_of(kind)
    ]


def of_methods(
    options: Iterable[tuple[str, Option]], panel: str = "Options of allocators and backends"
) -> list[inspect.Parameter]:
    """Parameters for the options of methods, each given with the method that has it.

    An option that several methods have is one parameter, and its help says who has it. One that every recipe
    has is left out here, and so is one that is called like an option of the command itself.
    """
    having: dict[str, list[tuple[str, Option]]] = {}
    for method, option in options:
        if option.name not in {*RECIPE_NAMES, *OWN}:
            having.setdefault(option.name, []).append((method, option))
    return [_parameter_of_methods(name, members, panel) for name, members in having.items()]


def _parameter_of_methods(name: str, members: Sequence[tuple[str, Option]], panel: str) -> inspect.Parameter:
    """The parameter for an option that several methods may have.

    One that is a switch for some of them and takes a value for others takes one for all: true turns the
    switch.
    """
    switches = [option.is_switch for _, option in members]
    text = _text(members)
    if all(switches):
        return _parameter(name, bool, False, text, panel)
    types = dict.fromkeys("true" if one.is_switch else one.shown_type for _, one in members)
    return _parameter(name, str | None, None, text, panel, f"<{' or '.join(types)}>")


def _text(members: Sequence[tuple[str, Option]]) -> str:
    """What the option is, for whom, and its default, each said once for all methods that have it alike."""
    texts: dict[str, dict[str, list[str]]] = {}
    for method, option in members:
        choices = f" One of {', '.join(option.choices)}." if option.choices else ""
        choices += f" {option.shown_range.capitalize()}." if option.shown_range else ""
        is_open = option.is_switch or option.is_required or option.default is None
        default = "" if is_open else str(option.given_for(option.default))
        texts.setdefault(f"{option.help}{choices}", {}).setdefault(default, []).append(method)
    return " ".join(f"{text} {_for_whom(defaults)}".strip() for text, defaults in texts.items())


def _for_whom(defaults: Mapping[str, Sequence[str]]) -> str:
    if len(defaults) == 1:
        ((default, methods),) = defaults.items()
        return f"For {', '.join(methods)}{f'; default {default}' if default else ''}."
    each = (f"{', '.join(methods)} (default {default})" for default, methods in defaults.items())
    return f"For {'; '.join(each)}."


def _parameter(
    name: str,
    kind: Any,
    default: Any,
    text: str,
    panel: str,
    metavar: str | None = None,
    words: Sequence[str] = (),
) -> inspect.Parameter:
    """An option of a command; `words` are what a shell may complete its value to."""

    def starting(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    described = typer.Option(
        f"--{option_name(name)}",
        help=text,
        rich_help_panel=panel,
        metavar=metavar,
        autocompletion=starting if words else None,
    )
    return inspect.Parameter(
        f"{PREFIX}{name}",
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, described],
    )
