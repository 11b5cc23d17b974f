"""Tables of what things cost: latency, memory, the steps of a run, a comparison."""

from collections.abc import Sequence

from layout import Row, section, table


def latency_section(rows: Sequence[Row]) -> str:
    """How much faster what structured removal leaves is."""
    if not rows:
        return ""
    cells = [
        (
            f"{row['name']} {row['step']}, batch {row['dense']['shape']['batch_size']}",
            f"{row['promised']:.2f}",
            f"{row['products']:.2f}",
            f"{row['blocks']:.2f}",
            f"{row['blocks_of_promised']:.2f}",
            f"{row['whole']:.2f}",
        )
        for row in rows
    ]
    text = (
        "Dense time over pruned time, in turns in one process. *Promised* is the blocks' weights before over "
        "after; *products* is what their matrix products gain by themselves, all else left out. "
        "The embedding and the output layer, which stay whole, are in *model*. *Compiled* is decode "
        "through torch.compile; prefill is never compiled, and says there what two runs differ by. The 1.1B "
        "model is of random weights. (`latency.py`)"
    )
    header = ("", "promised", "products", "blocks", "blocks of promised", "model")
    return section("Speed of what structured removal leaves", text, table(header, cells))


def memory_section(runs: Sequence[Row], structured: Sequence[Row]) -> str:
    """The peaks of whole runs, and of what structured removal holds beside a model."""
    if not runs and not structured:
        return ""
    cells = [*map(_memory_of_a_run, runs), *map(_memory_of_structured, structured)]
    text = (
        "The most that is taken on the way, in MiB. *Structured*, 40 % removed: the tensors alive at once "
        "beside the model's weights and the hidden states between blocks; a device holds them beside the one "
        "block at work. Taylor keeps what goes into every block on the host; that grows with their number, "
        "and is counted here. *Run*: resident memory of the process over what it was with the model loaded, "
        "*at most* where loading had taken as much."
    )
    header = ("what", "model", "blocks", "weights", "one block", "peak beside")
    commands = dict.fromkeys(row["command"] for row in [*runs, *structured])
    made_by = "\nMade by:\n\n" + "".join(f"- `python benchmarks/{command}`\n" for command in commands)
    return section("Memory", text, table(header, cells) + made_by)


def _memory_of_a_run(row: Row) -> Sequence[str]:
    bound = "at most " if row["peak_bytes"] == row["peak_before_bytes"] else ""
    taken = bound + _mib(row["peak_bytes"] - row["resident_before_bytes"])
    return (f"run, {row['backend']}", row["model"], "", _mib(row["model_bytes"]), "", taken)


def _memory_of_structured(row: Row) -> Sequence[str]:
    return (
        f"structured, {row['importance']}{', repair' if row['repair'] else ''}",
        f"random Llama, hidden size {row['hidden']}",
        str(row["blocks"]),
        _mib(row["model_bytes"]),
        _mib(row["block_bytes"]),
        _mib(row["working_bytes"]),
    )


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:,.1f}"


def speed_section(rows: Sequence[Row]) -> str:
    """Ratios of the steps of a run."""
    cells = [
        (
            row["name"],
            f"{row['samples']} x {row['seq_len']}",
            str(row["machine"]["threads"]),
            f"{row['median_ratio']:.2f}",
            ", ".join(f"{ratio:.2f}" for ratio in row["ratios"]),
        )
        for row in rows
    ]
    text = (
        "Ratios of pairs timed in one process: *measure* over the plain forward pass; *run_owl*, a run that "
        "measures and allocates first, over one with uniform budgets; *dense_statistics*, a run that "
        "measures on all sequences and prunes on the dense model's statistics, over the same on sequential "
        "ones; *sparsegpt* over wanda; *gptq* over sparsegpt; *against_gptqmodel*, gptq over the package "
        "GPTQModel. Of single passes: *gathering* statistics, which ends at the last linear's input, and "
        "then advancing, over one pass that does both; *gram* matrices as they are summed, over whole "
        "products; *bfloat16* blocks in float32, on a CPU without instructions for bfloat16, over blocks "
        "as they are; *short_windows* of 64 tokens, eight at a time over one at a "
        "time. *loading*: the embedded GGUF parsed once, over as often as transformers asks. *profile*: 150 "
        "trials of a sensitivity profile on 200 tokens, with the statistics that they need and the "
        "compressing, over as many plain forward passes; the second row is of a machine on which a "
        "plain pass takes 1.8 times as long. (`speed.py`)"
    )
    return section("What the steps cost", text, table(("", "tokens", "threads", "median", "ratios"), cells))


def comparison_section(rows: Sequence[Row]) -> str:
    """A comparison beside its parts, and beside separate runs."""
    cells = [
        (
            str(row["cells"]),
            f"{row['cpu_seconds']:,.0f}",
            f"{row['cpu_seconds_of_runs']:,.0f}",
            f"{row['of_runs']:.2f}",
            f"{row['of_parts']:.2f}",
        )
        for row in rows
    ]
    text = (
        "One comparison (wanda at 50 and 60 % by four allocators, statistics of the dense model) beside as "
        "many separate runs, in CPU seconds, and beside the sum of its parts, by the clock. (`compare.py`)"
    )
    heads = ("cells", "CPU s", "CPU s of separate runs", "of the runs", "of its parts")
    return section("What a comparison costs", text, table(heads, cells)) if cells else ""
