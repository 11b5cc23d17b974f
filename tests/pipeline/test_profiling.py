"""Budgets from damages in one go: measured, tried beside equal shares, carried out and written down."""

from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import owl_compress as oc
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.plan import PREDICTED_DAMAGE
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.errors import RequestError
from owl_compress.importance.profile import profile as engine
from owl_compress.importance.reference import DenseReference
from owl_compress.pipeline import judging
from owl_compress.pipeline.execution import compress_, make_plan, run
from owl_compress.pipeline.profiling import subject_of
from owl_compress.pipeline.session import Session
from owl_compress.pipeline.stages import load
from owl_compress.pipeline.trial import try_out
from owl_compress.pipeline.windows import hold_out

MakeRecipe = Callable[..., Recipe]
SHORT = {"allocator": "sensitivity", "damage_samples": 2, "damage_len": 32}

CASES = pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("wanda", {"sparsity": 0.6}),
        ("magnitude", {"nm": "3:8"}),
        ("structured", {"prune_ratio": 0.4, "round_to": 8, "part": "sublayer"}),
        ("rtn", {"bits": 3, "group_size": 16, "measure": "output-error"}),
    ],
    ids=["density", "n-of-m", "width", "bits"],
)


def divergence(dense: nn.Module, other: nn.Module, windows: TokenWindows) -> float:
    """KL(dense ‖ other) over the positions behind the first eighth that have a next token, plainly run."""
    first = windows.record.seq_len // 8
    with torch.no_grad():
        ours, theirs = (
            model(input_ids=windows.ids).logits[:, first:-1].double().log_softmax(-1)
            for model in (dense, other)
        )
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())


@CASES
def test_a_run_measures_by_itself_and_its_recipe_does_it_again(
    here: Path, recipe: MakeRecipe, backend: str, options: dict[str, Any]
) -> None:
    first = run(recipe(backend, **SHORT, **options, data="other.txt"), "OUT")
    profile = first.profile
    assert profile is not None
    assert first.report is None
    assert SensitivityProfile.read("OUT/sensitivity.json") == profile
    assert first.plan.report == profile.fingerprint == first.result.report
    again = run(Recipe.read("OUT/recipe.yaml"), "AGAIN")
    for name in ("sensitivity.json", "plan.json", "model.safetensors"):
        assert Path("OUT", name).read_bytes() == Path("AGAIN", name).read_bytes()
    assert again.result.sensitivity == first.result.sensitivity


@CASES
def test_a_profile_that_is_there_gives_the_same_plan(
    here: Path,
    recipe: MakeRecipe,
    count_calls: Callable[..., list[Any]],
    backend: str,
    options: dict[str, Any],
) -> None:
    measured = run(recipe(backend, **SHORT, **options), "OUT")
    given = {name: value for name, value in options.items() if name not in {"part", "measure"}}
    calls = count_calls(engine)
    found = run(recipe(backend, allocator="sensitivity", profile="OUT/sensitivity.json", **given), "SECOND")
    assert calls == []
    assert found.plan == measured.plan
    assert found.result.sensitivity == measured.result.sensitivity
    again = run(Recipe.read("SECOND/recipe.yaml"), None)
    assert again.plan == measured.plan


class TestTheResult:
    def test_damage_is_that_of_the_compressed_model(self, here: Path, recipe: MakeRecipe) -> None:
        asked = recipe("wanda", **SHORT, sparsity=0.6)
        session = Session.open(asked)
        loaded, dense = load("model"), load("model").model
        result = run(asked, None, loaded).result
        subject = subject_of(session)
        windows = subject.windows_apart(2, 32, (subject.statistics,))
        record = result.sensitivity
        assert record is not None
        assert record.windows == windows.record
        assert record.damage == pytest.approx(divergence(dense, loaded.model, windows), rel=1e-3)
        assert record.predicted is not None
        assert record.ratio == pytest.approx(record.predicted / record.damage)

    def test_predicted_is_the_sum_over_the_parts(self, here: Path, recipe: MakeRecipe) -> None:
        outcome = run(recipe("wanda", **SHORT, nm="3:8"), None)
        profile, record = outcome.profile, outcome.result.sensitivity
        assert profile is not None
        assert record is not None
        levels = {row.block: row.value for row in outcome.plan.budgets}
        single = [
            dict(zip(part.levels, part.damage, strict=True))[levels[part.block]] for part in profile.parts
        ]
        assert record.predicted == pytest.approx(sum(single))
        assert outcome.plan.allocator.parameters[PREDICTED_DAMAGE] == record.predicted

    def test_a_damage_in_other_units_is_not_compared(self, here: Path, recipe: MakeRecipe) -> None:
        record = run(recipe("wanda", **SHORT, nm="3:8", measure="output-error"), None).result.sensitivity
        assert record is not None
        assert (record.measure, record.ratio) == ("output-error", None)

    def test_other_allocators_have_none_of_it(self, here: Path, recipe: MakeRecipe) -> None:
        result = run(recipe("wanda", sparsity=0.6), None).result
        assert result.sensitivity is None
        assert "sensitivity" not in result.model_dump(mode="json")


class TestTheGate:
    """A plan is carried out where it does less damage, by a standard error, on text that neither side saw."""

    # The standard error of three gains 0, .1 and .8 is .25: a mean of .3 is more than that; of 0, -.1, .4 it
    # is .15, and a mean of .1 is not.
    @pytest.mark.parametrize(
        ("of_plan", "of_uniform", "taken"),
        [
            ([2.0, 2.0, 2.0], [1.0, 1.0, 1.0], "uniform"),
            ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], "plan"),
            ([1.0, 1.0, 1.0], [1.0, 1.1, 1.8], "plan"),
            ([1.0, 1.0, 1.0], [1.0, 0.9, 1.4], "uniform"),
            ([2.0], [2.1], "plan"),
            ([inf, 1.0, 1.0], [1.0, 1.0, 1.0], "uniform"),
            ([1.0, 1.0, 1.0], [inf, 1.0, 1.0], "plan"),
        ],
    )
    def test_the_smaller_damage_wins(
        self, here: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, of_plan: list[float],
        of_uniform: list[float], taken: str,
    ) -> None:  # fmt: skip
        damages = iter([of_plan, of_uniform])
        monkeypatch.setattr(DenseReference, "divergence_by_window", lambda *_: next(damages))
        monkeypatch.setattr(DenseReference, "divergence_of", lambda *_: 0.5)
        outcome = run(recipe("wanda", **SHORT, nm="3:8"), None)
        record = outcome.result.sensitivity
        assert record is not None
        assert record.damage == 0.5
        for found, given in ((record.trial_damage, of_plan), (record.uniform_damage, of_uniform)):
            assert found == (None if inf in given else pytest.approx(sum(given) / len(given)))
        assert record.carried_out == taken
        is_uniform = {row.value for row in outcome.plan.budgets} == {0.375}
        assert is_uniform == (taken == "uniform")
        noted = [note for note in outcome.result.notes if note.startswith("equal shares are carried out")]
        assert len(noted) == is_uniform
        assert any("no more than the standard error" in note for note in noted) == (0.9 in of_uniform)

    def test_damages_are_those_of_both_plans_on_windows_held_apart(
        self, here: Path, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[TokenWindows] = []
        original = judging._chosen

        def spied(session: Session, judged: Any, uniform: Any, apart: DenseReference, carry_out: Any) -> Any:
            seen.append(apart.windows)
            return original(session, judged, uniform, apart, carry_out)

        monkeypatch.setattr(judging, "_chosen", spied)
        # As many windows of statistics as of calibration: the trial is then what is carried out.
        asked = recipe("wanda", **SHORT, sparsity=0.6, statistics="sequential")
        outcome = run(asked, None, loaded := load("model"))
        (apart,) = seen
        record = outcome.result.sensitivity
        assert record is not None
        dense = load("model").model
        assert record.trial_damage == pytest.approx(divergence(dense, loaded.model, apart), rel=1e-3)
        equal = load("model")
        run(recipe("wanda", allocator="uniform", sparsity=0.6, statistics="sequential"), None, equal)
        assert record.uniform_damage == pytest.approx(divergence(dense, equal.model, apart), rel=1e-3)
        subject = subject_of(Session.open(asked))
        taken = [subject.statistics, subject.windows_apart(2, 32, (subject.statistics,))]
        runs = {
            tuple(row.tolist()) for windows in taken for row in windows.ids.unfold(1, 32, 1).flatten(0, 1)
        }
        assert runs.isdisjoint(tuple(row.tolist()) for row in apart.ids.unfold(1, 32, 1).flatten(0, 1))

    def test_the_model_of_the_session_stays_dense_until_then(
        self, here: Path, recipe: MakeRecipe, state_bytes: Callable[..., dict[str, str]]
    ) -> None:
        session = Session.open(recipe("gptq", **SHORT, bits=3, group_size=16, levels="2,3,4"))
        dense = state_bytes(session.loaded.model)
        source, plan = make_plan(session)
        judging.judge(session, source, plan, compress_)
        assert state_bytes(session.loaded.model) == dense
        session.check_fresh()


class TestTryingOut:
    def test_as_a_run_does_it_and_again_from_its_profile(
        self, here: Path, recipe: MakeRecipe, count_calls: Callable[..., list[Any]]
    ) -> None:
        session = Session.open(recipe("wanda", **SHORT, sparsity=0.6))
        windows = hold_out(session.loaded, "other.txt", seq_len=32)
        trial = try_out(session, windows)
        outcome = run(recipe("wanda", **SHORT, sparsity=0.6, data="other.txt"), None)
        assert (trial.profile, trial.plan, trial.report) == (outcome.profile, outcome.plan, None)
        assert outcome.result.evaluation is not None
        assert trial.perplexity == outcome.result.evaluation.compressed
        calls = count_calls(engine)
        again = try_out(session, windows, trial.profile)
        assert calls == []
        assert (again.plan, again.perplexity) == (trial.plan, trial.perplexity)
        assert again.result.sensitivity == trial.result.sensitivity

    def test_a_profile_of_another_backend_is_refused(self, here: Path, recipe: MakeRecipe) -> None:
        profile, _ = make_plan(Session.open(recipe("wanda", **SHORT, sparsity=0.6)))
        assert isinstance(profile, SensitivityProfile)
        session = Session.open(recipe("magnitude", **SHORT, sparsity=0.6))
        with pytest.raises(RequestError, match="of backend 'wanda', not of 'magnitude'"):
            try_out(session, hold_out(session.loaded, "other.txt", seq_len=32), profile)


class TestWhatIsMeasured:
    def test_statistics_are_those_that_other_allocators_see(self, here: Path, recipe: MakeRecipe) -> None:
        asked = recipe("wanda", **SHORT, sparsity=0.6, measure_samples=2)
        profile, _ = make_plan(Session.open(asked))
        report, _ = make_plan(Session.open(asked.with_options({"allocator": "owl"}).model_copy(
            update={"damage_samples": None, "damage_len": None}
        )))  # fmt: skip
        assert isinstance(profile, SensitivityProfile)
        assert isinstance(report, oc.ImportanceReport)
        assert profile.statistics == report.provenance.calibration
        assert profile.statistics is not None
        assert profile.statistics.sequences == 2

    @pytest.mark.parametrize(
        ("backend", "options", "levels"),
        [
            ("wanda", {"nm": "3:8"}, {kept / 8 for kept in range(1, 9)}),
            ("wanda", {"nm": "3:8", "low": 0.25, "high": 0.5}, {0.25, 0.375, 0.5, 1.0}),
            ("rtn", {"bits": 3.5, "bit_choices": "3,4", "group_size": 16}, {3.0, 4.0}),
        ],
    )
    def test_every_level_that_may_be_chosen(
        self, here: Path, recipe: MakeRecipe, backend: str, options: dict[str, Any], levels: set[float]
    ) -> None:
        profile, _ = make_plan(Session.open(recipe(backend, **SHORT, **options)))
        assert isinstance(profile, SensitivityProfile)
        assert {level for part in profile.parts for level in part.levels} == levels

    def test_levels_below_the_usual_ones_for_a_target_below_them(
        self, here: Path, recipe: MakeRecipe
    ) -> None:
        profile, plan = make_plan(Session.open(recipe("wanda", **SHORT, sparsity=0.92)))
        assert isinstance(profile, SensitivityProfile)
        assert min(level for part in profile.parts for level in part.levels) == pytest.approx(0.04, abs=1e-3)
        assert plan.achieved == pytest.approx(0.08)

    def test_what_is_skipped_or_set_is_not_measured(self, here: Path, recipe: MakeRecipe) -> None:
        options = {"skip": "model.layers.0", "set": "model.layers.1=0.5", "sparsity": 0.6}
        profile, plan = make_plan(Session.open(recipe("wanda", **SHORT, **options)))
        assert isinstance(profile, SensitivityProfile)
        assert [part.block for part in profile.parts] == ["model.layers.2"]
        assert {row.block: row.value for row in plan.budgets}["model.layers.1"] == 0.5

    def test_default_cost_is_no_more_than_compressing_on_128_windows(
        self, here: Path, recipe: MakeRecipe
    ) -> None:
        session = Session.open(recipe("wanda", allocator="sensitivity", nm="16:32", part="linear"))
        profile, _ = make_plan(session)
        assert isinstance(profile, SensitivityProfile)
        assert profile.forward_tokens <= 128 * 128


@pytest.mark.parametrize(
    ("backend", "options", "named"),
    [
        (
            "wanda",
            {"sparsity": 0.8, "levels": "0.3,0.5"},
            "an average of 0.2 density is below 0.3, the lowest of",
        ),
        ("rtn", {"bits": 3, "levels": "2,4"}, "--bit-choices has 3 and --levels has not"),
        ("wanda", {"nm": "3:8", "levels": "2:4,3:4"}, "the budget is of N:8: give all of one"),
        ("wanda", {"nm": "3:8", "levels": "3:8"}, "1 level to try"),
        ("structured", {"prune_ratio": 0.4, "part": "linear"}, "--part linear: attention and feed-forward"),
        ("gptqmodel", {"bits": 3}, "measure a profile with 'gptq' or 'rtn'"),
        (
            "wanda",
            {"sparsity": 0.6, "allocator": "owl"},
            "damage-samples is for allocators that read a sensitivity profile, and alloc",
        ),
        ("wanda", {"sparsity": 0.6, "max_cost": "100"}, "max-cost 100 is below"),
        ("wanda", {"sparsity": 0.6, "profile": "s.json"}, "damage-samples says how a profile is measured"),
        ("wanda", {"sparsity": 0.6, "damage_data": "none.txt"}, "none.txt"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    here: Path, recipe: MakeRecipe, backend: str, options: dict[str, Any], named: str
) -> None:
    with pytest.raises(RequestError) as caught:
        make_plan(Session.open(recipe(backend, **SHORT | options)))
    assert named in str(caught.value)


class TestAnotherProfileThanAskedFor:
    @pytest.fixture
    def profile(self, here: Path, recipe: MakeRecipe) -> SensitivityProfile:
        profile, _ = make_plan(Session.open(recipe("wanda", **SHORT, sparsity=0.6, levels="0.2,0.5")))
        assert isinstance(profile, SensitivityProfile)
        profile.write("s.json")
        return profile

    @pytest.mark.parametrize(
        ("backend", "options", "named"),
        [
            ("magnitude", {"sparsity": 0.6}, "of backend 'wanda', not of 'magnitude'"),
            ("wanda", {"sparsity": 0.6, "scope": "linear"}, "with scope row, here it is linear"),
            ("wanda", {"nm": "3:8"}, "the profile is off a grid, and the budget of N:8"),
            ("rtn", {"bits": 3}, "the profile is of density, and the budget of bits"),
            ("wanda", {"sparsity": 0.9}, "is below 0.2"),
        ],
    )
    def test_is_refused_by_what_differs(
        self, recipe: MakeRecipe, profile: SensitivityProfile, backend: str, options: dict[str, Any],
        named: str,
    ) -> None:  # fmt: skip
        asked = recipe(backend, allocator="sensitivity", profile="s.json", **options)
        with pytest.raises(RequestError) as caught:
            make_plan(Session.open(asked))
        assert named in str(caught.value)

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"id": "another"}, "the profile is of another (llama), and the model is model (llama)"),
            ({"family": "gpt2"}, "the profile is of model (gpt2)"),
        ],
    )
    def test_of_another_model(
        self, recipe: MakeRecipe, profile: SensitivityProfile, change: dict[str, str], named: str
    ) -> None:
        profile.model_copy(update={"model": profile.model.model_copy(update=change)}).write("s.json")
        asked = recipe("wanda", allocator="sensitivity", profile="s.json", sparsity=0.6)
        with pytest.raises(RequestError) as caught:
            make_plan(Session.open(asked))
        assert named in str(caught.value)

    def test_of_a_folder_that_was_moved_is_taken(
        self, recipe: MakeRecipe, profile: SensitivityProfile, here: Path
    ) -> None:
        (here / "moved").mkdir()
        (here / "model").rename(here / "moved" / "model")
        asked = recipe("wanda", allocator="sensitivity", profile="s.json", sparsity=0.6, model="moved/model")
        assert make_plan(Session.open(asked))[0] == profile

    def test_text_that_is_another_is_told(
        self, recipe: MakeRecipe, profile: SensitivityProfile, here: Path
    ) -> None:
        options = {"allocator": "sensitivity", "profile": "s.json", "sparsity": 0.6, "calib": "new.txt"}
        (here / "new.txt").write_text((here / "text.txt").read_text()[::-1])
        result = run(recipe("wanda", **options), None).result
        assert "damage is measured on new.txt, not on the text of the profile" in result.notes


class TestFromPython:
    def test_by_the_name_of_a_backend(self, here: Path, make_windows: Callable[..., TokenWindows]) -> None:
        loaded = oc.load("model")
        calibration = oc.calibrate(loaded, "text.txt", samples=2, seq_len=32)
        damage = oc.hold_apart(loaded, "text.txt", [calibration], samples=2, seq_len=32)
        profile = oc.profile(
            loaded.model, "wanda", calibration, damage, levels=["2:8", "4:8"], scope="linear", part="sublayer"
        )
        assert profile.backend.parameters["scope"] == "linear"
        assert len(profile.parts) == 6
        extended = oc.profile(
            loaded.model, "wanda", calibration, damage, levels=["6:8", "4:8"], scope="linear",
            part="sublayer", known=profile,
        )  # fmt: skip
        assert {part.levels for part in extended.parts} == {(0.25, 0.5, 0.75, 1.0)}
        assert 0.25 < oc.allocate(extended, nm="3:8").achieved <= 0.375

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"part": "layer"}, "unknown part 'layer'"),
            ({"measure": "kll"}, "unknown measure 'kll'.*kl"),
            ({"levels": [0.5]}, "1 level to try"),
            ({"levels": ["3:8", "1:4"]}, "of another M"),
            ({"rank": 3}, "rank"),
        ],
    )
    def test_bad_values(
        self, here: Path, make_windows: Callable[..., TokenWindows], options: dict[str, Any], named: str
    ) -> None:
        loaded = oc.load("model")
        with pytest.raises(RequestError, match=named):
            oc.profile(loaded.model, "wanda", make_windows(2), make_windows(2, seed=1), **options)

    def test_windows_that_overlap_the_statistics(
        self, here: Path, make_windows: Callable[..., TokenWindows]
    ) -> None:
        loaded = oc.load("model")
        with pytest.raises(RequestError, match="overlaps the windows that statistics are taken on"):
            oc.profile(loaded.model, "wanda", make_windows(4, 40), make_windows(2, 40))

    def test_a_backend_that_writes_checkpoints(
        self, here: Path, make_windows: Callable[..., TokenWindows]
    ) -> None:
        with pytest.raises(RequestError, match="compresses no part alone"):
            oc.profile(oc.load("model").model, "gptqmodel", make_windows(2), make_windows(2, seed=1))
