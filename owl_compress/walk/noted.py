"""A walk over the dense model in which something is made of each block, once: what is noted stays made."""

from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import NoReturn, TypeVar

from owl_compress.documents.document import Frozen
from owl_compress.documents.notes import KeptError, Notes
from owl_compress.models.structure import BlockSite
from owl_compress.progress import Progress
from owl_compress.walk.blocks import BlockVisit, BlockWalk
from owl_compress.walk.kept_states import KeptStates

T = TypeVar("T", bound=Frozen)


def each_once(
    walk: BlockWalk,
    is_asked: Callable[[BlockSite], bool],
    kind: type[T],
    make: Callable[[BlockVisit], T],
    notes: Notes,
    progress: Progress,
    what: str,
) -> dict[str, T]:
    """By name of each block that `is_asked` for, in order: what is made of it, or was before and is noted.

    Blocks whose outcome is noted are not run again, as far as what they hand on is kept.

    Raises:
        RequestError: what was kept is broken or gone, or the disk is full.
    """
    sites, found, states = walk.structure.blocks, dict[str, T](), KeptStates(notes.folder)

    def behind(walk: BlockWalk) -> int:
        n_behind = states.put_back_(walk)
        for site in filter(is_asked, sites[:n_behind]):
            found[site.name] = notes.once(site.name, kind, partial(_lost, site.name, notes))
        return n_behind

    with closing(walk.visits(progress, what, behind)) as visits:
        for visit in visits:
            name = visit.site.name
            if is_asked(visit.site):
                found[name] = notes.once(name, kind, partial(make, visit))
            if visit.must_advance:
                visit.advance()
            if visit.number < len(sites):
                states.keep(walk, visit.number)
    return found


def _lost(block: str, notes: Notes) -> NoReturn:
    raise KeptError(f"what was measured of {block} is gone from {notes.folder}: remove that, and start over")
