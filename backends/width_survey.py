"""The look at the dense model that turns the shares of a plan into whole numbers of heads and channels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from owl_compress.backends.block_widths import (
    AttentionSizes,
    BlockSizes,
    BlockWidths,
    ChannelSizes,
    Level,
    Rounding,
)
from owl_compress.backends.parts import (
    LinearUnits,
    PlannedBlock,
    channel_counts,
    find_parts,
    head_counts,
    n_kept,
)
from owl_compress.backends.unit_importance import Importance, UnitScore, highest_heads
from owl_compress.backends.widths import choose_widths
from owl_compress.compression.contract import Surveyed
from owl_compress.compression.tasks import BlockTask
from owl_compress.documents.plan import Plan
from owl_compress.errors import RequestError
from owl_compress.models.anatomy import Attention, FeedForward
from owl_compress.walk.input_statistics import SecondMoments, Statistic


@dataclass(frozen=True)
class _Noted:
    """One block in numbers."""

    sizes: BlockSizes
    attention: Mapping[str, LinearUnits]
    mlp: Mapping[str, LinearUnits]

    def shares(self, widths: BlockWidths) -> dict[str, float]:
        """Share of its weights that each linear keeps."""
        shares: dict[str, float] = {}
        if widths.level:
            counts = head_counts(widths.level.kv_heads, widths.level.queries_per_group)
            shares |= {name: units.share(counts) for name, units in self.attention.items()}
        if widths.channels is not None:
            counts = channel_counts(widths.channels)
            shares |= {name: units.share(counts) for name, units in self.mlp.items()}
        return shares


@dataclass
class WidthSurvey:
    """Notes sizes, and what each number of heads would lose on the dense model, block by block."""

    score: UnitScore
    rounding: Rounding
    _blocks: list[_Noted] = field(default_factory=list)

    restates: ClassVar[bool] = False
    is_blockwise: ClassVar[Literal[True]] = True

    @property
    def own_division(self) -> str | None:
        """With a uniform width."""
        if not self.rounding.uniform:
            return None
        return "is to give every block the same width, whoever divides the budget: drop --uniform-width"

    @property
    def statistic(self) -> type[Statistic] | None:
        """Second moments where importance is told from them."""
        return SecondMoments if self.score.importance is Importance.WANDA else None

    def see(self, task: BlockTask) -> None:
        """Take the numbers of one dense block.

        Raises:
            RequestError: the plan names a part that is not recognised, or half a part.
        """
        block = find_parts(task)
        attention, mlp = block.attention_units, block.mlp_units
        n_weights = sum(units.n_weights for units in (*attention.values(), *mlp.values()))
        sizes = BlockSizes(
            name=task.site.name,
            value=(block.asked(attention) + block.asked(mlp)) / n_weights,
            attention=_attention_sizes(block, block.attention, attention, self.score)
            if block.attention
            else None,
            mlp=_channel_sizes(block, block.mlp, mlp) if block.mlp else None,
        )
        self._blocks.append(_Noted(sizes, attention, mlp))

    def redistribute(self, plan: Plan) -> Surveyed:
        """The plan whose values are the exact shares of whole units, and by block these `BlockWidths`.

        It is never above the total of `plan`.

        Raises:
            RequestError: see `choose_widths`; or a uniform width with blocks that the plan skips.
        """
        if self.rounding.uniform:
            self._check_no_block_is_skipped(plan)
        widths = choose_widths([block.sizes for block in self._blocks], self.rounding)
        shares: dict[str, float] = {}
        for block, chosen in zip(self._blocks, widths, strict=True):
            shares |= block.shares(chosen)
        budgets = [{**budget.model_dump(), "value": shares[budget.name]} for budget in plan.budgets]
        changed = {"low": 0.0, "high": 1.0, "budgets": budgets}
        return Surveyed(
            Plan.model_validate({**plan.model_dump(), **changed}),
            {block.sizes.name: chosen for block, chosen in zip(self._blocks, widths, strict=True)},
        )

    def _check_no_block_is_skipped(self, plan: Plan) -> None:
        planned = {block.sizes.name for block in self._blocks}
        for name in plan.skipped:
            if not any(name.startswith(f"{block}.") for block in planned):
                raise RequestError(
                    "--uniform-width gives every block the same widths, and the plan skips the block of "
                    f"{name}: drop --uniform-width, or skip no block"
                )


def _attention_sizes(
    block: PlannedBlock, attention: Attention, units: Mapping[str, LinearUnits], score: UnitScore
) -> AttentionSizes:
    queries, keys_values = block.head_importance(attention, score)
    total = float(queries.sum() + keys_values.sum())
    levels = []
    for n_kv_heads in range(1, attention.n_kv_heads + 1):
        for n_per_group in range(1, attention.n_queries_per_group + 1):
            kept = highest_heads(queries, keys_values, n_kv_heads, n_per_group).importance
            n_weights = n_kept(units, head_counts(n_kv_heads, n_per_group))
            levels.append(Level(n_kv_heads, n_per_group, n_weights, max(0.0, total - kept)))
    return AttentionSizes(block.asked(units), tuple(levels))


def _channel_sizes(block: PlannedBlock, mlp: FeedForward, units: Mapping[str, LinearUnits]) -> ChannelSizes:
    n_channels = mlp.n_channels
    whole = n_kept(units, channel_counts(n_channels))
    each = whole - n_kept(units, channel_counts(n_channels - 1)) if n_channels > 1 else whole
    return ChannelSizes(block.asked(units), n_channels, each, whole - n_channels * each)
