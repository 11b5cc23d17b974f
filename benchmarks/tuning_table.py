"""The table of tuned plans beside equal shares."""

import re
from collections.abc import Sequence

from layout import Row, number, section, table

_LONG = re.compile(r"\d+\.\d{5,}")
"""A setting in more digits than anybody reads."""

_TEXT = (
    "What `tune` chose for a target, by judging plans on calibration text alone, and the perplexity of its "
    "plan beside that of equal shares on the test text: *ratio* is promised to be 1.01 at most. *Trial "
    "tokens* went through the model for it, with a profile that was there already where *profile* says so. "
    "(`tune.py`)"
)


def tuning_section(rows: Sequence[Row]) -> str:
    """Targets and seeds down."""
    cells = [
        (
            row["name"],
            str(row["seed"]),
            _LONG.sub(lambda found: f"{float(found[0]):.4g}", row["chosen"]),
            number(row["uniform_perplexity"]),
            number(row["perplexity"]),
            f"{row['ratio']:.3f}",
            f"{row['forward_tokens']:,.0f}",
            "yes" if row["has_profile"] else "no",
        )
        for row in rows
    ]
    heads = ("target", "seed", "chosen", "uniform", "tuned", "ratio", "trial tokens", "profile")
    return section("Tuning", _TEXT, table(heads, cells)) if cells else ""
