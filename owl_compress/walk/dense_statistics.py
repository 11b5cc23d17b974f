"""What the linears of the dense model read, kept for all of its blocks: norms of inputs are small."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch

from owl_compress.documents.journal import SeenBlock, SeenInput, SeenModel
from owl_compress.documents.notes import NO_NOTES, Notes
from owl_compress.documents.provenance import CalibrationRecord
from owl_compress.errors import RequestError
from owl_compress.models.structure import BlockSite, LinearSite
from owl_compress.progress import SILENT, Progress
from owl_compress.walk.blocks import BlockVisit, BlockWalk
from owl_compress.walk.gathering import LinearGroup, unreached
from owl_compress.walk.input_statistics import SecondMoments
from owl_compress.walk.noted import each_once

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

    @classmethod
    def noted(cls, seen: SeenInput) -> "KeptGroup":
        """A group as it was noted, to the last bit."""
        moments = SecondMoments(torch.tensor(seen.second_moments, dtype=torch.float64))
        moments.n_tokens = seen.n_tokens
        return cls(seen.linears, moments)

    def to_note(self) -> SeenInput:
        """The same as numbers."""
        moments = tuple(self.moments.second_moments.tolist())
        return SeenInput(linears=self.linears, n_tokens=self.moments.n_tokens, second_moments=moments)


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

    @classmethod
    def noted(cls, seen: SeenModel, windows: CalibrationRecord) -> "DenseStatistics":
        """What was noted of these `windows`."""
        blocks = {name: tuple(map(KeptGroup.noted, block.inputs)) for name, block in seen.blocks.items()}
        return cls(blocks, windows)

    def to_note(self) -> SeenModel:
        """The same as numbers."""
        return SeenModel(blocks={name: note_of(groups) for name, groups in self.blocks.items()})

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


def note_of(groups: Iterable[KeptGroup]) -> SeenBlock:
    """What is noted of the groups of one block."""
    return SeenBlock(inputs=tuple(kept.to_note() for kept in groups))


def gather_dense(
    walk: BlockWalk,
    windows: CalibrationRecord,
    names: Collection[str],
    progress: Progress = SILENT,
    notes: Notes = NO_NOTES,
) -> DenseStatistics:
    """Second moments of what the linears `names` read, in one pass over the blocks of the dense model.

    `windows` says which text is in the batches of `walk`; `notes` are of this very pass, where it may have
    been cut off.

    Raises:
        RequestError: a linear that no token reached, or inputs with NaN or Inf; what is kept is broken.
    """

    def is_asked(site: BlockSite) -> bool:
        return any(linear.name in names for linear in site.linears)

    def seen(visit: BlockVisit) -> SeenBlock:
        return note_of(map(KeptGroup.of, visit.gather(SecondMoments, names, advance=True)))

    blocks = each_once(walk, is_asked, SeenBlock, seen, notes, progress, "gathering statistics")
    return DenseStatistics.noted(SeenModel(blocks=blocks), windows)


def _check_size(linear: LinearSite, moments: SecondMoments) -> None:
    n_inputs, n_known = linear.shape[1], len(moments.second_moments)
    if n_inputs != n_known:
        raise RequestError(
            f"{linear.name} has {n_inputs} inputs, and {n_known} in the statistics of the dense model: "
            "gather them on this model"
        )
