"""The model card: README.md of an output folder. States what was done and what was measured, nothing else."""

from collections.abc import Sequence
from math import fsum

from owl_compress.documents.coverage import percent
from owl_compress.documents.plan import Plan
from owl_compress.documents.provenance import Origin
from owl_compress.documents.result import LinearResult, Result
from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.documents.stored_format import StoredFormat
from owl_compress.documents.units import KeptOfGrid, Unit
from owl_compress.pages.card_metadata import metadata
from owl_compress.pages.damage_card import damage_section
from owl_compress.pages.markdown import code, table
from owl_compress.pages.quality_card import quality_section
from owl_compress.pages.recovery_card import recovery_section, with_what_was_learned
from owl_compress.pages.words import (
    NOT_KNOWN,
    Given,
    as_asked,
    asked_name,
    options_in_words,
)
from owl_compress.plain_text import plain

_SOURCES = {
    None: "",
    "dense": ", on which the backend saw the inputs of the dense model",
    "sequential": ", on which the backend saw the inputs of each block behind the compressed ones before it",
    "true-sequential": ", on which the backend saw the inputs of each linear behind the compressed ones",
}
"""Whose inputs the backend was told of, in words."""


def model_card(
    result: Result,
    plan: Plan,
    recipe_yaml: str | None = None,
    origin: Origin | None = None,
    *,
    stored: StoredFormat,
    credit: str | None = None,
    given: Given = NOT_KNOWN,
    profile: SensitivityProfile | None = None,
) -> str:
    """README.md for an output folder: the same result, plan and recipe give the same text.

    `stored` says how the weights lie in the folder, `credit` what the allocator follows, `given` with which
    options its methods are called; else these go by the names that the files have for them. `profile` is the
    one that the plan was made from, with its picture in the folder.
    Durations and peak memory differ from run to run and stay in result.json.
    """
    origin = origin or Origin()
    sections = [
        metadata(plan, result, origin, stored),
        f"# {_short(result.model.id)}, compressed with owl-compress",
        _what_was_done(result, plan, given),
        *_earlier(result),
        _totals(result, plan),
        *_footprint(result),
        *_quantization(result, plan, stored),
        *quality_section(result),
        *recovery_section(result),
        *damage_section(profile, result.sensitivity),
        *_remarks(result),
        _how_to_load(plan, with_what_was_learned(stored, result)),
        _blocks(result, plan),
        *_recipe(recipe_yaml),
        _versions(result, credit),
    ]
    # Names come from files of strangers, and the card is shown in browsers and terminals.
    return "\n".join(plain(line) for line in "\n\n".join(sections).split("\n")) + "\n"


def _what_was_done(result: Result, plan: Plan, given: Given) -> str:
    identity = result.model
    revision = f" (revision `{identity.revision}`)" if identity.revision else ""
    share = _share_of_the_blocks(result)
    budget = f"{_target(plan, is_partial=bool(share))}{share}"
    divided = options_in_words(given.allocator, plan.allocator.parameters)
    carried_out = options_in_words(given.backend, result.backend.parameters)
    text = (
        f"{code(identity.id)}{revision}, family {identity.family}, in {identity.dtype}, with "
        f"{budget}. The allocator **{plan.allocator.name}** "
        f"({divided}) gave every block its budget, and the backend "
        f"**{result.backend.name}** ({carried_out}) carried it out, "
        f"with seed {result.seed}. "
    )
    if result.coverage and result.coverage.left_out:
        text += f"No budget reaches {code(result.coverage.named)}, which stayed as they were. "
    if plan.skipped:
        text += f"Left as they were and not in the account: {len(plan.skipped)} linear(s). "
    calibration = result.calibration
    if calibration is None:
        return text + "No calibration text was used."
    return text + (
        f"Calibration: {calibration.sequences} sequences of {calibration.seq_len} tokens from "
        f"{code(calibration.source)} (sampling {calibration.sampling}, seed {calibration.seed}, "
        f"BOS {calibration.bos}; sha256 of the token ids `{calibration.token_ids_sha256[:16]}…`)"
        f"{_SOURCES[result.statistics]}."
    )


def _target(plan: Plan, *, is_partial: bool = False) -> str:
    """The budget in words; with `is_partial` it is for a part of the blocks."""
    if isinstance(plan.grid, KeptOfGrid):
        m = plan.grid.kept_of
        asked = "" if plan.asked == plan.target else f", where {plan.asked * m:g} were asked for"
        kept = f"{plan.target * m:g} of every {m} weights of the compressed linears kept on average"
        return f"{kept} (N:{m}){asked}"
    if plan.unit is Unit.BITS:
        return f"{plan.target:g} bits per weight on average over the compressed linears"
    what = "weights" if plan.unit is Unit.DENSITY else "removable parameters (attention heads, FFN channels)"
    where = "of its compressed linears" if is_partial else "in its transformer blocks"
    return f"{100 * (1 - plan.target):.4g} % of the {what} {where} removed"


def _share_of_the_blocks(result: Result) -> str:
    """How much of the blocks the budget is for, and what is gone of it all; nothing where it is for all."""
    coverage, totals = result.coverage, result.totals
    if coverage is None or totals.n_weights >= coverage.n_weights:
        return ""
    share = totals.n_weights / coverage.n_weights
    text = f", which hold {percent(share)} of the weights in its transformer blocks"
    if result.budgets[0].unit is not Unit.DENSITY:
        return text
    return f"{text}: {percent(share * (1 - totals.achieved))} of all of these are gone"


def _totals(result: Result, plan: Plan) -> str:
    totals = result.totals
    rows = [
        (f"{asked_name(plan.unit)}, asked", f"{as_asked(plan.unit, totals.asked):.6f}"),
        (f"{asked_name(plan.unit)}, achieved (counted)", f"{as_asked(plan.unit, totals.achieved):.6f}"),
        ("weights in the compressed linears", f"{totals.n_weights:,}"),
        ("parameters before", f"{totals.n_params_before:,}"),
        ("parameters after", f"{totals.n_params_after:,}"),
        ("bits per weight, whole model", f"{totals.bits_per_weight:.4f}"),
        ("weight files", f"{totals.bytes_on_disk:,} bytes"),
    ]
    text = "## Size\n\n" + table(("", "value"), rows)
    if plan.unit is Unit.DENSITY:
        text += "\n\nThe zeros are stored like any other weight: they make the files no smaller."
    return text


def _earlier(result: Result) -> list[str]:
    if not result.earlier:
        return []
    rows = [
        (
            code(step.model),
            step.backend,
            f"{asked_name(step.unit)} {as_asked(step.unit, step.achieved):.6f}",
            f"{step.n_params_before:,}",
            f"{step.n_params_after:,}",
        )
        for step in result.earlier
    ]
    return [
        "## Compressed before\n\n"
        + table(("model", "backend", "achieved", "parameters before", "parameters after"), rows)
        + "\n\nOldest first. The budgets of this step are shares of what the last of them left."
    ]


def _footprint(result: Result) -> list[str]:
    if result.footprint is None:
        return []
    before, after = result.footprint.before, result.footprint.after
    context = before.context_len
    rows = [
        (name, _count(old), _count(new), f"{1 - new / old:.4f}" if old and new is not None else "–")
        for name, old, new in (
            ("parameters", before.n_params, after.n_params),
            (
                "key-value cache, bytes per token",
                before.kv_cache_bytes_per_token,
                after.kv_cache_bytes_per_token,
            ),
            (
                "operations per token, linears of the blocks",
                before.flops_per_token_blocks,
                after.flops_per_token_blocks,
            ),
            (
                f"operations per token, attention over {context}",
                before.flops_per_token_attention,
                after.flops_per_token_attention,
            ),
            ("operations per token, output layer", before.flops_per_token_head, after.flops_per_token_head),
        )
    ]
    return [
        "## What is smaller\n\n"
        + table(("", "before", "after", "removed"), rows)
        + "\n\nCounted from shapes: a multiplication and an addition are two operations. How much faster it "
        "runs is measured by `owl-compress eval FOLDER --latency`."
    ]


def _count(number: int | None) -> str:
    return "not known" if number is None else f"{number:,}"


def _quantization(result: Result, plan: Plan, stored: StoredFormat) -> list[str]:
    if plan.unit is not Unit.BITS:
        return []
    widths: dict[float, list[int]] = {}
    for row in result.budgets:
        widths.setdefault(row.achieved, []).append(row.n_weights)
    rows = [(f"{bits:g}", f"{len(sizes)}", f"{sum(sizes):,}") for bits, sizes in sorted(widths.items())]
    group_size = result.backend.parameters.get("group_size")
    groups = f"every {group_size} consecutive inputs" if group_size else "all inputs"
    zero_point = "" if result.backend.parameters.get("symmetric", True) else " and zero point"
    return [
        "## Quantization\n\n"
        + table(("bits", "linears", "weights"), rows)
        + f"\n\nEach output has one scale{zero_point} for {groups}. {stored.description}. "
        "Embeddings, norms, biases and the output layer are as they were."
    ]


def _remarks(result: Result) -> list[str]:
    lines = [f"- {one.what}: {one.where} ({one.count}×)" for one in result.fallbacks]
    lines += [f"- {note}" for note in result.notes]
    return ["## Fallbacks and notes\n\n" + "\n".join(lines)] if lines else []


def _how_to_load(plan: Plan, stored: StoredFormat) -> str:
    text = f"## How to load\n\n{stored.how_to_load}"
    if plan.unit is Unit.DENSITY:
        text += "\n\nIt runs as a dense model; nothing here was measured to be faster."
    others = (("vLLM", stored.vllm), ("lm-eval", stored.lm_eval))
    return "\n\n".join([text, *(f"### {name}\n\n{words}" for name, words in others if words)])


def _blocks(result: Result, plan: Plan) -> str:
    achieved: dict[str, list[LinearResult]] = {}
    for linear in result.budgets:
        achieved.setdefault(linear.block, []).append(linear)
    rows = []
    for block in plan.per_block:
        linears = achieved.get(block.name)
        got = f"{as_asked(plan.unit, _mean(linears, 'achieved')):.4f}" if linears else "–"
        error = f"{_mean(linears, 'relative_error'):.4f}" if linears else "–"
        rows.append(
            (code(block.name), f"{block.n_weights:,}", f"{as_asked(plan.unit, block.value):.4f}", got, error)
        )
    header = ("block", "weights", f"{asked_name(plan.unit)}, asked", "achieved", "error")
    return (
        "## Budget of each block\n\n"
        + table(header, rows)
        + f"\n\nMeans over the weights of a block. Error: {result.error_measure}. "
        "Every linear by itself is in `result.json`."
    )


def _recipe(recipe_yaml: str | None) -> list[str]:
    if recipe_yaml is None:
        return []
    return [
        f"## Recipe\n\n```yaml\n{recipe_yaml.strip()}\n```\n\n"
        "`owl-compress run recipe.yaml -o OUT` makes this checkpoint again, with the versions below and on "
        "the same machine."
    ]


def _versions(result: Result, credit: str | None) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in sorted(result.versions.items()))
    made_from = f"report `{result.report[:16]}…`, " if result.report else ""
    text = f"{versions}. Fingerprints: {made_from}plan `{result.plan[:16]}…`."
    if credit:
        text += f"\nThe allocator follows {credit}."
    return f"## Versions\n\n{text}"


def _mean(rows: Sequence[LinearResult], field: str) -> float:
    """Mean of a field of the linears, weighted by their number of weights."""
    return fsum(row.n_weights * getattr(row, field) for row in rows) / sum(row.n_weights for row in rows)


def _short(model_id: str) -> str:
    return model_id.rstrip("/").rpartition("/")[2] or model_id
