"""Pictures inside a page: SVG with text as text, in the colours of the page, and words for who sees none.

matplotlib writes the SVG; here it becomes a part of a page. Its styles become classes, which all pictures of
the page share and which know a light and a dark page, so that the page needs no style attribute.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from owl_compress.pages.themes import themed
from owl_compress.plain_text import plain

PIXELS_PER_INCH = 90
"""Of the page, for an inch of a figure."""

_POINTS_PER_INCH = 72

# Text of names is no formula, and the same figure is the same text every time.
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "owl-compress",
    "text.parse_math": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_FONT = re.compile(r"\s*font-family:[^;]*;?")
_COLOUR = re.compile("#[0-9a-f]{6}")
_REFERENCE = re.compile(r"url\(#([\w-]+)\)")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""What XML cannot hold; a name may."""

_UPRIGHT = ("rotate(0 ", "rotate(-0 ")
_NUMBER = re.compile(r"-?\d+\.\d+")
_SPACE = re.compile(r"\s+")
_AFTER_LETTER = re.compile(r"(?<=[A-Za-z]) | (?=[A-Za-z])")


class Styles:
    """The styles of all pictures of one page, by the short names of their classes."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def name(self, style: str) -> str:
        """The class that stands for a style."""
        return self._names.setdefault(style, f"v{len(self._names)}")

    def css(self, theme: int) -> str:
        """Rules for a light page (0), or what is different on a dark one (1)."""

        def coloured(style: str, theme: int) -> str:
            return _COLOUR.sub(lambda found: themed().get(found[0], (found[0],) * 2)[theme], style)

        rules = ((name, coloured(style, 0), coloured(style, theme)) for style, name in self._names.items())
        return "".join(
            f".{name}{{{style}}}\n" for name, light, style in rules if theme == 0 or style != light
        )


def svg_of(draw: Callable[[], Figure], key: str, words: tuple[str, str], styles: Styles) -> Markup:
    """The picture that `draw` makes, as an element of a page.

    `key` begins all its ids, and is not that of another picture of the page; `words` are a title and a
    description, for whoever does not see it.
    """
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        # The font that text is measured in lacks signs which the reader's font has.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        written = io.BytesIO()
        canvas: Any = FigureCanvasSVG(draw())
        canvas.print_svg(written, metadata=_NO_METADATA)
    text = _CONTROL.sub(lambda found: plain(found[0]), written.getvalue().decode())
    picture = ET.fromstring(text)  # noqa: S314 - matplotlib wrote it, just now
    _settle_in_(picture, key, styles)
    _name_(picture, key, words)
    return Markup(ET.tostring(picture, encoding="unicode"))  # noqa: S704 - all text in it is escaped by the writer


def _settle_in_(picture: ET.Element, key: str, styles: Styles) -> None:
    """Make the elements those of a page: no name spaces, no ids but the needed, no styles but classes."""
    picture.attrib.pop("version", None)
    for element in picture.iter():
        for child in [one for one in element if one.tag.endswith(("}metadata", "}style"))]:
            element.remove(child)
    needed = _needed(picture)
    ids = {old: f"{key}-{place}" for place, old in enumerate(needed)}
    for element in picture.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.text = plain(element.text or "") if element.tag == "text" else None
        element.tail = None
        element.attrib = {
            name.rpartition("}")[2]: value for name, value in element.attrib.items() if name != "id"
        } | ({"id": ids[element.attrib["id"]]} if element.attrib.get("id") in ids else {})
        _shorten_(element, ids, styles)
    _unwrap_(picture)


def _needed(picture: ET.Element) -> list[str]:
    """The ids that something refers to, each once."""
    found = dict[str, None]()
    for element in picture.iter():
        for name, value in element.attrib.items():
            if name.endswith("href"):
                found[value.removeprefix("#")] = None
            found |= dict.fromkeys(_REFERENCE.findall(value))
    return list(found)


def _shorten_(element: ET.Element, ids: dict[str, str], styles: Styles) -> None:
    for name, value in [*element.attrib.items()]:
        if name == "href":
            element.set(name, f"#{ids[value.removeprefix('#')]}")
        elif name == "d":
            element.set(name, _AFTER_LETTER.sub("", _SPACE.sub(" ", _rounded(value)).strip()))
        elif name in {"x", "y"}:
            element.set(name, _rounded(value))
        elif name == "transform" and value.startswith(_UPRIGHT):
            del element.attrib[name]
        elif name == "style":
            del element.attrib[name]
            style = _FONT.sub("", value).strip().rstrip(";")
            if style:
                element.set("class", styles.name(style))
        elif name != "id":
            element.set(name, _REFERENCE.sub(lambda found: f"url(#{ids[found[1]]})", value))


def _rounded(text: str) -> str:
    """Places to a tenth of a point: less than is to be seen."""
    return _NUMBER.sub(lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), text)


def _unwrap_(element: ET.Element) -> None:
    """Take away groups that say nothing."""
    for child in [*element]:
        _unwrap_(child)
    children = [
        inner for child in element for inner in (child if child.tag == "g" and not child.attrib else [child])
    ]
    element[:] = _joined(children)


def _joined(children: Iterable[ET.Element]) -> list[ET.Element]:
    """Neighbours that are painted alike made one, unless what is below them shines through."""
    joined = list[ET.Element]()
    for child in children:
        before = joined[-1] if joined else None
        if before is not None and _is_alike(before, child):
            before.set("d", before.attrib["d"] + child.attrib["d"])
        else:
            joined.append(child)
    return joined


def _is_alike(one: ET.Element, other: ET.Element) -> bool:
    if one.tag != "path" or other.tag != "path" or "id" in one.attrib or "opacity" in one.attrib:
        return False
    if "d" not in one.attrib or "d" not in other.attrib:
        return False  # a path of no points
    return {**one.attrib, "d": ""} == {**other.attrib, "d": ""}


def _name_(picture: ET.Element, key: str, words: tuple[str, str]) -> None:
    """Tell what the picture is, and how large on the page: as large as it was drawn, or as there is room."""
    width, height = (float(number) for number in picture.attrib["viewBox"].split()[2:])
    scale = PIXELS_PER_INCH / _POINTS_PER_INCH
    picture.attrib |= {
        "width": f"{width * scale:.0f}",
        "height": f"{height * scale:.0f}",
        "role": "img",
        "aria-labelledby": f"{key}-title {key}-desc",
    }
    for place, (tag, text) in enumerate(zip(("title", "desc"), words, strict=True)):
        element = ET.Element(tag, id=f"{key}-{tag}")
        element.text = plain(text)
        picture.insert(place, element)
