"""A page: whole in itself, everything in it escaped, the same every time."""

import base64
import hashlib
import math
import re
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure

from owl_compress.pages.page import (
    NARROW,
    WIDE,
    Code,
    Column,
    Facts,
    KeyFigure,
    Notes,
    Page,
    Part,
    Picture,
    Prose,
    Section,
    Table,
    render,
)

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\u202e\x1b[2J$x^{2$"


def drawing(width: float, text: str = "blocks") -> Figure:
    figure = Figure(figsize=(width, 2))
    axes = figure.subplots()
    axes.bar(range(3), [1, 2, 3], color="#f0b429")
    axes.plot([0, 1], [2, 1], marker="o", label=text)
    axes.set_xticks(range(3), [text, "1", "2"])
    axes.set_title(text)
    axes.legend()
    return figure


def picture(text: str = "blocks") -> Picture:
    return Picture(text, f"{text} rise", f"{text}: how to read", lambda width: drawing(width, text))


def page_of(*parts: Part, text: str = "A title") -> Page:
    section = Section("one", text, parts)
    figures = [KeyFigure(text, text, text), KeyFigure("bits", "3")]
    return Page(text, text, text, figures, [section, Section("none", "Nothing", [])], text)


def table(text: str = "owl", n_rows: int = 3) -> Table:
    names = Column.of_words("name", [text] * n_rows)
    numbers = Column.of_numbers("value", [*range(n_rows - 1), None], ".2f")
    return Table(text, [names, numbers])


def every_part(text: str) -> list[Part]:
    return [Prose(text), Notes([text]), Code(text), Facts([(text, text)]), table(text), picture(text)]


class Elements(HTMLParser):
    """Every tag with its attributes, in their order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag == name]


def test_what_is_in_a_page_is_escaped_wherever_it_stands() -> None:
    html = render(page_of(*every_part(HOSTILE), text=HOSTILE))
    elements = Elements(html)
    assert len(elements.tags("script")) == 1
    assert elements.tags("img") == []
    assert not any(name.startswith("on") for _, attributes in elements.found for name in attributes)
    assert "\u202e" not in html
    assert "\x1b" not in html


def test_a_page_asks_for_nothing_and_allows_nothing_but_its_own_style_and_script() -> None:
    html = render(page_of(*every_part("owl")))
    links = [
        value
        for _, attributes in Elements(html).found
        for name, value in attributes.items()
        if name in {"src", "href", "xlink:href", "srcset", "action"}
    ]
    assert links
    assert all(str(link).startswith(("#", "data:,")) for link in links)
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", html)
    assert "@import" not in html
    (policy,) = [one["content"] for one in Elements(html).tags("meta") if "http-equiv" in one]
    assert "default-src 'none'" in str(policy)
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in str(policy)
    assert not [attributes for _, attributes in Elements(html).found if "style" in attributes]


def test_every_picture_has_words_of_its_own_and_ids_are_used_once() -> None:
    html = render(page_of(picture("one"), picture("two")))
    elements = Elements(html)
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    pictures = elements.tags("svg")
    assert len(pictures) == 4
    assert all(one["role"] == "img" for one in pictures)
    assert all(set(str(one["aria-labelledby"]).split()) <= set(ids) for one in pictures)
    for text in ("one", "two"):
        assert html.count(f">{text} rise</desc>") == 2
        assert f"<figcaption>{text}: how to read</figcaption>" in html
    assert set(re.findall(r"url\(#([\w-]+)\)", html)) <= set(ids)


def test_pictures_are_drawn_for_a_screen_and_for_a_phone() -> None:
    widths = [float(str(one["width"])) for one in Elements(render(page_of(picture()))).tags("svg")]
    assert widths == pytest.approx([90 * WIDE, 90 * NARROW], abs=1)
    assert 90 * NARROW <= 336  # 360 without the margins


def test_lines_without_a_point_are_no_hindrance() -> None:
    def draw(width: float) -> Figure:
        figure = drawing(width)
        for _ in range(2):
            figure.axes[0].plot([0, 1], [math.nan, math.nan], color="black")
        return figure

    assert render(page_of(Picture("gaps", "nothing", "nothing", draw))).count("<svg") == 2


def test_the_same_page_is_the_same_text() -> None:
    assert render(page_of(*every_part("owl"))) == render(page_of(*every_part("owl")))


def test_colours_of_pictures_follow_a_dark_page() -> None:
    html = render(page_of(picture()))
    light, _, dark = html.partition("@media screen and (prefers-color-scheme: dark) {\n.v")
    assert "fill: #f0b429" in light
    assert "fill: #d9a021" in dark
    assert "#f0b429" not in dark


def test_a_long_table_is_folded_away_and_a_section_of_nothing_left_out() -> None:
    html = render(page_of(table(n_rows=3), table(n_rows=100)))
    assert html.count("<details>") == 1
    assert "100 rows" in html
    assert "Nothing" not in html


def test_cells_are_sorted_by_what_they_say_in_full() -> None:
    html = render(page_of(Table("sizes", [Column.told("size", [2.5e9, None], lambda size: "2.3 GiB")])))
    assert '<td class="n" data-v="2500000000.0">2.3 GiB</td>' in html
    assert '<td class="n">–</td>' in html
