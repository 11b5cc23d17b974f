"""Plans and tasks made by hand: no allocator, no walk; and the cases that every backend is tested on."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from owl_compress.backends import BACKENDS
from owl_compress.compression.contract import Backend
from owl_compress.compression.driver import WalkOptions
from owl_compress.compression.tasks import BlockTask, GroupTask, LinearTask
from owl_compress.documents.plan import AllocatorRecord, LinearBudget, Plan, weighted_mean
from owl_compress.documents.units import BitsGrid, Grid, KeptOfGrid, Unit
from owl_compress.forms.codes import QuantizedWeight, coded_modules
from owl_compress.models.structure import BlockSite, LinearSite, find_structure


@dataclass(frozen=True)
class Kind:
    """A sort of plan: `values` are dealt out to the linears of a model in turn, over and over."""

    name: str
    values: tuple[float, ...]
    grid: Grid | None = None


@dataclass(frozen=True)
class Case:
    """A registered backend with options that fit the tiny models, and the plans that it is given."""

    name: str
    unit: Unit
    kind: Kind
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        options = (f"{key}={value}" for key, value in self.options.items())
        return "-".join((self.name, self.kind.name, *options))

    @property
    def grid(self) -> Grid | None:
        """That of its plans."""
        return self.kind.grid

    def backend(self) -> Backend:
        """A fresh one, made as the commands make it."""
        made: Backend = BACKENDS.create(self.name, self.options)
        return made

    def values(self, model: nn.Module) -> dict[str, float]:
        """What each linear of `model` is to keep."""
        names = (linear.name for linear in find_structure(model).linears)
        return dict(zip(names, cycle(self.kind.values), strict=False))


KINDS: dict[Unit, tuple[Kind, ...]] = {
    Unit.DENSITY: (
        Kind("density", (0.137, 0.832, 0.401, 0.2718, 0.6561, 0.5, 0.889, 0.1001, 0.75, 0.3333, 0.577)),
        Kind("1:4-3:4", (0.25, 0.5, 0.75), KeptOfGrid(kept_of=4)),
        Kind("1:8-7:8", tuple(kept / 8 for kept in range(1, 8)), KeptOfGrid(kept_of=8)),
    ),
    Unit.WIDTH: (Kind("width", (0.35, 0.66, 0.5, 0.61, 0.4)),),
    Unit.BITS: (Kind("bits", (2.0, 4.0, 3.0, 8.0, 5.0), BitsGrid(bits=(2, 3, 4, 5, 8))),),
}

# What differs from the defaults, of backends whose defaults are too coarse for the tiny models, or of which
# more than one way is of interest; the first is the usual way.
OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "structured": ({"round_to": 8}, {"round_to": 8, "importance": "magnitude"}),
    "rtn": ({"group_size": 16}, {"group_size": "none", "asymmetric": True}),
    "gptq": ({"group_size": 16}, {"group_size": "none", "asymmetric": True}),
}


def cases_of(name: str, method: Any) -> Iterator[Case]:
    """The cases of a backend; none of one that works on checkpoint folders, or in a unit not in KINDS."""
    if hasattr(method, "compress_checkpoint"):
        return
    for options in OPTIONS.get(name, ({},)):
        for kind in KINDS.get(method.unit, ()):
            yield Case(name, method.unit, kind, options)


CASES = tuple(case for name, method in BACKENDS.loadable() for case in cases_of(name, method))
USUAL = tuple(case for case in CASES if case.options == OPTIONS.get(case.name, ({},))[0])
FIRST = tuple(next(case for case in USUAL if case.name == name) for name in {case.name: 0 for case in USUAL})
WAYS = tuple(case for case in CASES if case.kind is KINDS[case.unit][0])


@pytest.fixture(scope="session")
def all_cases() -> tuple[Case, ...]:
    """Every case."""
    return CASES


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    """Every case in turn."""
    given: Case = request.param
    return given


@pytest.fixture(params=WAYS, ids=str)
def way(request: pytest.FixtureRequest) -> Case:
    """Every backend with all of its options in turn, and the first kind of plan alone."""
    given: Case = request.param
    return given


@pytest.fixture(params=FIRST, ids=str)
def first_case(request: pytest.FixtureRequest) -> Case:
    """Every backend in turn, with the usual options and the first kind of plan."""
    given: Case = request.param
    return given


@pytest.fixture
def dealt_case(first_case: Case, family_index: int) -> Case:
    """Every backend on every family, with the usual options and one kind of plan; the kinds go round.

    So every backend meets every family, every kind that it has meets every second or third family, and every
    family meets every kind: all pairs, at half the cost of all triples.
    """
    kinds = [case for case in USUAL if case.name == first_case.name]
    return kinds[(family_index + FIRST.index(first_case)) % len(kinds)]


@pytest.fixture
def backend(case: Case) -> Backend:
    """The backend of the case."""
    return case.backend()


@pytest.fixture
def planned(case: Case, plan_for: Callable[..., Plan]) -> Callable[..., Plan]:
    """A function that makes the plan of the case for a model."""

    def make(model: nn.Module, *, skipped: tuple[str, ...] = ()) -> Plan:
        return plan_for(model, case.values(model), unit=case.unit, grid=case.grid, skipped=skipped)

    return make


def kept_density(site: LinearSite, asked: float, grid: Grid | None) -> float:
    """Share of the weights that are not zero, once it is sure that they are as many as were asked for."""
    kept = int((site.weight != 0).sum())
    assert kept == int(asked * site.n_weights)
    if isinstance(grid, KeptOfGrid):
        groups = (site.weight != 0).reshape(-1, grid.kept_of).sum(dim=1)  # [out * in / kept_of]
        assert set(groups.tolist()) == {round(asked * grid.kept_of)}
    return kept / site.n_weights


def held_bits(codes: QuantizedWeight, site: LinearSite, group_size: int | None) -> float:
    """The fewest bits that hold the codes of a linear, once it is sure that its weight is what they say."""
    assert codes.group_size == group_size
    size = group_size or site.shape[1]
    steps = codes.codes.to(codes.scales.dtype)
    if codes.zero_points is not None:
        steps = steps - codes.zero_points.repeat_interleave(size, dim=1)
    assert torch.equal(steps * codes.scales.repeat_interleave(size, dim=1), site.weight)
    low, high = int(codes.codes.min()), int(codes.codes.max())
    needed = next(bits for bits in range(1, 9) if -(2 ** (bits - 1)) <= low and high < 2 ** (bits - 1))
    assert codes.bits == needed
    ordered = site.weight.reshape(-1, size).sort(dim=1).values
    distinct = 1 + (ordered.diff(dim=1) != 0).sum(dim=1)  # [groups]
    assert int(distinct.max()) <= 2**needed
    return float(needed)


@pytest.fixture
def counted(case: Case, backend: Any) -> Callable[..., dict[str, float]]:
    """A function that counts from its tensors what every linear of a plan keeps, in the unit of the case."""

    def count(model: nn.Module, plan: Plan, n_weights_before: Mapping[str, int]) -> dict[str, float]:
        kept = {}
        codes = {name: codes for name, _, codes in coded_modules(model)}
        for site in find_structure(model).linears:
            if site.name in plan.skipped:
                continue
            assert torch.isfinite(site.weight).all()
            if case.unit is Unit.DENSITY:
                kept[site.name] = kept_density(site, plan.value_of(site.name), plan.grid)
            elif case.unit is Unit.WIDTH:
                kept[site.name] = site.weight.numel() / n_weights_before[site.name]
            else:
                kept[site.name] = held_bits(codes[site.name], site, backend.code_format.group_size)
        return kept

    return count


@pytest.fixture
def some_skipped(case: Case) -> Callable[[nn.Module], tuple[str, ...]]:
    """A function that names a whole block, and of another what can be left out alone."""

    def choose(model: nn.Module) -> tuple[str, ...]:
        first, second, _ = find_structure(model).blocks
        attention = [site.name for site in first.linears if site.role.startswith("attn.")]
        alone = attention if case.unit is Unit.WIDTH else [first.linears[0].name]
        return (*alone, *(linear.name for linear in second.linears))

    return choose


@pytest.fixture
def only_changes(case: Case) -> Callable[..., AbstractContextManager[None]]:
    """A context in which nothing of a model may change but the weights of a plan, and all of these must.

    Rows that go take their part of the bias along.
    """

    @contextmanager
    def watch(model: nn.Module, plan: Plan) -> Iterator[None]:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        modes = {name: module.training for name, module in model.named_modules()}
        flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        yield
        changed = {f"{budget.name}.weight" for budget in plan.budgets}
        may_change = {f"{budget.name}.bias" for budget in plan.budgets if case.unit is Unit.WIDTH}
        after = model.state_dict()
        assert after.keys() == before.keys()
        for key, tensor in after.items():
            assert tensor.dtype == before[key].dtype, key
            if key not in may_change:
                assert torch.equal(tensor, before[key]) != (key in changed), key
        assert {name: module.training for name, module in model.named_modules()} == modes
        assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
        assert torch.is_grad_enabled()

    return watch


class InterruptAtSecond:
    """A progress display that is there when the user gives up, in the second block."""

    def track(self, items: Iterable[Any], total: int, what: str) -> Iterator[Any]:
        for index, item in enumerate(items):
            if index == 1:
                raise KeyboardInterrupt
            yield item


@pytest.fixture
def interrupted_at_second() -> WalkOptions:
    """Options of a walk that the user gives up in the second block."""
    return WalkOptions(progress=InterruptAtSecond())


@pytest.fixture(scope="session")
def plan_for() -> Callable[..., Plan]:
    """A function that gives every linear of a model a value: one for all, or by name."""

    def make(
        model: nn.Module,
        values: float | Mapping[str, float],
        *,
        unit: Unit = Unit.DENSITY,
        grid: Grid | None = None,
        skipped: tuple[str, ...] = (),
    ) -> Plan:
        budgets = tuple(
            LinearBudget(
                name=linear.name,
                block=block.name,
                n_weights=linear.n_weights,
                value=values[linear.name] if isinstance(values, Mapping) else values,
            )
            for block in find_structure(model).blocks
            for linear in block.linears
            if linear.name not in skipped
        )
        return Plan(
            unit=unit,
            target=weighted_mean(budgets),
            grid=grid,
            low=0.0,
            high=16.0 if unit is Unit.BITS else 1.0,
            allocator=AllocatorRecord(name="by hand"),
            report="0" * 64,
            skipped=skipped,
            budgets=budgets,
        )

    return make


@pytest.fixture(scope="session")
def varied() -> Callable[[nn.Module], dict[str, float]]:
    """A function that draws an odd density for every linear of a model."""

    def draw(model: nn.Module) -> dict[str, float]:
        generator = torch.Generator().manual_seed(1)
        linears = list(find_structure(model).linears)
        numbers = (0.1 + 0.8 * torch.rand(len(linears), generator=generator)).tolist()
        return {linear.name: number for linear, number in zip(linears, numbers, strict=True)}

    return draw


@pytest.fixture(scope="session")
def task_of() -> Callable[..., BlockTask]:
    """A function that makes a block of one group out of weights [out, in] and inputs [tokens, in]."""

    def make(
        weights: list[Tensor], inputs: Tensor | None, density: float, statistic: Any, grid: Grid | None = None
    ) -> BlockTask:
        sites = []
        for index, weight in enumerate(weights):
            module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            module.weight = nn.Parameter(weight.clone())
            sites.append(LinearSite(f"block.{index}", "other", module))
        gathered = None
        if statistic is not None and inputs is not None:
            gathered = statistic.empty(inputs.shape[1], inputs.device)
            gathered.add(inputs)
        group = GroupTask(tuple(LinearTask(site, density) for site in sites), gathered)
        return BlockTask(BlockSite("block", nn.Module(), tuple(sites)), (group,), grid)

    return make
