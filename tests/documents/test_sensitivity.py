"""sensitivity.json: what is refused, because budgets made from it would look right and be wrong."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from owl_compress.documents.provenance import CalibrationRecord, ModelIdentity
from owl_compress.documents.result import MethodRecord
from owl_compress.documents.sensitivity import SensitivityProfile

Content = dict[str, Any]


def content(unit: str = "density", levels: tuple[float, ...] = (0.25, 0.5, 1.0)) -> Content:
    """Two blocks of one linear each."""
    blocks = ["model.layers.0", "model.layers.1"]
    text = CalibrationRecord(
        source="text.txt",
        token_ids_sha256="0" * 64,
        sequences=1,
        seq_len=8,
        sampling="random",
        seed=0,
        bos="never",
    )
    return {
        "model": ModelIdentity(id="tiny", revision=None, family="llama", dtype="float32").model_dump(),
        "unit": unit,
        "backend": MethodRecord(name="wanda").model_dump(),
        "measure": "kl",
        "linears": [{"name": f"{one}.up", "block": one, "role": "mlp.up", "shape": (4, 8)} for one in blocks],
        "parts": [
            {
                "name": one,
                "kind": "block",
                "block": one,
                "linears": (f"{one}.up",),
                "n_weights": 32,
                "levels": levels,
                "damage": tuple(float(place) for place in reversed(range(len(levels)))),
            }
            for one in blocks
        ],
        "statistics": None,
        "damage_text": text.model_dump(),
        "forward_tokens": 0,
        "versions": {},
    }


def same_name(profile: Content) -> None:
    profile["parts"][1]["name"] = profile["parts"][0]["name"]


def linear_twice(profile: Content) -> None:
    profile["linears"][1] = profile["linears"][0]


def other_block(profile: Content) -> None:
    profile["parts"][0]["block"] = profile["parts"][1]["block"]


def other_size(profile: Content) -> None:
    profile["parts"][0]["n_weights"] = 33


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (same_name, r"two parts have the name 'model\.layers\.0'"),
        (linear_twice, "a linear is listed twice"),
        (other_block, "is not of"),
        (other_size, "n_weights of part"),
    ],
)
def test_parts_that_contradict_the_model_or_each_other_are_refused(
    edit: Callable[[Content], None], words: str
) -> None:
    profile = content()
    SensitivityProfile.model_validate(profile)
    edit(profile)
    with pytest.raises(ValidationError, match=words):
        SensitivityProfile.model_validate(profile)


@pytest.mark.parametrize(
    ("unit", "grid", "levels", "words"),
    [
        ("density", None, (-0.5, 0.5), r"level -0\.5, which is not within 0 and 1"),
        ("width", None, (0.5, 1.5), r"level 1\.5, which is not within 0 and 1"),
        ("density", {"kept_of": 8}, (0.25, 0.3), r"level 0\.3, which is not of N:8"),
        ("bits", None, (2.0, 2.5), r"level 2\.5, which is not a whole number from"),
    ],
)
def test_levels_that_no_part_can_have_are_refused(
    unit: str, grid: Content | None, levels: tuple[float, ...], words: str
) -> None:
    profile = content(unit, levels) | {"grid": grid}
    with pytest.raises(ValidationError, match=words):
        SensitivityProfile.model_validate(profile)
