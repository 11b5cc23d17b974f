"""How long the stages of a run will take, roughly, told before they start from one block on one batch.

What a backend computes by itself, between the forward passes, is not foreseen: it is a small part for a
method that compares scores, and most of the time for one that solves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from owl_compress.compression.contract import Backend
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.measurements import StageNeeds
from owl_compress.pages.words import seconds_in_words
from owl_compress.pipeline.needs import course_of, held_in_turns
from owl_compress.pipeline.session import Session
from owl_compress.walk.pace import Pace, pace_of
from owl_compress.walk.ranks import Ranks

_WORTH_A_PROBE = 10**12
"""Operations of matrix products: with fewer ahead, a run is over before its time would matter."""

_PASSES_UP_TO_TURNS = 3
"""What passes up to each turn of a block, and one through it, come to."""


@dataclass(frozen=True)
class Passes:
    """How often a stage runs so many weights on these windows."""

    times: int
    n_weights: int
    windows: TokenWindows

    @property
    def n_operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.times * self.n_weights * self.windows.ids.numel()

    def seconds(self, pace: Pace, n_processes: int) -> float:
        """What they take, divided among processes."""
        return self.times * pace.seconds(self.n_weights, self.windows.ids.numel() // n_processes)


def passes_of(session: Session) -> dict[str, Passes]:
    """The passes of each stage that runs the model on text."""
    in_blocks = sum(site.n_weights for site in session.structure.blocks)
    found: dict[str, Passes] = {}
    if session.measuring is not None:
        found["measuring"] = Passes(1, in_blocks, session.measuring)
    if session.held_out is not None:  # before and after; the head reads every position too
        head = session.loaded.model.get_output_embeddings()
        n_weights = in_blocks + (head.weight.numel() if head is not None else 0)
        found["evaluating"] = Passes(2, n_weights, session.held_out)
    backend = session.request.backend
    if session.calibration is not None and isinstance(backend, Backend) and backend.statistic is not None:
        found["compressing"] = Passes(_passes_to_compress(session, backend), in_blocks, session.calibration)
    return {stage: passes for stage, passes in found.items() if passes.times}


def _passes_to_compress(session: Session, backend: Backend) -> int:
    """One to gather what the linears of a block read and one for what it hands on, and one for a survey.

    Of the dense model it is one for all, or none where importance is measured on as much. Where linears take
    turns it is one for all of them, or else one up to each, most of which end early in the block.
    """
    measured = session.measuring is not None and session.calibration is not None
    is_seen = measured and session.measure_samples >= len(session.calibration or ())
    if session.asks_for_dense:
        return 0 if is_seen else 1
    surveys = backend.survey is not None and backend.survey.statistic is not None
    gathering = 2
    if session.request.statistics == "true-sequential":
        is_held = held_in_turns(session.loaded.model, session.structure, course_of(session))
        gathering = 1 if is_held else _PASSES_UP_TO_TURNS
    return gathering + (surveys and not is_seen)


def with_seconds(session: Session, needs: Sequence[StageNeeds], *, always: bool = False) -> list[StageNeeds]:
    """`needs` with the seconds that stages are expected to take; as they are where that is not worth a probe.

    Raises:
        RequestError: a block cannot be read.
    """
    passes = passes_of(session)
    n_operations = sum(one.n_operations for one in passes.values())
    if not needs or session.calibration is None or not (always or n_operations >= _WORTH_A_PROBE):
        return list(needs)
    batch = session.calibration.batches(session.recipe.batch_size)[0]
    pace = pace_of(session.loaded.model, session.structure, batch, session.request.device)
    seconds = {stage: one.seconds(pace, Ranks.current().of) for stage, one in passes.items()}
    return [one.model_copy(update={"seconds": seconds.get(one.stage)}) for one in needs]


def times_in_words(needs: Sequence[StageNeeds], backend: str, *, tries_plans: bool = False) -> str | None:
    """One line for who waits; None where nothing is known."""
    told = [f"{one.stage} {seconds_in_words(one.seconds)}" for one in needs if one.seconds is not None]
    if not told:
        return None
    further = f"what {backend} itself computes comes on top"
    if tries_plans:
        further += ", and so do the damage of parts and two plans that are tried out"
    return f"expected time, roughly: {', '.join(told)}; {further}"
