"""Tables of what whole processes took, how that grows, and what came of killing them."""

from collections.abc import Sequence
from statistics import mean

from layout import Row, section, table

_MIB = 2**20
_PEERS = {
    "owl": "*owl*: the main.py of OWL's authors, 70 %",
    "llm-compressor": "*llm-compressor*: uniform, 60 % or bits in groups of 64",
}


def peers_section(rows: Sequence[Row]) -> str:
    """Whole runs beside the authors' scripts and llm-compressor; empty without rows."""
    if not rows:
        return ""
    cells = [
        (
            f"{row['name']}, {row['variant']}",
            _tokens(row),
            row["peer"],
            _seconds(row["cpu_seconds"]),
            _seconds(row["cpu_seconds_of_peer"]),
            f"{row['ratio']:.2f}",
            _mib(row["peak_bytes"]),
            _mib(row["peak_bytes_of_peer"]),
            f"{row['peak_ratio']:.2f}",
        )
        for row in rows
    ]
    first = rows[0]
    peers = "; ".join(_PEERS[peer] for peer in dict.fromkeys(row["peer"] for row in rows))
    text = (
        "A process each, one thread, on equal tokens, in turns: it starts, "
        "reads a dense folder of float32, compresses and writes; nobody evaluates. CPU seconds from start to "
        "end (other work ran on the machine, which makes all of them larger), and the most MiB that were "
        f"resident, the weights being {_mib(first['weights_bytes'])}. {peers}. *default* is what `run` does "
        "unasked: it measures importance on 16 windows, Wanda is told of the dense model's inputs at 60 % "
        "and of sequential ones at 70 %, SparseGPT of sequential ones, and gptq has its linears in turn; "
        "*dense*, *sequential* and *true-sequential* ask for one of them, *disk* is `--offload disk`. "
        "(`peers.py`)"
    )
    heads = ("", "tokens", "beside", "CPU s", "theirs", "ratio", "MiB", "theirs", "ratio")
    return section("Whole runs beside other programs", text, table(heads, cells)) + _agreement(rows)


def _tokens(row: Row) -> str:
    return f"{row['samples']} x {row['seq_len']}"


def _agreement(rows: Sequence[Row]) -> str:
    lines = [
        f"- {row['name']}, {row['variant']}, {_tokens(row)}: LOD apart by "
        f"{row['lod_largest_difference_percent']:.1g} percent at most, densities by "
        f"{row['density_largest_difference']:.1g}; of the positions in the masks "
        f"{row['equal_mask_positions']:.2%} are equal, "
        f"{row['equal_mask_positions_by_block'][0]:.2%} in the first block and "
        f"{row['equal_mask_positions_by_block'][-1]:.2%} in the last."
        for row in rows
        if "equal_mask_positions" in row
    ]
    if not lines:
        return ""
    return "\nHow far that is from what the authors' script prints and writes:\n\n" + "\n".join(lines) + "\n"


def scaling_section(rows: Sequence[Row]) -> str:
    """Exponents of the time, and growth of memory; empty without rows."""
    if not rows:
        return ""
    axes = ("blocks", "hidden", "tokens")
    exponents: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["grows"] in axes:
            exponents.setdefault(row["name"], {})[row["grows"]] = row["exponent"]
    cells = [
        (name, *(f"{found[axis]:.2f}" if axis in found else "–" for axis in axes))
        for name, found in exponents.items()
    ]
    text = (
        "Exponents of CPU time: each size is doubled three times while the others stay (random Llamas, one "
        "thread); 1 is twice the time for twice as much. Weights grow with the square of the hidden "
        "size, and the work on Hessians with its cube. (`scaling.py`)"
    )
    memory = [
        (
            f"{row['name']}, {row['offload']}",
            *(f"{peak / _MIB:,.0f}" for peak in row["peak_bytes"]),
            f"{row['growth']:.2f}",
        )
        for row in rows
        if row["grows"] == "memory"
    ]
    if not memory:
        return section("Scaling", text, table(("", *axes), cells))
    sizes = next(row for row in rows if row["grows"] == "memory")
    said = (
        f"\nPeak MiB of a whole run on models of as many blocks, {sizes['block_bytes'] / _MIB:.1f} MiB each, "
        "by `--offload`; *growth* is that of the peak for each byte of added blocks.\n\n"
    )
    heads = ("", *(f"{size} blocks" for size in sizes["sizes"]), "growth")
    return section("Scaling", text, table(("", *axes), cells)) + said + table(heads, memory)


def soak_section(rows: Sequence[Row]) -> str:
    """Memory over many runs, and what came of kills; empty without rows."""
    runs = [row for row in rows if row["name"] == "runs"]
    kills = [row for row in rows if row["name"] == "kills"]
    if not kills:
        return ""
    outcomes = list(dict.fromkeys(outcome for row in kills for outcome in row["came_of_it"]))
    cells = [
        (row["stage"], str(row["kills"]), *(str(row["came_of_it"].get(outcome, 0)) for outcome in outcomes))
        for row in kills
    ]
    total = [str(sum(row["came_of_it"].get(outcome, 0) for row in kills)) for outcome in outcomes]
    cells.append(("all", str(sum(row["kills"] for row in kills)), *total))
    text = (
        "A tiny model; each command is killed (SIGKILL) at a moment drawn at random, or before a step in the "
        "file system drawn at random; then the same command follows, both with `--resume` where that is. "
        "*From the start*, *gone on* (something had been kept) and *whole already* end in what an "
        "uninterrupted run makes, with nothing left beside it. (`soak.py`)"
    )
    found = section("Killed at any moment", text, table(("", "kills", *outcomes), cells))
    for row in kills:
        for fault in row["faults"]:
            told, _, _ = fault.partition(': "')
            found += f"\nThe fault of *{row['stage']}*: {told} …\n"
    for row in runs:
        resident = row["resident_bytes"]
        growth = row["growth_bytes_per_run"] / 1024
        found += (
            f"\n{len(resident)} runs in one process: {_mib(resident[0])} MiB resident after the first, "
            f"{_mib(round(mean(resident[-3:])))} at the end, {growth:.0f} KiB more with each run.\n"
        )
    return found


def _seconds(taken: Sequence[float]) -> str:
    return f"{mean(taken):.0f}"


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / _MIB:,.0f}"
