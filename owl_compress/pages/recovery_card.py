"""Recovery on the card of a checkpoint: what it was trained on, and what that was worth."""

from owl_compress.documents.recovery import RecoveryRecord
from owl_compress.documents.result import Result
from owl_compress.documents.stored_format import StoredFormat, with_adapter
from owl_compress.pages.markdown import code, table
from owl_compress.pages.words import options_in_words, windows_in_words


def with_what_was_learned(stored: StoredFormat, result: Result) -> StoredFormat:
    """How to use the folder, with the adapter of the last recovery where it left one beside the weights."""
    last = result.recoveries[-1] if result.recoveries else None
    if last is None or last.adapter is None:
        return stored
    rank = last.parameters.get("rank")
    return with_adapter(stored, last.adapter, rank if isinstance(rank, int) else 1)


def recovery_section(result: Result) -> list[str]:
    """Every training since the compression; nothing where there was none."""
    if not result.recoveries:
        return []
    rows = [
        (
            one.method,
            f"{one.tokens:,}",
            f"{one.before.perplexity:.3f}",
            f"{one.after.perplexity:.3f}",
        )
        for one in result.recoveries
    ]
    told = [_in_words(one) for one in result.recoveries]
    last = result.recoveries[-1]
    if last.adapter:
        told.append(f"The weights are those of the compression; what was learned lies in `{last.adapter}/`.")
    header = ("method", "tokens", "perplexity before", "after")
    return ["\n\n".join(["## Recovery", table(header, rows), *told])]


def _in_words(record: RecoveryRecord) -> str:
    text, after = record.text, record.after
    goal = "the next token" if record.teacher is None else f"what {code(record.teacher)} predicts"
    options = options_in_words(record.parameters, {})
    method = f"{record.method} ({options})" if record.parameters else record.method
    return (
        f"Trained after the compression by **{method}** on {goal}: {record.steps:,} steps of "
        f"{record.sequences_per_step} sequences of {text.seq_len} tokens from {code(text.source)} "
        f"({text.sequences} different ones, seed {record.seed}; sha256 of the token ids "
        f"`{text.token_ids_sha256[:16]}…`), learning rate {record.learning_rate:g}, "
        f"{record.trained_parameters:,} values trained. What was zero stayed zero, counted from the files. "
        f"Perplexity on {code(after.data)}, held apart: {windows_in_words(after)}."
    )
