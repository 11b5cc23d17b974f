"""The section of docs/measured.md on recovery."""

from collections.abc import Sequence

from layout import Row, number, section, table

_UNITS = {"density": "zeros", "width": "removed"}


def recovery_section(rows: Sequence[Row]) -> str:
    """What each training brought back, and the speed of training; empty without rows."""
    trained = [row for row in rows if row["benchmark"] == "recovery"]
    if not trained:
        return ""
    cells = [
        (
            _model(row),
            row["method"],
            row["loss"],
            f"{row['tokens']:,}",
            number(row["before"]),
            number(row["after"]),
            f"{row['regained']:.0%}",
            f"{row['cpu_seconds'] / 60:.0f}",
            f"{row['peak_host_bytes'] / 2**30:.1f}",
        )
        for row in sorted(trained, key=lambda row: (row["name"], row["tokens"], row["after"]))
    ]
    text = (
        "`owl-compress recover` on windows of 512 tokens of WikiText-2 validation, evaluated on the first 20 "
        "of the test text. *Regained* is the share of the logarithm of perplexity that the compression lost "
        "and the training brought back. Budgets by owl; structured with repair. What was zero, or gone, "
        "stayed so in every row. (`recovery.py`)"
    )
    header = ("", "method", "loss", "tokens", "before", "after", "regained", "CPU minutes", "GiB")
    return section("Recovery", text + _speed(rows), table(header, cells))


def _model(row: Row) -> str:
    return f"{row['name'].partition('-')[0]}, {1 - row['kept']:.0%} {_UNITS[row['unit']]}"


def _speed(rows: Sequence[Row]) -> str:
    return "".join(
        f" Speed of training: {row['ratio']:.2f} of a plain loop of torch and peft with the same adapter, "
        f"median of {row['steps']} pairs of steps of {row['seq_len']} tokens."
        for row in rows
        if row["benchmark"] == "recovery-speed"
    )
