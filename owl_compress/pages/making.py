"""How it was made: recipe, command, texts, methods with their options, versions, and fingerprints."""

from collections.abc import Mapping

from owl_compress.documents.findings import Findings
from owl_compress.documents.provenance import CalibrationRecord
from owl_compress.pages.page import Code, Facts, Part, Prose, Section
from owl_compress.pages.words import options_in_words


def made_section(findings: Findings) -> Section:
    """All that somebody needs to make it again, and to tell whether it is the same."""
    parts: list[Part] = [Facts(_facts(findings))]
    if findings.recipe:
        parts += [
            Prose("This makes the checkpoint again, with the same versions and on the same machine:"),
            Code(f"owl-compress run recipe.yaml -o OUT\n\n{findings.recipe}"),
        ]
    return Section("made", "How it was made", parts)


def _facts(findings: Findings) -> list[tuple[str, str]]:
    facts = _model(findings)
    for name, plan in findings.plans.items():
        facts.append(
            (f"allocator of {name}", f"{plan.allocator.name} ({_options(plan.allocator.parameters)})")
        )
    for name, result in findings.results.items():
        facts.append((f"backend of {name}", f"{result.backend.name} ({_options(result.backend.parameters)})"))
        facts.append((f"seed of {name}", str(result.seed)))
        facts += [
            (f"fallback in {name}", f"{one.what}: {one.where} ({one.count}×)") for one in result.fallbacks
        ]
        facts += [(f"note on {name}", note) for note in result.notes]
    facts += [(what, text_in_words(record)) for what, record in _texts(findings).items()]
    facts += list(versions_of(findings).items())
    return [
        *facts,
        *((f"fingerprint of {one.path.name}", one.document.fingerprint) for one in findings.files),
    ]


def _model(findings: Findings) -> list[tuple[str, str]]:
    documents = (findings.report, findings.profile, *findings.results.values())
    identity = next((one.model for one in documents if one), None)
    if identity is None:
        return []
    revision = f", revision {identity.revision}" if identity.revision else ""
    return [("model", f"{identity.id}{revision}, family {identity.family}, {identity.dtype}")]


def _options(parameters: Mapping[str, object]) -> str:
    return options_in_words(None, dict(parameters))


def _texts(findings: Findings) -> dict[str, CalibrationRecord]:
    found: dict[str, CalibrationRecord | None] = {}
    if findings.report:
        found["text that importance was measured on"] = findings.report.provenance.calibration
    if findings.profile:
        found["text that the profile's backend saw"] = findings.profile.statistics
        found["text that damage was measured on"] = findings.profile.damage_text
    for name, result in findings.results.items():
        found[f"text that the backend of {name} saw"] = result.calibration
    return {what: record for what, record in found.items() if record}


def text_in_words(record: CalibrationRecord) -> str:
    """Which tokens were used, in a line."""
    return (
        f"{record.sequences} sequences of {record.seq_len} tokens from {record.source}, sampling "
        f"{record.sampling}, seed {record.seed}, BOS {record.bos}; sha256 of the token ids "
        f"{record.token_ids_sha256}"
    )


def versions_of(findings: Findings) -> dict[str, str]:
    """Versions by the kind of document, each said once where all agree."""
    found = {
        **({"report": findings.report.provenance.versions} if findings.report else {}),
        **({"profile": findings.profile.versions} if findings.profile else {}),
        **{name: result.versions for name, result in findings.results.items()},
    }
    told = {name: versions_in_words(versions) for name, versions in found.items()}
    if len(set(told.values())) == 1:
        return {"versions": next(iter(told.values()))}
    return {f"versions of {name}": text for name, text in told.items()}


def versions_in_words(versions: Mapping[str, str]) -> str:
    """Programs and their numbers, in a line."""
    return ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))
