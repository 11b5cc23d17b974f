"""The trainings of a compressed model, as commands show them."""

from owl_compress.cli.sheet import Column, Sheet
from owl_compress.documents.recovery import RecoveryRecord
from owl_compress.documents.result import Result


def recovery_table(result: Result) -> Sheet:
    """Perplexity before and after each training that the model had."""
    records = result.recoveries
    columns = (
        Column("method", tuple(map(_method, records)), is_text=True),
        Column("loss", tuple(one.loss for one in records), is_text=True),
        Column("tokens", tuple(f"{one.tokens:,}" for one in records)),
        Column("minutes", tuple(f"{one.seconds / 60:.1f}" for one in records)),
        Column("perplexity before", tuple(f"{one.before.perplexity:.3f}" for one in records)),
        Column("after", tuple(f"{one.after.perplexity:.3f}" for one in records)),
    )
    last = records[-1]
    notes = (f"on {last.after.windows} held-out windows of {last.after.seq_len} tokens of {last.after.data}",)
    return Sheet(f"Recovery of {result.model.id}, {result.budgets[0].unit}", columns, notes)


def _method(record: RecoveryRecord) -> str:
    return f"{record.method}, merged" if record.parameters.get("merge") else record.method
