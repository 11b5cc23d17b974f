"""Hidden states between two blocks, kept on disk for a walk that was cut off to go on from there.

A walk over a dense model is little else than its forward passes: what a block made of all batches is what
spares running the blocks before it again. It is one file, replaced as the walk goes on, whenever writing it
takes little beside what was computed since.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from owl_compress.documents.disk import disk_errors, put_in_place
from owl_compress.documents.notes import KeptError
from owl_compress.models.tensor_file import opened_tensors
from owl_compress.walk.blocks import BlockWalk

SHARE_OF_TIME = 0.1
"""States are written when that takes at most this share of the time since they were written last."""

_NAME, _BEHIND = "states.safetensors", "behind"
_REMEDY = "remove it, and the blocks before it are run again"


@dataclass
class KeptStates:
    """The states in `folder`, which is there already or made with them; None keeps nothing.

    `clock` tells seconds.
    """

    folder: Path | None
    clock: Callable[[], float] = perf_counter
    _since: float | None = field(default=None, init=False)
    _seconds: float = field(default=0.0, init=False)

    def put_back_(self, walk: BlockWalk) -> int:
        """Have the walk stand behind the blocks whose outcome is kept; how many those are.

        Raises:
            KeptError: the file is broken, or of another walk.
        """
        self._since = self.clock()
        path = self._path
        if path is None or not path.exists():
            return 0
        try:
            with disk_errors(path), opened_tensors(path) as kept:
                for batch, hidden in enumerate(walk.hidden):
                    states = kept.get_tensor(str(batch))
                    if states.shape != hidden.shape:
                        raise KeptError(f"{path} is of another walk: {_REMEDY}")
                    walk.hidden[batch] = walk.keeper.replace(hidden, states)
                    walk.keeper.let_go(walk.hidden[batch])
                return int((kept.metadata() or {})[_BEHIND])
        except (SafetensorError, KeyError, ValueError) as error:
            raise KeptError(f"{path} is not whole ({error}): {_REMEDY}") from error

    def keep(self, walk: BlockWalk, behind: int) -> None:
        """Keep the states that the walk is at, `behind` so many blocks, unless that would take long.

        Raises:
            RequestError: the disk is full.
        """
        path, start = self._path, self.clock()
        if path is None or self._since is None or self._seconds > SHARE_OF_TIME * (start - self._since):
            return
        tensors: dict[str, Tensor] = {
            str(batch): hidden.contiguous() for batch, hidden in enumerate(walk.hidden)
        }
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with put_in_place(path) as temporary:
            save_file(tensors, temporary, metadata={_BEHIND: str(behind)})
        for hidden in walk.hidden:
            walk.keeper.let_go(hidden)
        self._since = self.clock()
        self._seconds = self._since - start

    @property
    def _path(self) -> Path | None:
        return None if self.folder is None else self.folder / _NAME
