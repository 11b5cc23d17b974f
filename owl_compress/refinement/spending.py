"""What a refinement costs, in tokens through the whole model, and what is left of what it may."""

from dataclasses import dataclass, field

_GRADIENT_PASSES = 3
"""A pass forward, and the way back, which costs twice as much."""


@dataclass
class Spending:
    """Tokens through the whole model, or as much work in part of it; `limit` is the most of them."""

    limit: float = field(default=float("inf"))
    spent: float = field(default=0.0, init=False)
    _once: set[str] = field(default_factory=set, init=False)

    def add(self, tokens: float) -> None:
        """Count `tokens`."""
        self.spent += tokens

    def add_once(self, what: str, tokens: float) -> None:
        """Count `tokens` for something that is made at most once, by a name."""
        if what not in self._once:
            self._once.add(what)
            self.add(tokens)

    def is_counted(self, what: str) -> bool:
        """Whether `add_once` has counted something of that name."""
        return what in self._once

    def affords(self, tokens: float) -> bool:
        """Whether so many more are within the limit."""
        return self.spent + tokens <= self.limit


@dataclass(frozen=True)
class Passes:
    """How often the statistics' windows go through the model.

    Attributes:
        n_tokens: tokens of these windows; 0 where the backend reads none.
        n_gradient_tokens: of those that gradients are taken on.
        surveys: a survey looks at inputs of the dense model before each execution.
        is_dense: statistics are the dense model's, gathered once for all.
    """

    n_tokens: int
    n_gradient_tokens: int
    surveys: bool
    is_dense: bool

    @property
    def of_execution(self) -> float:
        """Tokens for carrying out one plan: what blocks read, and what they make of it once compressed."""
        walks = 0 if self.is_dense else 2 + self.surveys
        return walks * self.n_tokens + _GRADIENT_PASSES * self.n_gradient_tokens

    @property
    def of_trials(self) -> float:
        """Tokens for what each block reads where all before it are compressed."""
        return (1 if self.is_dense else 2) * self.n_tokens

    @property
    def of_gradients(self) -> float:
        """Tokens for the gradients of the dense model, once."""
        return _GRADIENT_PASSES * self.n_gradient_tokens
