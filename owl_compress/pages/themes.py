"""What every colour of our pictures is on a light page and on a dark one."""

from functools import cache

import matplotlib as mpl
from matplotlib.colors import to_hex

from owl_compress.pages.drawing import BAR, GRID, INK, LINES, QUIET
from owl_compress.pages.scales import NO_DAMAGE

PAPER = {"light": "#ffffff", "dark": "#11161c"}
_DARK_LINES = ("#56a8e0", "#f28e4a", "#35c495", "#dd8fc0", "#d4b13f", "#a8d8f5")

_STEPS = 256
"""Colours in the maps of matplotlib that our scales are cut from."""

_DEEPEST = 0.3
"""Where on the map of depth a dark page begins: what comes before is lost on it."""


@cache
def themed() -> dict[str, tuple[str, str]]:
    """The colours on a light and on a dark page, by the colour that a picture is drawn in.

    A quiet grey is a little darker on a light page than in a PNG: there it is text, and has to be read. Maps
    of one hue turn round, so that what is least stays nearest to the paper.
    """
    found = {
        INK: (INK, "#e6ebf0"),
        "#000000": (INK, "#e6ebf0"),
        "#ffffff": (PAPER["light"], PAPER["dark"]),
        QUIET: ("#5f6b76", "#9aa6b2"),
        GRID: (GRID, "#2a333d"),
        BAR: (BAR, "#d9a021"),
        NO_DAMAGE: (NO_DAMAGE, "#4d432a"),
    }
    found |= {light: (light, dark) for light, dark in zip(LINES, _DARK_LINES, strict=True)}
    depth, blues = mpl.colormaps["viridis"], mpl.colormaps["Blues"]
    for step in range(_STEPS):
        deep = _DEEPEST + (1 - _DEEPEST) * step / (_STEPS - 1)
        found[to_hex(depth(step))] = (to_hex(depth(step)), to_hex(depth(deep)))
        found[to_hex(blues(step))] = (to_hex(blues(step)), to_hex(blues(_STEPS - 1 - step)))
    return found
