"""How much each head or channel of a block matters: one number for each unit, summed over its slots."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from owl_compress.compression.tasks import LinearTask
from owl_compress.errors import RequestError
from owl_compress.models.anatomy import Slot
from owl_compress.models.state import is_finite
from owl_compress.walk.input_statistics import Statistic


class Importance(StrEnum):
    """What makes a unit matter; `auto` is taylor where memory holds the gradients, and else wanda."""

    AUTO = "auto"
    TAYLOR = "taylor"
    WANDA = "wanda"
    MAGNITUDE = "magnitude"
    RANDOM = "random"


class TaylorVariant(StrEnum):
    """Whether w * dL/dw loses its sign weight by weight, or after the sum over a row or column."""

    ELEMENT = "element"
    VECTOR = "vector"


@dataclass(frozen=True)
class LinearView:
    """One linear with what is known of its inputs."""

    task: LinearTask
    statistic: Statistic | None


@dataclass(frozen=True)
class UnitScore:
    """The importance of units by one of four rules.

    - taylor: the change of the loss to first order when the unit goes, sum of |w * dL/dw| over its rows and
      columns (element), or of |the signed sum of each row and column| (vector): LLM-Pruner, arXiv 2305.11627,
      `param_first` and `vectorize` of its code with group reduction "sum". Its second-order variants are left
      out.
    - wanda: sum of |W_ij| * ‖X_j‖_2 over the unit (the score of arXiv 2306.11695, which compares single
      weights).
    - magnitude: the L2 norm of all weights of the unit.
    - random: numbers drawn from `seed` and the name of the block.

    Biases and norms count in none of them. "auto" is no rule: which one it stands for is settled before.
    """

    importance: Importance
    variant: TaylorVariant = TaylorVariant.ELEMENT
    seed: int = 0

    def of(self, slots: Sequence[Slot], linears: Mapping[str, LinearView], where: str) -> Tensor:
        """Importance of every unit of `slots`, float64 [units] on the host.

        Args:
            slots: where the units lie; all have the same number of units.
            linears: the linears of the slots by name, with inputs or salience where the rule needs them.
            where: the block and the kind of unit, which the random numbers depend on.

        Raises:
            RequestError: NaN or Inf in a weight or gradient.
        """
        if self.importance is Importance.AUTO:
            raise TypeError("importance auto has to be settled before units are scored")
        if self.importance is Importance.RANDOM:
            return _random(slots[0].index.shape[0], f"{self.seed} {where}")
        rules: dict[Importance, Callable[[LinearView], tuple[Tensor, Tensor]]] = {
            Importance.TAYLOR: self._salience,
            Importance.WANDA: _wanda,
            Importance.MAGNITUDE: _squares,
        }
        total = torch.zeros(slots[0].index.shape[0], dtype=torch.float64)
        for slot in slots:
            rows, columns = rules[self.importance](linears[slot.linear])
            sums = (rows if slot.axis == "out" else columns).cpu()
            if not is_finite(sums):
                raise RequestError(
                    f"{slot.linear} holds NaN or Inf, or overflows: check the checkpoint, or try "
                    "--dtype float32"
                )
            total += sums[slot.index.cpu()].sum(dim=1)  # [units, entries] -> [units]
        return total.sqrt() if self.importance is Importance.MAGNITUDE else total

    def _salience(self, linear: LinearView) -> tuple[Tensor, Tensor]:
        salience = linear.task.salience
        if salience is None:
            raise TypeError("taylor importance needs the salience of the linear")
        if self.variant is TaylorVariant.ELEMENT:
            return salience.out_element, salience.in_element
        return salience.out_vector.abs(), salience.in_vector.abs()


def _wanda(linear: LinearView) -> tuple[Tensor, Tensor]:
    """Sums of |W_ij| * ‖X_j‖_2 along each row [out] and each column [in]."""
    if linear.statistic is None:
        raise TypeError("wanda importance needs the second moments of the inputs")
    norms = linear.statistic.second_moments.sqrt().float()
    scores = linear.task.site.weight.abs().float().mul_(norms)  # [out, in]
    return scores.sum(dim=1, dtype=torch.float64), scores.sum(dim=0, dtype=torch.float64)


def _squares(linear: LinearView) -> tuple[Tensor, Tensor]:
    """Sums of W_ij^2 along each row [out] and each column [in]."""
    squares = linear.task.site.weight.float().square()
    return squares.sum(dim=1, dtype=torch.float64), squares.sum(dim=0, dtype=torch.float64)


def _random(n_units: int, seed: str) -> Tensor:
    digest = hashlib.sha256(seed.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(n_units, dtype=torch.float64, generator=generator)


def highest(importance: Tensor, n_kept: int) -> Tensor:
    """Indices of the `n_kept` most important units, rising; of equal ones the first stay."""
    return importance.sort(descending=True, stable=True).indices[:n_kept].sort().values


@dataclass(frozen=True)
class HeadChoice:
    """The heads that stay, int64 indices in rising order, and the importance that they have together."""

    heads: Tensor
    kv_heads: Tensor
    importance: float


def highest_heads(queries: Tensor, keys_values: Tensor, n_kv_heads: int, n_per_group: int) -> HeadChoice:
    """The best `n_kv_heads` groups with the best `n_per_group` query heads of each: the best choice there is.

    A group counts as its key-value head and those of its query heads that would stay.

    Args:
        queries: importance of the query heads, [heads]; head h reads key-value head h // (heads / groups).
        keys_values: importance of the key-value heads, [groups].
        n_kv_heads: groups that stay.
        n_per_group: query heads that stay in each of them.
    """
    grouped = queries.reshape(len(keys_values), -1)  # [heads] -> [groups, heads of a group]
    ordered = grouped.sort(dim=1, descending=True, stable=True)
    of_groups = keys_values + ordered.values[:, :n_per_group].sum(dim=1)
    kept = highest(of_groups, n_kv_heads)
    within = ordered.indices[kept, :n_per_group].sort(dim=1).values  # [kept groups, n_per_group]
    heads = (kept[:, None] * grouped.shape[1] + within).flatten()
    return HeadChoice(heads, kept, float(of_groups[kept].sum()))
