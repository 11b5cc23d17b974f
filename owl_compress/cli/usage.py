"""What is wrong with a command line that is not one of ours, in the voice of every other refusal."""

from collections.abc import Iterable
from typing import Any

import typer
from pydantic import ValidationError

from owl_compress.errors import nearest


def usage_problem(error: typer.TyperException) -> str:
    """What is wrong, the offending word, and the way to the help; empty where the help is shown already.

    The parser's errors are told apart by what they know: a parameter, an option that there is not, a command.
    """
    told = error.format_message().strip().removesuffix(".")
    if not told:
        return ""
    context: Any = getattr(error, "ctx", None)
    path = context.command_path if context else "owl-compress"
    return f"{_in_our_words(error, told, context)} (see {path} --help)"


def _in_our_words(error: typer.TyperException, told: str, context: Any) -> str:
    parameter: Any = getattr(error, "param", None)
    commands = getattr(getattr(context, "command", None), "commands", {})
    if hasattr(error, "possibilities"):
        name: str = getattr(error, "option_name", "")
        return f"unknown option {name}: {_near_option(name, context)}"
    if told.startswith("No such command") and commands:
        name = told.partition("'")[2].partition("'")[0]
        return f"unknown command {name!r}: {nearest(name, commands)}"
    if parameter is not None and hasattr(error, "param_type"):
        kind = "option" if _is_option(parameter) else "argument"
        return f"missing {kind} {_called(parameter)}: {parameter.help}".removesuffix(".")
    if parameter is not None:
        return f"{_called(parameter)} cannot be {_given(error)}: {getattr(error, 'message', told)}"
    return _of_counts(error, told) or f"{told[0].lower()}{told[1:]}"


def _of_counts(error: typer.TyperException, told: str) -> str:
    """The refusal of a word too many or too few; empty for anything else."""
    option = getattr(error, "option_name", "")
    if option and "requires an argument" in told:
        return f"{option} needs a value: write one after it"
    if option and "does not take a value" in told:
        return f"{option} takes no value: write it alone"
    if told.startswith("Got unexpected extra argument"):
        extra = told.partition("(")[2].removeprefix("s) (").removesuffix(")")
        return f"{extra!r} is more than the command takes: drop it, or name the option that it is for"
    return ""


def _near_option(name: str, context: Any) -> str:
    """The option that was probably meant; without any that is near, no list of all there are."""
    known = _options(context.command.params if context else ())
    near = nearest(name, known)
    return near if near.startswith("did you mean") else "the help lists what there is"


def _options(parameters: Iterable[Any]) -> list[str]:
    return [name for parameter in parameters for name in parameter.opts if name.startswith("--")]


def _called(parameter: Any) -> str:
    """An option by its names, an argument in capitals, as in a line of usage."""
    return " / ".join(parameter.opts) if _is_option(parameter) else str(parameter.name).upper()


def _is_option(parameter: Any) -> bool:
    return all(name.startswith("-") for name in parameter.opts)


def _given(error: BaseException) -> str:
    """The value that was refused, where the check tells."""
    cause = error.__cause__
    return repr(cause.errors()[0]["input"]) if isinstance(cause, ValidationError) else "what was given"
