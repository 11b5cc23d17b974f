"""A profile extended by further parts or levels of the same measurement."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from owl_compress.documents.provenance import CalibrationRecord, ModelIdentity
from owl_compress.documents.sensitivity import PartDamage, PartKind, SensitivityProfile
from owl_compress.errors import RequestError
from owl_compress.importance.parts import Part

_SAME = {
    "model": "model",
    "unit": "unit",
    "grid": "N:M grid",
    "backend": "backend or its options",
    "measure": "measure",
    "linears": "linears of the model",
    "statistics": "calibration windows",
    "damage_text": "windows that damage was measured on",
    "positions": "number of positions",
}
"""What has to agree for damages to be comparable, by field, in words."""


def check_extends(known: SensitivityProfile, header: Mapping[str, Any], kind: PartKind) -> None:
    """Refuse to extend a profile by damages that would mean something else.

    Raises:
        RequestError: naming what differs.
    """
    for field, words in _SAME.items():
        before = getattr(known, field)
        if _essence(before) != _essence(header[field]):
            what = f"the profile to extend differs in its {words} ({_both_shown(before, header[field])})"
            if field == "damage_text" and known.statistics is None:
                what += ", which were kept clear of calibration windows that the backend does not read"
                raise RequestError(f"{what}: give the --samples, --seq-len and --seed it was measured with")
            raise RequestError(f"{what}: measure a profile of its own")
    other = next((part for part in known.parts if part.kind is not kind), None)
    if other is not None:
        raise RequestError(
            f"the profile to extend is by {other.kind}, not by {kind}: give --part {other.kind}"
        )


def check_same_parts(known: SensitivityProfile, parts: Sequence[Part]) -> None:
    """Refuse parts that share a linear with a known part and are not the same: they have no curve in common.

    Raises:
        RequestError: naming the part, and a linear that one of them lacks.
    """
    part_of = {name: part for part in known.parts for name in part.linears}
    for part in parts:
        own = {linear.name for linear in part.linears}
        for before in (part_of[name] for name in own if name in part_of):
            if lacking := own.symmetric_difference(before.linears):
                name = min(lacking)
                there, here = ("without", "with") if name in own else ("with", "without")
                raise RequestError(
                    f"part {before.name} of the profile to extend was measured {there} {name}, and would be "
                    f"{here} it now: give the same --skip and --parts, or measure a profile of its own"
                )


def _essence(value: Any) -> Any:
    """What has to agree of a value: a folder or file may be named from elsewhere."""
    match value:
        case ModelIdentity():
            return value.model_copy(update={"id": PurePath(value.id).name})
        case CalibrationRecord():
            return value.model_copy(update={"source": PurePath(value.source).name})
    return value


def _both_shown(before: Any, now: Any) -> str:
    """What was and what is, or that part of a model in which they differ."""
    if isinstance(before, ModelIdentity) and isinstance(now, ModelIdentity) and before.id == now.id:
        for name, was in before:
            if was != getattr(now, name):
                return f"{name} {was}, now {getattr(now, name)}"
    return f"{_shown(before)}, now {_shown(now)}"


def _shown(value: Any) -> str:
    """A value in a few words."""
    if isinstance(value, str):  # members of an enumeration have a name, too
        return str(value)
    for name in ("name", "id", "token_ids_sha256", "kept_of"):
        if hasattr(value, name):
            parameters = getattr(value, "parameters", None)
            text = str(getattr(value, name))
            return f"{text} {parameters}" if parameters else text[:16] if name.endswith("256") else text
    return f"{len(value)} of them" if isinstance(value, tuple) else str(value)


def extended(known: SensitivityProfile, further: SensitivityProfile) -> SensitivityProfile:
    """`known` with the parts and levels of `further`; parts in the order of the model, costs added up."""
    parts = {part.name: part for part in known.parts}
    for part in further.parts:
        before = parts.get(part.name)
        parts[part.name] = part if before is None else _joined(before, part)
    order = {linear.name: place for place, linear in enumerate(known.linears)}
    ordered = sorted(parts.values(), key=lambda part: min(order[name] for name in part.linears))
    changed = {"parts": tuple(ordered), "forward_tokens": known.forward_tokens + further.forward_tokens}
    return SensitivityProfile.model_validate({**known.model_dump(), **_dumped(changed)})


def _joined(before: PartDamage, further: PartDamage) -> PartDamage:
    curve = dict(zip(before.levels, before.damage, strict=True))
    curve |= dict(zip(further.levels, further.damage, strict=True))
    levels = tuple(sorted(curve))
    return before.model_copy(
        update={
            "levels": levels,
            "damage": tuple(curve[level] for level in levels),
            "asked": tuple(sorted({*(before.asked or ()), *(further.asked or ())})) or None,
        }
    )


def _dumped(changed: Mapping[str, Any]) -> dict[str, Any]:
    return {**changed, "parts": [part.model_dump() for part in changed["parts"]]}
