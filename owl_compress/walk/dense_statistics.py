"""What the linears of the dense model read, kept for all of its blocks: norms of inputs are small."""

from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass

import torch

from owl_compress.documents.provenance import CalibrationRecord
from owl_compress.errors import RequestError
from owl_compress.models.structure import BlockSite, LinearSite
from owl_compress.progress import SILENT, Progress
from owl_compress.walk.blocks import BlockWalk
from owl_compress.walk.gathering import LinearGroup, unreached
from owl_compress.walk.input_statistics import SecondMoments

_HOST = torch.device("cpu")


@dataclass(frozen=True)
class KeptGroup:
    """Names of linears that read the same input, and its second moments, on the host."""

    linears: tuple[str, ...]
    moments: SecondMoments

    @classmethod
    def of(cls, group: LinearGroup) -> "KeptGroup":
        """A group as it was gathered, without hold on the model or the device."""
        names = tuple(linear.name for linear in group.linears)
        return cls(names, SecondMoments.of(group.statistic, _HOST))


@dataclass(frozen=True)
class DenseStatistics:
    """Second moments of the inputs of linears, by block, as the dense model has them.

    One float64 vector for each input, on the host. Linears go by their names, so that a copy of the model is
    served as well. Nobody may change them.

    Attributes:
        blocks: by name of the block, its groups in the order in which it calls them.
        windows: the text they were summed over.
    """

    blocks: Mapping[str, tuple[KeptGroup, ...]]
    windows: CalibrationRecord

    @property
    def linears(self) -> frozenset[str]:
        """Names of the linears that something is known of."""
        return frozenset(name for groups in self.blocks.values() for kept in groups for name in kept.linears)

    def is_of(self, windows: CalibrationRecord) -> bool:
        """Whether they were summed over the same token ids."""
        return self.windows.token_ids_sha256 == windows.token_ids_sha256

    def of_block(
        self, site: BlockSite, names: Collection[str], device: torch.device
    ) -> tuple[LinearGroup, ...]:
        """What gathering second moments on the dense block `site` would give for the linears `names`.

        Raises:
            RequestError: one of them that no token reached, or whose inputs are of another size.
        """
        wanted = {linear.name: linear for linear in site.linears if linear.name in names}
        groups = []
        for kept in self.blocks.get(site.name, ()):
            members = tuple(wanted.pop(name) for name in kept.linears if name in wanted)
            for member in members:
                _check_size(member, kept.moments)
            if members:
                groups.append(LinearGroup(members, SecondMoments.of(kept.moments, device)))
        for missing in wanted.values():
            raise RequestError(unreached(missing))
        return tuple(groups)


def gather_dense(
    walk: BlockWalk, windows: CalibrationRecord, names: Collection[str], progress: Progress = SILENT
) -> DenseStatistics:
    """Second moments of what the linears `names` read, in one pass over the blocks of the dense model.

    `windows` says which text is in the batches of `walk`.

    Raises:
        RequestError: a linear that no token reached, or inputs with NaN or Inf.
    """
    blocks = {}
    with closing(walk.visits(progress, "gathering statistics")) as visits:
        for visit in visits:
            if any(linear.name in names for linear in visit.site.linears):
                groups = visit.gather(SecondMoments, names, advance=True)
                blocks[visit.site.name] = tuple(map(KeptGroup.of, groups))
    return DenseStatistics(blocks, windows)


def _check_size(linear: LinearSite, moments: SecondMoments) -> None:
    n_inputs, n_known = linear.shape[1], len(moments.second_moments)
    if n_inputs != n_known:
        raise RequestError(
            f"{linear.name} has {n_inputs} inputs, and {n_known} in the statistics of the dense model: "
            "gather them on this model"
        )
