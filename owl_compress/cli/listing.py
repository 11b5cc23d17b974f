"""What there is to choose from, as a list for people or for programs."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from owl_compress.cli import options
from owl_compress.cli.console import Output
from owl_compress.options import Option
from owl_compress.pages.words import asked_name

if TYPE_CHECKING:  # help must not wait for it
    from owl_compress.pipeline.catalogue import Offer, Shelf

_WIDTH = 80


def list_(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="allocators, backends, metrics, forms, exporters, tools or sources; all if left out."
        ),
    ] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Name every allocator, backend, metric, stored form, exporter and tool; of one kind, the options too."""
    from owl_compress.pipeline.catalogue import SHELVES, shelf

    shelves = [shelf(name) for name in ([kind] if kind else SHELVES)]
    output = Output(as_json=as_json, quiet=quiet)
    lines = [line for one in shelves for line in _lines(one, in_full=kind is not None)]
    output.answer({one.kind: _plain(one) for one in shelves}, lines)
    for problem in (problem for one in shelves for problem in one.broken):
        output.say(f"left out: {problem}")


def _lines(shelf: "Shelf", *, in_full: bool) -> Iterator[str]:
    """A heading, and every offer below it, with its options where that is asked for."""
    yield f"{shelf.kind}: {shelf.purpose}"
    for offer in shelf.offers:
        marks = [asked_name(offer.unit)] if offer.unit else []
        marks += ["default"] * offer.is_default
        marks += [] if offer.is_built_in else ["from another package"]
        name = f"{offer.name} ({', '.join(marks)})" if marks else offer.name
        yield from _indented(f"{name}: {offer.summary}" if offer.summary else name, 2)
        if in_full:
            yield from (line for option in offer.options for line in _option_lines(option))
    yield ""


def _option_lines(option: Option) -> Iterator[str]:
    value = "" if option.is_switch else f" {_kind(option)}"
    facts = [option.shown_range, *_default(option)]
    text = " ".join([option.help, *(f"{fact[0].upper()}{fact[1:]}." for fact in facts if fact)])
    yield from _indented(f"--{option.shown_name}{value}: {text}", 6)


def _kind(option: Option) -> str:
    return "|".join(option.choices) or f"<{option.shown_type}>"


def _default(option: Option) -> Sequence[str]:
    if option.is_required:
        return ["required"]
    if option.is_switch or _is_open(option):
        return []
    return [f"default {option.given_for(option.default)}"]


def _is_open(option: Option) -> bool:
    """Whether there is no default, or somebody else decides."""
    return option.is_required or option.default is None


def _indented(text: str, n_spaces: int) -> Iterator[str]:
    """`text` in lines of a narrow terminal, the first one hanging out: what is grepped for stands there."""
    yield from textwrap.wrap(
        text, _WIDTH, initial_indent=" " * n_spaces, subsequent_indent=" " * (n_spaces + 4),
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _plain(shelf: "Shelf") -> dict[str, Any]:
    return {"offers": [_plain_offer(offer) for offer in shelf.offers], "broken": list(shelf.broken)}


def _plain_offer(offer: "Offer") -> dict[str, Any]:
    return {
        "name": offer.name,
        "summary": offer.summary,
        "default": offer.is_default,
        "built_in": offer.is_built_in,
        "unit": offer.unit or None,
        "options": [
            {
                "name": option.shown_name,
                "type": "switch" if option.is_switch else option.shown_type,
                "choices": list(option.choices),
                "range": dict(option.bounds),
                "required": option.is_required,
                "default": None if _is_open(option) else option.given_for(option.default),
                "help": option.help,
            }
            for option in offer.options
        ],
    }
