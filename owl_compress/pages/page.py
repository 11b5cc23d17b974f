"""A page that is whole in itself: what it may hold, and how that becomes one HTML file.

Nothing is fetched by it and nothing is asked of its reader: the styles, the pictures and a few lines of
script that sort its tables are inside, and a policy in its head forbids everything else.
"""

import base64
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import count
from typing import ClassVar

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup
from matplotlib.figure import Figure

from owl_compress.pages.svg import Styles, svg_of
from owl_compress.pages.words import number_format
from owl_compress.plain_text import plain

WIDE, NARROW = 10.4, 3.72
"""Inches of a picture on a screen, and on a phone 360 pixels wide."""

MISSING = "–"
_LONG = 100
"""Rows from which a table is folded away."""


@dataclass(frozen=True)
class Prose:
    """A paragraph."""

    kind: ClassVar[str] = "prose"
    text: str


@dataclass(frozen=True)
class Notes:
    """Remarks, one a line."""

    kind: ClassVar[str] = "notes"
    lines: Sequence[str]


@dataclass(frozen=True)
class Code:
    """A command, or a file as it is."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Facts:
    """Names and what is known of them."""

    kind: ClassVar[str] = "facts"
    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Picture:
    """A picture, drawn as wide as a screen and as narrow as a phone.

    Attributes:
        title: what it is, in a few words.
        text: what is to be seen on it, in words and numbers, for whoever does not see it.
        caption: how to read it.
        draw: makes the figure, so many inches wide.
    """

    kind: ClassVar[str] = "picture"
    title: str
    text: str
    caption: str
    draw: Callable[[float], Figure]


@dataclass(frozen=True)
class Cell:
    """What stands in a table; `order` is what the row is sorted by where that is a number."""

    text: str
    order: float | None = None
    is_text: bool = False


@dataclass(frozen=True)
class Column:
    """A heading and its cells, one for each row."""

    heading: str
    cells: Sequence[Cell]
    is_text: bool = False

    @classmethod
    def of_words(cls, heading: str, words: Iterable[str]) -> "Column":
        """A column of names."""
        return cls(heading, [Cell(one, is_text=True) for one in words], is_text=True)

    @classmethod
    def of_numbers(cls, heading: str, values: Iterable[float | None], form: str | None = None) -> "Column":
        """A column of numbers, all in one format; what is not known is a dash."""
        values = list(values)
        shown = form or number_format(value for value in values if value is not None)
        return cls.told(heading, values, lambda value: format(value, shown))

    @classmethod
    def told(cls, heading: str, values: Iterable[float | None], words: Callable[[float], str]) -> "Column":
        """A column of numbers in words, such as sizes, which are sorted by the numbers."""
        cells = [Cell(MISSING) if value is None else Cell(words(value), value) for value in values]
        return cls(heading, cells)


@dataclass(frozen=True)
class Table:
    """Columns of equal length, which a reader may sort by any of them."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[Column]

    @property
    def rows(self) -> list[tuple[Cell, ...]]:
        """The cells, row by row."""
        return list(zip(*(column.cells for column in self.columns), strict=True))

    @property
    def is_long(self) -> bool:
        """Whether it is folded away until somebody wants it."""
        return len(self.columns[0].cells) >= _LONG


Part = Prose | Notes | Code | Facts | Picture | Table


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; `key` is how it is linked to."""

    key: str
    heading: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class KeyFigure:
    """A number that stands out at the top of a page."""

    name: str
    value: str
    remark: str = ""


@dataclass(frozen=True)
class Page:
    """One page. Sections with nothing in them are left out."""

    kicker: str
    title: str
    summary: str
    figures: Sequence[KeyFigure]
    sections: Sequence[Section]
    footer: str = "Made by owl-compress. This page is whole in itself: it asks for nothing from elsewhere."


@dataclass(frozen=True)
class _Drawn:
    """A picture in both of its widths."""

    kind: ClassVar[str] = "picture"
    wide: Markup
    narrow: Markup
    caption: str


@dataclass(frozen=True)
class _DrawnSection:
    key: str
    heading: str
    parts: Sequence[Prose | Notes | Code | Facts | Table | _Drawn]


def render(page: Page) -> str:
    """The HTML of a page: the same page is the same text every time."""
    styles, numbers = Styles(), count()
    sections = [_drawn(section, styles, numbers) for section in page.sections if section.parts]
    dark = f"@media screen and (prefers-color-scheme: dark) {{\n{styles.css(1)}}}\n"
    css = f"{_resource('page.css')}{styles.css(0)}{dark}"
    script = _resource("page.js")
    return _template().render(
        page=page, sections=sections, css=Markup(css), css_hash=_hash(css),  # noqa: S704 - ours, whole
        script=Markup(script), script_hash=_hash(script),  # noqa: S704 - likewise
    )  # fmt: skip


def _drawn(section: Section, styles: Styles, numbers: Iterable[int]) -> _DrawnSection:
    parts = [
        _picture(part, f"p{next(iter(numbers))}", styles) if isinstance(part, Picture) else part
        for part in section.parts
    ]
    return _DrawnSection(section.key, section.heading, parts)


def _picture(picture: Picture, key: str, styles: Styles) -> _Drawn:
    words = picture.title, picture.text

    def drawn(name: str, width: float) -> Markup:
        return svg_of(lambda: picture.draw(width), f"{key}{name}", words, styles)

    return _Drawn(drawn("w", WIDE), drawn("n", NARROW), picture.caption)


def _hash(text: str) -> str:
    """What a policy calls a script or a style that it allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


@cache
def _resource(name: str) -> str:
    return (resources.files("owl_compress.pages") / "template" / name).read_text(encoding="utf-8")


@cache
def _template() -> Template:
    environment = Environment(
        loader=FunctionLoader(_resource), autoescape=True, undefined=StrictUndefined, finalize=_shown,
        keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template("page.html.jinja")


def _shown(value: object) -> object:
    """Text as a reader may see it: names of strangers hold no signs that turn it round. See `plain`."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return "\n".join(plain(line) for line in value.split("\n"))
    return value
