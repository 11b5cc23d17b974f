"""Plans tried on copies of a model: what is chosen, what is tried on which text, and what is refused."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import owl_compress
from owl_compress.allocators import allocate
from owl_compress.backends.wanda import Wanda
from owl_compress.data.apart import check_apart
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.recipe import Recipe
from owl_compress.errors import RequestError
from owl_compress.importance.reference import DenseReference
from owl_compress.pipeline import tuning_trials
from owl_compress.pipeline.execution import compress_, make_plan
from owl_compress.pipeline.reports import outlined
from owl_compress.pipeline.session import Session
from owl_compress.pipeline.stages import load
from owl_compress.pipeline.trial import try_out
from owl_compress.pipeline.tuning import scheme_of, tune
from owl_compress.walk.outputs import spread_positions

FEW = {"damage_samples": 2, "damage_len": 16, "allocator": "auto", "candidates": "uniform"}
"""Equal shares and five slopes over depth, on little text."""

Opened = Callable[..., Session]


@pytest.fixture
def opened(here: Path, recipe: Callable[..., Recipe]) -> Opened:
    """A function that opens a session on the tiny model, at 60 % unless another budget is named."""

    def make(backend: str = "wanda", **options: Any) -> Session:
        budget = {} if {"nm", "bits", "prune_ratio"} & options.keys() else {"sparsity": 0.6}
        return Session.open(recipe(backend, **{**FEW, **budget, **options}))

    return make


@pytest.fixture
def idle_end(here: Path) -> None:
    """The last block of the model on disk hardly does anything: budgets that fall with depth are better."""
    model = LlamaForCausalLM.from_pretrained("model")
    with torch.no_grad():
        for index, scale in ((0, 8.0), (2, 1e-3)):
            block = model.model.layers[index]
            block.self_attn.o_proj.weight *= scale
            block.mlp.down_proj.weight *= scale
    model.save_pretrained("model")


@pytest.fixture
def judged_on(monkeypatch: pytest.MonkeyPatch) -> list[TokenWindows]:
    """The windows of each round, once it was played."""
    seen: list[TokenWindows] = []

    class Watched(DenseReference):
        @classmethod
        def of(cls, model: Any, structure: Any, windows: TokenWindows, *rest: Any, **options: Any) -> Any:
            seen.append(windows)
            return DenseReference.of(model, structure, windows, *rest, **options)

    monkeypatch.setattr(tuning_trials, "DenseReference", Watched)
    return seen


@torch.no_grad()
def divergence(dense: Any, other: Any, windows: TokenWindows, count: int) -> float:
    """KL of the models' own logits, at so many positions of each window."""
    positions = spread_positions(windows.record.seq_len, count)
    own, changed = (
        torch.log_softmax(model(input_ids=windows.ids).logits[:, positions].double(), dim=-1)
        for model in (dense, other)
    )
    return float((own.exp() * (own - changed)).sum(dim=-1).mean())


class TestWhatIsTaken:
    def test_a_better_plan_is(self, idle_end: None, opened: Opened, judged_on: list[TokenWindows]) -> None:
        session = opened()
        found = tune(session)
        document, target = found.document, session.request.target
        assert document.chosen.allocator == "linear-depth"
        assert document.comparison is not None
        assert document.comparison.is_beyond_chance
        told = found.plan.allocator
        assert (told.name, told.maker) == ("auto", "linear-depth")
        assert target is not None
        again = allocate(outlined(session), "linear-depth", target, {"lam": told.parameters["lam"]})
        assert again.budgets == found.plan.budgets
        # Its damage is that of the model which is compressed by it.
        compressed = session.on_a_copy()
        compress_(compressed, found.plan)
        expected = divergence(
            session.loaded.model, compressed.loaded.model, judged_on[-1], document.positions
        )
        assert document.chosen.damage[-1] == pytest.approx(expected, rel=1e-3)
        assert document.chosen.damage[-1] == document.comparison.damage
        assert document.plan == found.plan.fingerprint

    def test_equal_shares_are_where_a_gain_may_be_chance(self, opened: Opened) -> None:
        found = tune(opened())  # of a random model all blocks are alike
        assert found.document.chosen.allocator == "uniform"
        assert {budget.value for budget in found.plan.budgets} == {0.4}
        assert "equal shares are taken" in found.document.why
        assert found.plan.allocator.parameters["chosen"] == "uniform"

    def test_equal_shares_stay_in_to_the_end(self, idle_end: None, opened: Opened) -> None:
        document = tune(opened()).document
        (equal,) = (one for one in document.candidates if one.allocator == "uniform")
        first = [one.damage[0] for one in document.candidates]
        assert equal.damage[0] == max(filter(None, first))
        assert len(equal.damage) == len(document.rounds) == 2
        assert equal.fate == "baseline"

    @pytest.mark.parametrize(
        ("backend", "options"),
        [
            ("magnitude", {"nm": "3:8"}),
            ("sparsegpt", {"sparsity": 0.5, "statistics": "sequential"}),
            ("wanda", {"statistics": "dense"}),
            ("rtn", {"bits": 3.5, "bit_choices": "3,4", "group_size": 32}),
            ("gptq", {"bits": 3, "group_size": 32}),
            ("structured", {"prune_ratio": 0.4, "round_to": 8, "repair": True}),
            ("rtn", {"size": "87kB", "group_size": 32, "sparsity": None}),
        ],
    )
    def test_any_backend_in_any_unit_can_be_tuned(
        self, opened: Opened, state_bytes: Callable[..., Any], backend: str, options: dict[str, Any]
    ) -> None:
        session = opened(backend, **options)
        before = state_bytes(session.loaded.model)
        found = tune(session)
        assert state_bytes(session.loaded.model) == before
        assert found.plan.unit is session.request.unit
        assert found.plan.achieved <= found.plan.target + 1e-9
        compress_(session, found.plan)

    def test_a_budget_off_the_grid_says_what_equal_shares_are(self, opened: Opened) -> None:
        found = tune(opened("rtn", bits=3.5, bit_choices="3,4", group_size=32))
        assert found.document.baseline.startswith(
            "no level is 3.5 bits per weight: what allocator uniform mixes"
        )

    def test_the_same_request_gives_the_same_bytes(self, opened: Opened) -> None:
        one, other = (tune(opened(candidates=["owl"], max_cost="2500")) for _ in range(2))
        assert one.plan.to_json() == other.plan.to_json()
        assert one.document.to_json() == other.document.to_json()


class TestWhatIsTried:
    def test_each_plan_once_a_round_on_a_copy_of_one_model(
        self, opened: Opened, count_calls: Callable[..., list[Any]]
    ) -> None:
        session = opened("rtn", bits=3.5, bit_choices="3,4", group_size=32, candidates="owl")
        loads, compressions = count_calls(load), count_calls(compress_)
        document = tune(session).document
        same = [one for one in document.candidates if one.fate == "same"]
        tried = [one for one in document.candidates if one.damage]
        assert same  # of 3 and 4 bits any slope gives the first blocks more
        assert {one.same_as for one in same} <= {one.name for one in tried}
        assert len(document.candidates) == len(same) + len(tried) == 1 + 4 + 16
        assert len(compressions) == sum(one.plans for one in document.rounds)
        plans = [plan.budgets for _, plan in compressions[: document.rounds[0].plans]]
        assert len(set(plans)) == len(plans)
        assert loads == []

    def test_text_of_its_own_in_each_round(self, opened: Opened, judged_on: list[TokenWindows]) -> None:
        session = opened()
        tune(session)
        assert session.calibration is not None
        for one, other in combinations([session.calibration, *judged_on], 2):
            check_apart(one, other)
        assert [len(windows) for windows in judged_on] == [4, 8]

    def test_uniform_and_linear_depth_in_any_case(self, opened: Opened) -> None:
        document = tune(opened(candidates="dlp")).document
        assert {one.allocator for one in document.candidates} == {"uniform", "linear-depth", "dlp"}

    def test_the_grid_of_the_paper_and_others_by_default(self, opened: Opened) -> None:
        candidates = opened(candidates=None).request.candidates
        owls = {
            (one.options["metric"], one.options["lam"]) for one in candidates if one.allocator.name == "owl"
        }
        assert owls == {(f"lod@{m}", lam) for m in (3, 5, 7, 10) for lam in (0.02, 0.05, 0.08, 0.1, 0.2)}
        names = {one.allocator.name for one in candidates}
        assert names == {"uniform", "linear-depth", "owl", "alpha", "lsa", "dlp", "sensitivity"}

    def test_what_cannot_be_carried_out_is_told_and_the_rest_goes_on(
        self, opened: Opened, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compress = Wanda.compress_block_

        def refuses_much(self: Wanda, task: Any) -> Any:
            if any(one.budget > 0.55 for group in task.groups for one in group.linears):
                raise RequestError("too much of it")
            return compress(self, task)

        monkeypatch.setattr(Wanda, "compress_block_", refuses_much)
        document = tune(opened()).document
        steepest = next(one for one in document.candidates if one.name == "linear-depth, lam 0.2")
        assert (steepest.fate, steepest.reason) == ("refused", "too much of it")

    def test_what_has_no_plan_is_told(self, opened: Opened) -> None:
        document = tune(opened(sparsity=0.95)).document
        refused = [one for one in document.candidates if one.fate == "refused"]
        assert refused
        assert all("outside [0, 1]" in (one.reason or "") for one in refused)


class TestCost:
    def test_no_more_than_was_said(self, opened: Opened) -> None:
        session = opened("wanda", candidates="owl")
        found = tune(session)
        assert found.document.forward_tokens <= scheme_of(session).forward_tokens

    @pytest.mark.parametrize("most", [600, 1000, 4000])
    def test_what_is_allowed_is_used_and_not_exceeded(self, opened: Opened, most: int) -> None:
        scheme = scheme_of(opened("wanda", candidates=None, max_cost=str(most)))
        assert most / 3 < scheme.forward_tokens <= most
        names = [one.allocator.name for one in scheme.candidates]
        assert names.count("uniform") == 1
        assert "linear-depth" in names

    @pytest.mark.parametrize(("source", "once", "each"), [("sequential", 0, 2), ("dense", 1, 0)])
    def test_it_counts_what_goes_through_the_model(
        self, opened: Opened, source: str, once: int, each: int
    ) -> None:
        asked = opened(max_cost="700", candidates="uniform", statistics=source)
        (only,) = (scheme := scheme_of(asked)).rounds
        # Statistics and their way on through compressed blocks, and judging; the dense model once.
        seen, judged = 32 * only.statistics_windows, 16 * only.judging_windows
        assert scheme.forward_tokens == only.plans * (each * seen + judged) + once * seen + judged

    def test_a_profile_is_measured_where_cost_covers_it(self, opened: Opened) -> None:
        found = tune(opened(candidates=None, max_cost="12000", levels="0.2,0.4,0.8"))
        assert found.profile is not None
        (one,) = (one for one in found.document.candidates if one.allocator == "sensitivity")
        assert one.damage
        assert scheme_of(opened(candidates=None)).left_out[0].name == "sensitivity"
        assert scheme_of(opened(candidates=None, levels="0.2,0.4,0.8")).left_out == ()

    def test_a_profile_that_is_named_is_measured(self, opened: Opened, judged_on: list[TokenWindows]) -> None:
        found = tune(opened(candidates="sensitivity", levels="0.2,0.4,0.8"))
        assert found.profile is not None
        record = found.profile.damage_text
        assert record.token_ids_sha256 not in {windows.record.token_ids_sha256 for windows in judged_on}


class TestFromPython:
    def test_make_plan_and_trials_take_it_too(self, opened: Opened) -> None:
        session = opened(data="other.txt")
        source, plan = make_plan(session)
        assert source is None  # the plan was made from names and sizes
        tried = try_out(session, session.held_out_windows)
        assert tried.plan == plan == owl_compress.tune(session).plan

    def test_another_request_is_refused(self, here: Path, recipe: Callable[..., Recipe]) -> None:
        session = Session.open(recipe("magnitude", sparsity=0.5, allocator="uniform"))
        with pytest.raises(RequestError, match="name allocator 'auto' in its recipe"):
            tune(session)

    def test_a_model_that_is_lost_at_this_budget_is_refused(
        self, opened: Opened, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(DenseReference, "divergence_by_window", lambda *_: [float("nan")] * 8)
        with pytest.raises(RequestError, match="every plan damages the model beyond numbers"):
            tune(opened())


@pytest.mark.slow
def test_on_the_embedded_model_the_plan_is_not_worse_than_equal_shares_on_text_it_has_not_seen() -> None:
    given = {
        "model": "builtin", "calib": "builtin", "data": "builtin", "samples": 4, "seq_len": 128,
        "max_windows": 8, "backend": "wanda", "nm": "3:8",
    }  # fmt: skip
    tried = {"allocator": "auto", "candidates": ["uniform"], "damage_samples": 2, "damage_len": 64}
    session = Session.open(Recipe.from_options(given | tried))
    windows = session.held_out_windows
    tuned = try_out(session, windows)
    equal = try_out(
        Session.open(Recipe.from_options(given | {"allocator": "uniform"}), session.loaded), windows
    )
    assert tuned.result.totals.achieved == pytest.approx(equal.result.totals.achieved, abs=1e-3)
    assert tuned.perplexity.perplexity <= 1.01 * equal.perplexity.perplexity
