"""The table of tuned rounding, from rows of `autoround.py` and those of gptq that were there before."""

from collections.abc import Mapping, Sequence

from layout import Row, number, section, table

_BESIDE = ("gptq", "autoround", "alone")
_KNOWN = {
    "3": "gptq 3, 3 uniform group_size=64",
    "3.5": "gptq 3.5, 3,4 owl group_size=64",
    "4": "gptq 4, 4 uniform group_size=64",
}
"""Rows of the grids in which gptq carried out the same plan, by the bits."""

_TEXT = (
    "The backend *autoround* beside *gptq*, with the same plan and calibration windows, groups of 64 inputs, "
    "symmetric; widths are the same for all linears at 3 and 4 bits and OWL's (lod@10, lam 0.5) in between: "
    "of 3 and 4 bits at 3.5, of 2, 3 and 4 at 2.5. *Alone* is AutoRound by its own interface, given the same "
    "token ids, steps and seed. It is published with 200 *steps* of 8 windows for each block; here they are "
    "what fits into minutes on one core. *Minutes* are the CPU's. (`autoround.py`)"
)


def tuned_rounding_section(rows: Sequence[Row], known: Mapping[str, float]) -> str:
    """A line for each number of bits; `known` are perplexities of other tables by name."""
    by_bits: dict[str, dict[str, Row]] = {}
    for row in rows:
        bits, method = row["name"].rsplit(" ", 1)
        by_bits.setdefault(bits, {})[method] = row
    cells = []
    for bits, found in sorted(by_bits.items(), key=lambda one: float(one[0]), reverse=True):
        tuned = found.get("autoround") or found["alone"]
        figures = {method: row["perplexity"] for method, row in found.items()}
        if "gptq" not in figures and bits in _KNOWN:
            figures["gptq"] = known[_KNOWN[bits]]
        shown = [number(figures.get(method)) for method in _BESIDE]
        minutes = f"{tuned['cpu_seconds'] / 60:.0f}"
        cells.append((bits, *shown, str(tuned["iters"]), str(tuned["step_windows"]), minutes))
    heads = ("bits", *_BESIDE, "steps", "windows of a step", "minutes")
    return section("Tuned rounding", _TEXT, table(heads, cells)) if cells else ""
