"""The picture of damage: every shape of profile is drawn, and what is drawn is what was measured."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from owl_compress.documents.plan import AllocatorRecord, LinearBudget, Plan
from owl_compress.documents.provenance import CalibrationRecord, ModelIdentity
from owl_compress.documents.result import MethodRecord
from owl_compress.documents.sensitivity import (
    Measure,
    PartDamage,
    PartKind,
    ProfiledLinear,
    SensitivityProfile,
)
from owl_compress.documents.units import KeptOfGrid, Unit
from owl_compress.errors import RequestError
from owl_compress.pages.chart import Budgets
from owl_compress.pages.curves import Heights, cells_of, median_of, panels_of
from owl_compress.pages.damage_chart import draw_damage

ROLES = {
    "attn.q": (4, 4), "attn.k": (2, 4), "attn.v": (2, 4), "attn.o": (4, 4),
    "mlp.fc1": (8, 4), "mlp.fc2": (4, 8),
}  # fmt: skip
MEMBERS: dict[PartKind, list[tuple[str, ...]]] = {
    PartKind.BLOCK: [tuple(ROLES)],
    PartKind.SUBLAYER: [("attn.q", "attn.k", "attn.v", "attn.o"), ("mlp.fc1", "mlp.fc2")],
    PartKind.TIED: [("attn.q", "attn.k", "attn.v"), ("attn.o",), ("mlp.fc1",), ("mlp.fc2",)],
    PartKind.LINEAR: [(role,) for role in ROLES],
}
SHARES: dict[float, float] = {0.2: 2.0, 0.5: 0.3, 0.8: 0.01, 1.0: 0.0}
TEXT = CalibrationRecord(
    source="t", token_ids_sha256="0", sequences=1, seq_len=8, sampling="first", seed=0, bos="never"
)


def profile_of(
    n_blocks: int,
    points: Mapping[float, float] = SHARES,
    kind: PartKind = PartKind.BLOCK,
    unit: Unit = Unit.DENSITY,
    grid: KeptOfGrid | None = None,
) -> SensitivityProfile:
    """Every part has the damages of `points`, times one more for each block before it."""
    linears = [
        ProfiledLinear(name=f"layers.{i}.{role}", block=f"layers.{i}", role=role, shape=shape)
        for i in range(n_blocks)
        for role, shape in ROLES.items()
    ]
    sizes = {one.name: one.n_weights for one in linears}
    parts = []
    for i in range(n_blocks):
        for members in MEMBERS[kind]:
            names = tuple(f"layers.{i}.{role}" for role in members)
            parts.append(
                PartDamage(
                    name="+".join(names), kind=kind, block=f"layers.{i}", linears=names,
                    n_weights=sum(sizes[name] for name in names), levels=tuple(points),
                    damage=tuple((i + 1) * damage for damage in points.values()),
                )
            )  # fmt: skip
    return SensitivityProfile(
        model=ModelIdentity(id="a/model", revision=None, family="llama", dtype="float32"), unit=unit,
        grid=grid, backend=MethodRecord(name="wanda"), measure=Measure.KL, linears=tuple(linears),
        parts=tuple(parts), statistics=None, damage_text=TEXT, forward_tokens=0, versions={},
    )  # fmt: skip


def plan_of(profile: SensitivityProfile, values: Sequence[float], name: str = "sensitivity") -> Plan:
    """A plan that gives the linears of the parts these values, in turn."""
    budgets = tuple(
        LinearBudget(
            name=linear, block=part.block, n_weights=profile.linear_sizes[linear],
            value=values[index % len(values)],
        )
        for index, part in enumerate(profile.parts)
        for linear in part.linears
    )  # fmt: skip
    return Plan(
        unit=profile.unit, target=max(values), low=0, high=16 if profile.unit is Unit.BITS else 1,
        allocator=AllocatorRecord(name=name), budgets=budgets,
    )  # fmt: skip


def size_of(png: Path) -> tuple[int, int]:
    content = png.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


BITS = {2.0: 1.0, 3.0: 0.2, 4.0: 0.03}
NM = {kept / 4: 1.0 / kept for kept in range(1, 4)} | {1.0: 0.0}


@pytest.mark.parametrize(
    ("profile", "values"),
    [
        (profile_of(1), [0.5]),
        (profile_of(3), [0.3, 0.5, 1.0]),
        (profile_of(6, BITS, PartKind.TIED, Unit.BITS), [2, 3, 4]),
        (profile_of(6, SHARES, PartKind.SUBLAYER, Unit.WIDTH), [0.35, 0.8]),
        (profile_of(3, NM, grid=KeptOfGrid(kept_of=4)), [0.25, 0.5]),
        (profile_of(3, {0.1: 0.0, 0.5: -0.1, 0.9: 1e-30, 1.0: 0.0}), [0.05, 0.5]),
        (profile_of(6, {0.1: 3.0, 0.5: -0.1, 1.0: 0.0}), [0.3]),
        (profile_of(3, {0.1: 0.0, 0.5: -0.1}), [0.3]),
        (profile_of(3, {0.1: 1e-300, 0.5: 1e-300, 1.0: 0.0}), [0.3]),
        (profile_of(3, {0.3: 1.0, 1.0: 0.0}), [0.3]),
        (profile_of(3, {1.0: 0.0}), [0.3]),
    ],
    ids=[
        "one block", "blocks", "bits", "widths", "N:M", "hardly any", "some below zero", "none above zero",
        "next to none", "one level", "nothing compressed",
    ],
)  # fmt: skip
def test_every_shape_of_profile_is_drawn(
    profile: SensitivityProfile, values: list[float], tmp_path: Path
) -> None:
    draw_damage(tmp_path / "x.png", profile, [Budgets.of(plan_of(profile, values))])
    assert size_of(tmp_path / "x.png")[0] >= 1200


def test_the_same_profile_and_plans_have_the_same_bytes(tmp_path: Path) -> None:
    profile = profile_of(3)
    draw_damage(tmp_path / "alone.png", profile)
    budgets = [Budgets.of(plan_of(profile, [0.4, 0.6], name)) for name in ("sensitivity", "$uni$form\x1b")]
    for name in ("a.png", "b.png"):
        draw_damage(tmp_path / name, profile, budgets)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "alone.png").read_bytes()


def test_budgets_of_another_unit_or_model_are_refused(tmp_path: Path) -> None:
    profile = profile_of(2)
    bits = Budgets.of(plan_of(profile_of(2, BITS, unit=Unit.BITS), [2, 3]))
    with pytest.raises(RequestError, match="'sensitivity' in bits and a profile in density do not fit"):
        draw_damage(tmp_path / "x.png", profile, [bits])
    with pytest.raises(RequestError, match=r"linear 'layers\.2\.attn\.k', which the profile does not have"):
        draw_damage(tmp_path / "x.png", profile, [Budgets.of(plan_of(profile_of(3), [0.5]))])
    assert list(tmp_path.iterdir()) == []


def test_parts_of_one_kind_share_a_panel() -> None:
    names = {kind: [panel.name for panel in panels_of(profile_of(2, kind=kind))] for kind in MEMBERS}
    assert names == {
        PartKind.BLOCK: ["blocks"],
        PartKind.SUBLAYER: ["attention", "mlp"],
        PartKind.TIED: ["attn.qkv", "attn.o", "mlp.fc1", "mlp.fc2"],
        PartKind.LINEAR: list(ROLES),
    }
    (panel,) = panels_of(profile_of(2))
    assert [curve.block for curve in panel.curves] == [0, 1]
    # The part as it is has no damage to draw.
    np.testing.assert_array_equal(panel.curves[1].levels, [0.2, 0.5, 0.8])
    np.testing.assert_allclose(panel.curves[1].damage, [4.0, 0.6, 0.02])


def test_parts_of_one_kind_in_one_block_share_its_column() -> None:
    profile = profile_of(1, kind=PartKind.LINEAR)
    as_experts = [one.model_copy(update={"role": "mlp.up"}) for one in profile.linears]
    (panel,) = panels_of(profile.model_copy(update={"linears": tuple(as_experts)}))
    edges = [(curve.left, curve.right) for curve in panel.curves]
    np.testing.assert_allclose(edges, [(-0.5 + i / 6, -0.5 + (i + 1) / 6) for i in range(6)], atol=1e-12)


def test_cells_meet_between_two_levels() -> None:
    (panel,) = panels_of(profile_of(1))
    cells = cells_of(panel.curves[0], Unit.DENSITY)  # levels 0.2, 0.5, 0.8
    np.testing.assert_allclose(cells[:, :, 1].min(axis=1), [0.05, 0.35, 0.65])
    np.testing.assert_allclose(cells[:, :, 1].max(axis=1), [0.35, 0.65, 0.95])
    lonely = replace(panel.curves[0], levels=np.array([3.0]), damage=np.array([1.0]))
    assert cells_of(lonely, Unit.BITS)[0, :, 1].tolist() == [2.5, 2.5, 3.5, 3.5]


def test_what_is_not_above_zero_lies_at_the_foot() -> None:
    panels = panels_of(profile_of(2, {0.2: 8.0, 0.4: 2.0, 0.6: -1.0, 0.8: 0.0}))
    heights = Heights.of(panels)
    assert heights.least == 2.0
    assert heights.top == 16.0
    assert 0 < heights.foot < heights.least
    curve = panels[0].curves[0]
    np.testing.assert_allclose(heights.heights(curve.damage), [8.0, 2.0, heights.foot, heights.foot])
    # A plan's marks lie on the drawn line, which is straight in log damage; nothing is drawn off its span.
    np.testing.assert_allclose(heights.between(curve, [0.2, 0.3, 0.1]), [8.0, 4.0, np.nan])


def test_the_median_is_of_the_parts_that_reach_a_level() -> None:
    panels = panels_of(profile_of(5, {0.2: 8.0, 0.4: 2.0, 0.6: -1.0}))
    median = median_of(panels[0], Heights.of(panels))
    assert median is not None
    np.testing.assert_allclose(median, [[0.2, 0.4], [24.0, 6.0]])  # of block 2; it ends above zero
    few = panels_of(profile_of(4))
    assert median_of(few[0], Heights.of(few)) is None
