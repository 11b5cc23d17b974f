"""The section of a model card on budgets that were made from damages."""

from collections import Counter

from owl_compress.documents.measurements import DamageRecord
from owl_compress.documents.outputs import DAMAGE_PICTURE
from owl_compress.documents.provenance import CalibrationRecord
from owl_compress.documents.sensitivity import Measure, PartKind, SensitivityProfile
from owl_compress.pages.markdown import code, table

_PARTS = {
    PartKind.BLOCK: "block",
    PartKind.SUBLAYER: "attention or feed-forward",
    PartKind.TIED: "group of linears that servers fuse",
    PartKind.ROLE: "group of linears of one role",
    PartKind.LINEAR: "linear",
}
_MEASURES = {
    Measure.KL: "KL(dense ‖ changed) of the next-token distribution, in nats",
    Measure.LOSS: "by how much the loss of the next token rises, in nats",
    Measure.OUTPUT_ERROR: "the squared change of the block's output over its square",
    Measure.FISHER: "the second-order term of KL(dense ‖ changed), in nats (Fisher)",
}


def damage_section(profile: SensitivityProfile | None, record: DamageRecord | None) -> list[str]:
    """How the damages were measured, their picture, and what came of it; nothing where none were."""
    texts = []
    if profile is not None:
        texts.append(f"![Damage of each part at each level, and the level that it got]({DAMAGE_PICTURE})")
        texts.append(_how_measured(profile))
    if record is not None:
        texts.append(_what_came_of_it(record))
    return ["\n\n".join(["## Damage", *texts])] if texts else []


def _how_measured(profile: SensitivityProfile) -> str:
    kinds = Counter(part.kind for part in profile.parts)
    kind, _ = kinds.most_common(1)[0]
    seen = f", on statistics of {_windows(profile.statistics)}" if profile.statistics else ""
    return (
        f"The budgets were made from measured damage. With everything else dense, one {_PARTS[kind]} after "
        f"the other ({len(profile.parts)} parts) was compressed at several levels by "
        f"**{profile.backend.name}**{seen}. Damage is {_MEASURES[profile.measure]}, a mean over "
        f"{_windows(profile.damage_text)}, held apart. That cost as much as {profile.forward_tokens:,.0f} "
        "tokens forward through the model. Every damage is in `sensitivity.json`."
    )


def _windows(record: CalibrationRecord) -> str:
    return (
        f"{record.sequences} windows of {record.seq_len} tokens from {code(record.source)} "
        f"(seed {record.seed}, sha256 of the token ids `{record.token_ids_sha256[:16]}…`)"
    )


def _what_came_of_it(record: DamageRecord) -> str:
    lines = [table(("", "damage"), outcome_of_damage(record))]
    if record.ratio is not None:
        lines.append(
            f"The predicted damage is {record.ratio:.3g} of that of the compressed model: damages of single "
            "parts add up exactly at 1."
        )
    if record.carried_out == "uniform":
        lines.append(
            "Equal shares were carried out: what the budgets from damages gained over these was less than "
            "the standard error of the difference."
        )
    return "\n\n".join(lines)


def outcome_of_damage(record: DamageRecord) -> list[tuple[str, str]]:
    """What was predicted, what it came to, and what was tried before, as far as these are known."""
    rows = [
        (f"predicted: the sum over all parts ({record.measure})", record.predicted),
        ("the compressed model, on the windows of the profile (KL)", record.damage),
        ("tried before, on windows held apart: budgets from damages (KL)", record.trial_damage),
        ("tried before, on the same windows: equal shares (KL)", record.uniform_damage),
        ("standard error of the difference between the two", record.standard_error),
    ]
    return [(what, f"{it:.4g}") for what, it in rows if it is not None]
