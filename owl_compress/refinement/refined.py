"""What a refinement is asked for, and what comes of it."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from owl_compress.data.apart import check_apart
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.plan import Plan
from owl_compress.documents.sensitivity import PartKind
from owl_compress.errors import RequestError
from owl_compress.importance.reference import DEFAULT_POSITIONS
from owl_compress.refinement.swaps import Move

Method = Literal["swaps", "evo"]

DEFAULT_ROUNDS = 4
"""Rounds, each carried out once, that a refinement may take where nobody says what it may cost."""


@dataclass(frozen=True)
class RefinementOptions:
    """How a plan is refined.

    Attributes:
        method: "swaps", or "evo", see `owl_compress.refinement.evolution`.
        part: what moves at a time; None for what is usual in the unit, see `usual_kind`.
        step: off a grid, how far a part moves at a time; None for the usual.
        pairs: of moves that are made together in a round, at most.
        max_cost: forward tokens that it may take; None for those of `DEFAULT_ROUNDS` rounds.
        generations: of `evo`; None for as many as the cost allows.
        offspring: in each of them.
        seed: of what is drawn.
        positions: number of positions that a measured damage compares.
        fixed: linears whose budgets stay.
    """

    method: Method = "swaps"
    part: PartKind | None = None
    step: float | None = None
    pairs: int = 3
    max_cost: float | None = None
    generations: int | None = None
    offspring: int = 16
    seed: int = 0
    positions: int = DEFAULT_POSITIONS
    fixed: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name in ("pairs", "offspring", "positions"):
            if (value := getattr(self, name)) < 1:
                raise RequestError(f"{name} {value} must be at least 1")
        if self.generations is not None and self.generations < 1:
            raise RequestError(f"generations {self.generations} must be at least 1, or left open")
        if self.generations is not None and self.method != "evo":
            raise RequestError(f"generations are of the method evo, and this is {self.method}: drop them")

    @property
    def record(self) -> dict[str, str | int | float | None]:
        """Those that have a say in the search as they were asked for, None where left open."""
        own = ("pairs",) if self.method == "swaps" else ("seed", "offspring", "generations")
        return {name: getattr(self, name) for name in ("method", *own, "positions", "max_cost")}


@dataclass(frozen=True)
class RefinementWindows:
    """Three texts held apart from each other.

    Attributes:
        statistics: windows that the backend sees, shape [windows, seq_len]; None if it reads no text.
        choosing: windows that moves are chosen on.
        gate: windows that a new plan is judged by.
    """

    statistics: TokenWindows | None
    choosing: TokenWindows
    gate: TokenWindows

    def __post_init__(self) -> None:
        check_apart(self.statistics, self.choosing)
        check_apart(self.statistics, self.gate)
        check_apart(self.choosing, self.gate)

    @property
    def record(self) -> dict[str, str]:
        """What tells each text from others, as the refined plan says it."""
        texts = {"statistics": self.statistics, "choosing": self.choosing, "gate": self.gate}
        return {
            f"{name}_text": windows.record.token_ids_sha256[:16]
            for name, windows in texts.items()
            if windows is not None
        }


@dataclass(frozen=True)
class Attempt:
    """Moves that were made together, and what came of them.

    Attributes:
        number: of the round.
        moves: what moved, from where to where.
        predicted: damage on the windows that moves are chosen on, of the plan and, expected, with the moves.
        measured: damage on the windows of the gate, of the plan and with the moves.
        not_carried_out: the linears that got another budget than the moves gave them. A backend that chooses
            whole units by their inputs may do so, since blocks before them have changed.
    """

    number: int
    moves: tuple[Move, ...]
    predicted: tuple[float, float]
    measured: tuple[float, float]
    not_carried_out: tuple[str, ...] = ()

    @property
    def is_kept(self) -> bool:
        """Whether the moves were kept: they were carried out, and the gate saw the damage fall."""
        return not self.not_carried_out and self.measured[1] < self.measured[0]


@dataclass(frozen=True)
class Refinement:
    """What came of it.

    Attributes:
        plan: the refined plan, or the one that was given where nothing was gained.
        damage: on the windows of the gate, of the given plan and of this one.
        attempts: in their order.
        forward_tokens: the cost, in tokens through the whole model.
        ended: why no more was tried.
        part: what moved at a time.
        method: by which plans were looked for.
    """

    plan: Plan
    damage: tuple[float, float]
    attempts: tuple[Attempt, ...]
    forward_tokens: float
    ended: str
    part: PartKind
    method: Method = "swaps"

    @property
    def is_better(self) -> bool:
        """Whether anything was gained."""
        return any(attempt.is_kept for attempt in self.attempts)

    def as_json(self) -> dict[str, Any]:
        """Everything in plain values."""
        return {
            "plan": self.plan.model_dump(mode="json"),
            "damage_before": self.damage[0],
            "damage_after": self.damage[1],
            "forward_tokens": self.forward_tokens,
            "method": self.method,
            "part": self.part.value,
            "ended": self.ended,
            "attempts": [asdict(attempt) | {"is_kept": attempt.is_kept} for attempt in self.attempts],
        }
