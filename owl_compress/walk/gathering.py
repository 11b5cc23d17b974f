"""Which linears of a block read the same input, and one statistic of each, while forward passes run."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from owl_compress.errors import RequestError
from owl_compress.models.state import is_finite
from owl_compress.models.structure import LinearSite
from owl_compress.walk.input_statistics import Statistic
from owl_compress.walk.ranks import Ranks

Hook = Callable[[nn.Module, tuple[Any, ...]], None]
"""Called with a module and its arguments before it runs."""


@contextmanager
def hooked(hooks: Mapping[LinearSite, Hook]) -> Iterator[None]:
    """Inside, each of the linears calls what belongs to it before it runs."""
    with ExitStack() as stack:
        for linear, hook in hooks.items():
            stack.callback(linear.module.register_forward_pre_hook(hook).remove)
        yield


class AllRead(Exception):  # noqa: N818 - it ends a forward pass early, nothing went wrong
    """Ends a forward pass whose outputs nobody wants once the last linear has been handed its input."""


@dataclass(frozen=True)
class LinearGroup:
    """Linears of one block that read the same input tensor, with the statistic of that input.

    `has_turn` tells whether it is of inputs behind the changed linears before them, see `walk.turns`.
    """

    linears: tuple[LinearSite, ...]
    statistic: Statistic
    has_turn: bool = False


class Gathering:
    """Finds out which of the `linears` read the same tensor, and feeds one statistic per tensor.

    Args:
        statistic: the kind that is gathered.
        linears: of one block.
        wants_outputs: whether forward passes must run to their end; else one ends, by `AllRead`, where the
            last of the linears has been handed its input, once a pass has shown that each is called once.
    """

    def __init__(
        self, statistic: type[Statistic], linears: Sequence[LinearSite], *, wants_outputs: bool
    ) -> None:
        self._kind = statistic
        self._statistics: list[Statistic] = []
        self._group_of: dict[str, int] = {}
        # Inputs seen in the forward pass under way; the reference keeps a tensor's id from being reused.
        self._seen: dict[int, tuple[Tensor, int]] = {}
        self._linears = linears
        self._called: list[str] = []  # in the forward pass under way
        self._wants_outputs = wants_outputs
        self._ends_early = False

    def start_forward(self) -> None:
        """Another forward pass begins."""
        # A linear that is called twice would be cut off from its second input: then passes run to their end.
        names = sorted(linear.name for linear in self._linears)
        self._ends_early = not self._wants_outputs and bool(names) and sorted(self._called) == names
        self._called.clear()
        self._seen.clear()

    def hook(self, linear: LinearSite) -> Hook:
        """What is to be called, with its module and arguments, before `linear` runs."""

        def on_input(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            self._take(linear.name, arguments[0])
            self._called.append(linear.name)
            n_linears = len(self._linears)
            if self._ends_early and len(self._called) >= n_linears == len(set(self._called)):
                raise AllRead

        return on_input

    def _take(self, name: str, inputs: Tensor) -> None:
        if id(inputs) in self._seen:
            self._group_of.setdefault(name, self._seen[id(inputs)][1])
            return
        group = self._group_of.get(name)
        if group is None:
            group = self._group_of[name] = len(self._statistics)
            self._statistics.append(self._kind.empty(inputs.shape[-1], inputs.device))
        self._seen[id(inputs)] = (inputs, group)
        self._statistics[group].add(inputs.reshape(-1, inputs.shape[-1]))  # [..., in] -> [tokens, in]

    def add_up_(self, ranks: Ranks) -> None:
        """Have each statistic be of all tokens, where several processes saw some each.

        A linear that none of this one's tokens reached is known by what others saw.

        Raises:
            RequestError: linears that read the same input here, and not elsewhere.
        """
        self._seen.clear()
        if ranks.of == 1:
            return
        mine = {names: self._statistics[group] for group, names in enumerate(self._members())}
        seen = [(names, self._n_inputs(names), one.n_tokens) for names, one in mine.items()]
        everywhere = [entry for found in ranks.gathered(seen) for entry in found]
        widths = {names: n_inputs for names, n_inputs, _ in everywhere}
        if len({name for names in widths for name in names}) < sum(map(len, widths)):
            raise RequestError(
                f"linears of {self._linears[0].name.rpartition('.')[0]} share their input in one process and "
                "not in another: use one"
            )
        self._statistics.clear()
        for group, (names, n_inputs) in enumerate(widths.items()):
            statistic = mine.get(names) or self._kind.empty(n_inputs, self._linears[0].weight.device)
            ranks.add_up_(statistic.sums)
            statistic.n_tokens = sum(n_tokens for others, _, n_tokens in everywhere if others == names)
            self._statistics.append(statistic)
            self._group_of |= dict.fromkeys(names, group)

    def _members(self) -> list[tuple[str, ...]]:
        """Names of the linears of each group, in the order of the block."""
        names = [linear.name for linear in self._linears if linear.name in self._group_of]
        return [
            tuple(name for name in names if self._group_of[name] == group)
            for group in range(len(self._statistics))
        ]

    def _n_inputs(self, names: Collection[str]) -> int:
        return next(linear.shape[1] for linear in self._linears if linear.name in names)

    def groups(self, spared: Collection[str]) -> tuple[LinearGroup, ...]:
        """What was gathered, by group.

        Raises:
            RequestError: a linear that is not `spared` and that no token reached, or inputs with NaN or Inf.
        """
        for linear in self._linears:
            if linear.name not in self._group_of and linear.name not in spared:
                raise RequestError(unreached(linear))
        result = []
        for names, statistic in zip(self._members(), self._statistics, strict=True):
            members = tuple(linear for linear in self._linears if linear.name in names)
            result.append(checked_group(members, statistic))
        return tuple(result)


def checked_group(
    linears: tuple[LinearSite, ...], statistic: Statistic, *, has_turn: bool = False
) -> LinearGroup:
    """Linears with the statistic of their input.

    Raises:
        RequestError: the input held NaN or Inf.
    """
    if not is_finite(statistic.second_moments):
        raise RequestError(
            f"the inputs of {linears[0].name} hold NaN or Inf: the model or its data type overflows; "
            "try --dtype float32 or bfloat16"
        )
    return LinearGroup(linears, statistic, has_turn)


def unreached(linear: LinearSite) -> str:
    """Why nothing is known of a linear, and what can be done."""
    remedy = "more or other calibration text is needed, or leave it out with --skip"
    return f"no token reached {linear.name}: {remedy}"
