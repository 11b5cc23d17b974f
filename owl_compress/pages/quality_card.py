"""The quality of a checkpoint on its card: perplexity, agreement and accuracy, before and after."""

from owl_compress.documents.measurements import Evaluation
from owl_compress.documents.result import Result
from owl_compress.pages.markdown import code, table
from owl_compress.pages.words import score_in_words, windows_in_words


def quality_section(result: Result) -> list[str]:
    """What was measured before and after; where nothing was, that too."""
    if result.evaluation is None and result.tasks is None:
        return ["## Quality\n\nNot measured in this run: evaluate before use (`owl-compress eval`)."]
    measured = [*_perplexity(result), *_accuracy(result)]
    return ["\n\n".join(["## Quality", *measured]) + " Nothing else was measured."]


def _perplexity(result: Result) -> list[str]:
    if result.evaluation is None:
        return []
    dense, compressed = result.evaluation.dense, result.evaluation.compressed
    rows = [(name, f"{row.perplexity:.3f}") for name, row in (("before", dense), ("after", compressed))]
    protocol = f" (protocol {dense.protocol})" if dense.protocol else ""
    return [
        table(("", "perplexity"), rows)
        + _agreement(result.evaluation)
        + f"\n\nOn {code(dense.data)}{protocol}: {windows_in_words(dense)}; both in one process."
    ]


def _agreement(evaluation: Evaluation) -> str:
    """Bits of both models where they are known, and how nearly the second predicts what the first does."""
    text = ""
    before, after = (one.bits_per_byte for one in (evaluation.dense, evaluation.compressed))
    if before is not None and after is not None:
        text += f"\n\nIn bits for each byte of text: {before:.4f} before, {after:.4f} after."
    if (found := evaluation.agreement) is not None:
        text += (
            f"\n\nKL divergence from the dense model's predictions: {found.kl:.4g} nats a token; both find "
            f"the same token the likeliest at {found.top1:.1%} of the places."
        )
    return text


def _accuracy(result: Result) -> list[str]:
    if result.tasks is None:
        return []
    pairs = [(one, result.tasks.compressed[name]) for name, one in result.tasks.dense.items()]
    rows = [
        (
            code(dense.task),
            dense.metric,
            score_in_words(dense),
            score_in_words(compressed),
            "–" if dense.chance is None else f"{dense.chance:.4f}",
            f"{dense.samples:,}",
            str(dense.shots),
        )
        for dense, compressed in pairs
    ]
    header = ("task", "metric", "before", "after", "guessing", "samples", "shots")
    return [table(header, rows) + "\n\nScored by lm-eval, ± one standard error; both in one process."]
