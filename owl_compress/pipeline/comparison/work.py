"""The cells of a comparison carried out by one process: those that nobody else is at, one model at a time."""

import logging
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any

from owl_compress.documents.comparison import ROWS, SHARED, Row, Status
from owl_compress.documents.drift import with_drift
from owl_compress.documents.row_log import RowLog, RowReader
from owl_compress.errors import RequestError
from owl_compress.pipeline.comparison.bench import Bench
from owl_compress.pipeline.comparison.carrying_out import Workplace
from owl_compress.pipeline.comparison.cells import Cell
from owl_compress.pipeline.comparison.claims import Claims
from owl_compress.pipeline.comparison.figures import Figures
from owl_compress.pipeline.comparison.identified import Identified
from owl_compress.pipeline.comparison.provenance import provenance
from owl_compress.pipeline.comparison.results import note_cells
from owl_compress.pipeline.comparison.share import Share
from owl_compress.pipeline.comparison.shared import Shared
from owl_compress.pipeline.comparison.texts import Texts
from owl_compress.pipeline.comparison.watch import Watch
from owl_compress.progress import Progress

if TYPE_CHECKING:
    from owl_compress.pipeline.comparison.comparison import Comparison

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LOOKS = 0.5
"""At cells that another process is at."""


@dataclass
class Work:
    """One process at work on a comparison, alone or beside others."""

    comparison: "Comparison"
    out: Path
    claims: Claims
    identified: Identified
    texts: Texts
    share: Share
    progress: Progress
    watch: Watch
    announce: Callable[[str], None]
    log: RowLog = field(init=False)
    _news: RowReader = field(init=False)
    _settled: set[str] = field(default_factory=set, init=False)
    _has_begun: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        """News are what is appended from now on, or from when all of several processes began."""
        self.log = RowLog(self.out / ROWS)
        start = self.log.size if self.share.start is None else self.share.start
        self._news = RowReader(self.log.path, start)

    @property
    def keys(self) -> tuple[str, ...]:
        """Fingerprints, by the place of a cell among all."""
        return self.identified.keys

    def all_cells(self) -> None:
        """Carry out what has no row yet, model by model; who leads waits for what others are at."""
        self.begin()
        pending = [place for place in self._satisfiable if not self._is_settled(place)]
        groups = by_model(self.comparison.cells, pending)
        first = self.share.rank * len(groups) // max(1, self.share.of)
        for members in (*groups[first:], *groups[:first]):
            self._on_one_model(members)
        while self.share.leads and (left := [place for place in pending if not self._is_settled(place)]):
            for members in by_model(self.comparison.cells, left):
                self._on_one_model(members)
            sleep(_SECONDS_BETWEEN_LOOKS)

    def watch_others(self, rows: Iterable[Row]) -> None:
        """Tell of rows that other processes make."""
        self.begin()
        for row in rows:
            self.watch.ended(row)

    @property
    def _satisfiable(self) -> list[int]:
        refusals = self.identified.refusals
        return [place for place in range(len(self.comparison.cells)) if place not in refusals]

    def begin(self) -> None:
        """Find out, once, which rows are there and stay; who leads writes down what is refused."""
        if self._has_begun:
            return
        self._has_begun = True
        known = {row.cell: row for row in self.log.rows()}
        if self.share.leads:
            note_cells(self.out, self.keys)
        kept = self._kept(known)
        self._settled |= {row.cell for row in kept}
        self.watch.begin(self.comparison.cells, kept)
        if self.share.leads:
            for place, reason in self.identified.refusals.items():
                row = self.row(place, Status.REFUSED, reason)
                if known.get(row.cell) != row:
                    self.log.append(row)
                self.watch.ended(row)

    def _is_settled(self, place: int) -> bool:
        """Whether the cell has its row, from before or by whichever process meanwhile."""
        self._settled |= {row.cell for row in self._news.fresh()}
        return self.keys[place] in self._settled

    def _kept(self, known: Mapping[str, Row]) -> list[Row]:
        """The rows that are there already, with the names that the grid has for them now."""
        kept = []
        for place, cell in enumerate(self.comparison.cells):
            row = known.get(self.keys[place])
            if row is None or not row.is_measured:
                continue
            named = row.model_copy(update={"name": cell.name, "group": cell.group, "axes": dict(cell.axes)})
            if named != row and self.share.leads:
                self.log.append(named)
            kept.append(named)
        return kept

    def _on_one_model(self, places: Sequence[int]) -> None:
        """Carry out those of the cells at these places, all of one model, that nobody else is at."""
        if not any(map(self._is_free, places)):  # not worth loading the model
            return
        requests = [one for place in places if (one := self.comparison.cells[place].request) is not None]
        try:
            bench = Bench.open(requests[0], self.texts, self.progress, self.announce)
        except RequestError as error:
            for place in places:
                self.append(self.row(place, Status.REFUSED, str(error)))
            return
        metrics = dict.fromkeys(name for one in requests if _ranks(one) for name in one.metrics)
        shared = Shared(bench, self.out / SHARED, self.claims, tuple(metrics))
        figures = Figures(bench, self.comparison.measures)
        workplace = Workplace(bench, shared, figures, self.comparison.command)
        for place in places:
            if self.share.is_abandoned():
                return
            with self.claims.claimed(self.keys[place]) as is_ours:
                if is_ours and not self._is_settled(place):
                    self._carry_out(place, workplace)

    def _is_free(self, place: int) -> bool:
        with self.claims.claimed(self.keys[place]) as is_ours:
            return is_ours and not self._is_settled(place)

    def _carry_out(self, place: int, workplace: Workplace) -> None:
        cell = self.comparison.cells[place]
        self.watch.running(cell)
        try:
            row = workplace.carry_out(cell, self.keys[place])
        except RequestError as error:
            row = self.row(place, Status.REFUSED, str(error))
        except Exception as error:
            logger.exception("%s failed", cell.name)
            where = traceback.extract_tb(error.__traceback__)[-1]
            told = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
            row = self.row(place, Status.FAILED, told)
        self.append(row)

    def append(self, row: Row) -> None:
        """Write a row down, and tell of it; settled by that, whatever becomes of the file."""
        self.log.append(row)
        self._settled.add(row.cell)
        self.watch.ended(row)

    def row(self, place: int, status: Status, reason: str) -> Row:
        """A row without figures."""
        cell = self.comparison.cells[place]
        device = cell.request.device if cell.request else None
        return Row(
            cell=self.keys[place],
            name=cell.name,
            group=cell.group,
            dense=cell.is_dense,
            axes=dict(cell.axes),
            recipe=dict(cell.settings),
            status=status,
            reason=" ".join(reason.split()),
            provenance=provenance(self.comparison.command, device, {}),
        )

    def rows(self) -> tuple[Row, ...]:
        """The rows of the grid, in its order, with those that drifted marked; those are appended so, too."""
        known = {row.cell: row for row in self.log.rows()}
        found = [known[key] for key in self.keys if key in known]
        judged = with_drift(found)
        for before, after in zip(found, judged, strict=True):
            if before != after and self.share.leads:
                self.log.append(after)
        return judged


def _ranks(request: Any) -> bool:
    return request.allocator is not None and request.allocator.reads_scores


def by_model(cells: Sequence[Cell], places: Iterable[int]) -> list[list[int]]:
    """The places by what is loaded for them, in the order in which they come."""
    found: dict[tuple[object, ...], list[int]] = {}
    for place in places:
        request = cells[place].request
        if request is not None:
            recipe = request.recipe
            key = (recipe.model, recipe.revision, recipe.dtype, str(request.device))
            found.setdefault(key, []).append(place)
    return list(found.values())
