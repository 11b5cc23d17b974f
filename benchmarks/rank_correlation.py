"""Do cheap measures order the parts of a model as the divergence of its output does? One row per subject.

    python benchmarks/rank_correlation.py --calib validation.txt --profiles FOLDER [--only wanda] > rows.jsonl

Spearman's rank correlation over the parts of the embedded model, at each level by itself and then the mean
over the levels. KL is that of the profiles in FOLDER, which `sensitivity.py` made (seed 0); output-error and
fisher are measured on the same windows, lod@5 and lod@10 on the calibration windows.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from rows import print_row
from scipy.stats import spearmanr
from sensitivity import SUBJECTS, Subject, Texts, profile_path

from owl_compress import SensitivityProfile, load, measure
from owl_compress.backends import BACKENDS
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.sensitivity import Measure, PartDamage
from owl_compress.importance.profile import ProfileOptions, profile
from owl_compress.importance.reference import DEFAULT_POSITIONS

_METRICS = ("lod@5", "lod@10")


def main() -> None:
    """One row for each subject of which there is a profile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--profiles", type=Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--damage-samples", type=int, default=4)
    arguments = parser.parse_args()
    arguments.seed, arguments.positions = 0, DEFAULT_POSITIONS
    arguments.data = arguments.calib  # nothing is evaluated
    loaded = load("builtin")
    texts = Texts.of(loaded, arguments)
    report = measure(loaded.model, texts.calibration)
    for subject in SUBJECTS:
        path = profile_path(arguments, subject)
        if arguments.only in {"", subject.name} and path.is_file():
            known = SensitivityProfile.read(path)
            correlations = {
                one.value: _correlation(_damages(known), _damages(_measured(loaded, texts, subject, one)))
                for one in (Measure.OUTPUT_ERROR, Measure.FISHER)
            }
            correlations |= {metric: _with_metric(known, report, metric) for metric in _METRICS}
            print_row("rank_correlation", name=subject.name, parts=len(known.parts), **correlations)


def _measured(loaded: Any, texts: Texts, subject: Subject, one: Measure) -> SensitivityProfile:
    options = ProfileOptions(part=subject.part, levels=subject.levels, grid=subject.grid, measure=one)
    backend = BACKENDS.create(subject.backend, subject.options)
    return profile(loaded.model, backend, texts.calibration, texts.damage, options)


def _damages(found: SensitivityProfile) -> dict[float, dict[str, float]]:
    """Damage by level and part; the part as it is left out."""
    by_level: dict[float, dict[str, float]] = {}
    for part in found.parts:
        for level, damage in zip(part.levels, part.damage, strict=True):
            if level != 1:
                by_level.setdefault(round(level, 6), {})[part.name] = damage
    return by_level


def _correlation(
    own: Mapping[float, Mapping[str, float]], other: Mapping[float, Mapping[str, float]]
) -> float:
    """Mean over the levels that most parts have."""
    found = []
    for level, damages in own.items():
        names = [name for name in damages if name in other.get(level, {})]
        if len(names) > 2:
            pairs = [(damages[name], other[level][name]) for name in names]
            found.append(float(spearmanr(*zip(*pairs, strict=True)).statistic))
    return mean(found)


def _with_metric(known: SensitivityProfile, report: ImportanceReport, metric: str) -> float:
    """A metric is the same at every level; that of a part is the mean over its linears."""
    of_linear = {linear.name: linear for block in report.blocks for linear in block.linears}
    of_block = {block.name: block.metrics[metric] for block in report.blocks}

    def value(part: PartDamage) -> float:
        if part.name in of_block:
            return of_block[part.name]
        linears = [of_linear[name] for name in part.linears]
        return sum(one.metrics[metric] * one.n_weights for one in linears) / part.n_weights

    values = {part.name: value(part) for part in known.parts}
    own = _damages(known)
    return _correlation(own, dict.fromkeys(own, values))


if __name__ == "__main__":
    main()
