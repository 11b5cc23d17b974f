"""A comparison from its grid to its rows: what is there already is kept, all else is carried out in order."""

import logging
import shlex
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from owl_compress.arguments import checked
from owl_compress.consent import NO_CONSENT, Consent
from owl_compress.documents.comparison import ROWS, SHARED, Row, Status
from owl_compress.documents.drift import with_drift
from owl_compress.documents.grid import Grid
from owl_compress.documents.paths import given_path
from owl_compress.documents.row_log import RowLog
from owl_compress.errors import RequestError
from owl_compress.pipeline.comparison.bench import Bench
from owl_compress.pipeline.comparison.carrying_out import Workplace
from owl_compress.pipeline.comparison.cells import Cell, cells_of, grid_names
from owl_compress.pipeline.comparison.claims import Claims
from owl_compress.pipeline.comparison.figures import Figures
from owl_compress.pipeline.comparison.fingerprints import fingerprint
from owl_compress.pipeline.comparison.measures import Measures
from owl_compress.pipeline.comparison.provenance import provenance
from owl_compress.pipeline.comparison.results import prepare_folder, write_tables
from owl_compress.pipeline.comparison.shared import Shared
from owl_compress.pipeline.comparison.texts import Texts
from owl_compress.progress import SILENT, Progress

logger = logging.getLogger(__name__)


class Watch(Protocol):
    """Who is told how far a comparison is."""

    def begin(self, cells: Sequence[Cell], rows: Sequence[Row]) -> None:
        """All cells, and the rows of those that are there already."""
        ...

    def running(self, cell: Cell) -> None:
        """A cell begins."""
        ...

    def ended(self, row: Row) -> None:
        """A row was appended."""
        ...


class Unwatched:
    """Nobody is told."""

    def begin(self, cells: Sequence[Cell], rows: Sequence[Row]) -> None:
        """Nothing happens."""

    def running(self, cell: Cell) -> None:
        """Nothing happens."""

    def ended(self, row: Row) -> None:
        """Nothing happens."""


@dataclass(frozen=True)
class Comparison:
    """A grid resolved as far as it goes without a model.

    Attributes:
        grid: as it was given.
        cells: in the order in which they are carried out.
        measures: what is measured of each.
        consent: what the models may run while they load.
        command: that rows name as theirs.
    """

    grid: Grid
    cells: tuple[Cell, ...]
    measures: Measures
    consent: Consent = NO_CONSENT
    command: str = "owl_compress.compare"

    @classmethod
    def read(
        cls,
        path: Path | str,
        consent: Consent = NO_CONSENT,
        *,
        device: str | None = None,
        command: Sequence[str] | None = None,
    ) -> "Comparison":
        """Read the grid at `path` and resolve its cells; `device` takes the place of the grid's.

        Raises:
            RequestError: see `Grid.read`, `cells_of` and `Measures.of`; or no cell can be satisfied.
        """
        path = given_path(path)
        grid = Grid.read(path, grid_names())
        measures = Measures.of(grid.settings, path.parent, str(path))
        try:
            cells = cells_of(grid, path.parent, consent=consent, device=device)
        except RequestError as error:
            raise RequestError(f"{path}: {error}") from error
        if all(cell.request is None for cell in cells):
            n_more = f" (and so for all {len(cells)} cells)" if len(cells) > 1 else ""
            raise RequestError(f"{path}: {cells[0].refusal}{n_more}")
        told = {} if command is None else {"command": shlex.join(command)}
        return cls(grid, cells, measures, consent, **told)

    def run(
        self,
        out: Path,
        progress: Progress = SILENT,
        watch: Watch | None = None,
        announce: Callable[[str], None] = lambda _: None,
    ) -> tuple[Row, ...]:
        """Carry out every cell that has no row in `out` yet; the rows of all of them, in order.

        Whatever ends this early, rows that were appended stay, and the tables are of these.

        Raises:
            RequestError: the folder holds something else, or the disk is full.
        """
        prepare_folder(out, self.grid.text)
        with Claims.within(out / SHARED) as claims:
            run = _Run(self, out, claims, progress, watch or Unwatched(), announce)
            try:
                run.all_cells()
            finally:
                rows = run.rows()
                write_tables(out, rows, self.measures.options.baseline)
        return rows


@checked
def compare(
    grid: Path | str,
    out: Path | str,
    consent: Consent = NO_CONSENT,
    *,
    device: str | None = None,
    progress: Progress = SILENT,
) -> tuple[Row, ...]:
    """Carry out every cell of the grid at `grid`, each a row in the folder `out`; see `owl-compress compare`.

    Cells that have a row there are not carried out again. One that cannot be satisfied is a row with its
    reason. `consent` is what the models of the grid may run while they load.

    Raises:
        RequestError: a grid that cannot be meant, a folder that holds something else, or a full disk.
    """
    return Comparison.read(grid, consent, device=device).run(given_path(out), progress)


@dataclass
class _Run:
    """One process at work on a comparison."""

    comparison: Comparison
    out: Path
    claims: Claims
    progress: Progress
    watch: Watch
    announce: Callable[[str], None]
    texts: Texts = field(init=False)
    log: RowLog = field(init=False)
    keys: dict[int, str] = field(default_factory=dict, init=False)
    """Fingerprints, by the place of a cell among all."""

    def __post_init__(self) -> None:
        self.texts = Texts(self.comparison.consent)
        self.log = RowLog(self.out / ROWS)

    def all_cells(self) -> None:
        """Carry out what has no row yet, model by model."""
        refusals = dict(self._identify())
        known = {row.cell: row for row in self.log.rows()}
        self.watch.begin(self.comparison.cells, self._kept(known))
        for place, reason in refusals.items():
            self._append(self._row(place, Status.REFUSED, reason), known)
        pending = [
            place
            for place in self.keys
            if place not in refusals and not self._is_kept(known.get(self.keys[place]))
        ]
        for members in _by_model(self.comparison.cells, pending):
            self._on_one_model(members)

    def _identify(self) -> Iterator[tuple[int, str]]:
        """Find the fingerprint of every cell; yield those that cannot be satisfied, with the reason."""
        for place, cell in enumerate(self.comparison.cells):
            try:
                self.keys[place] = fingerprint(cell, self.comparison.measures, self.texts)
            except RequestError as error:
                bare = Cell(cell.settings, None, str(error), cell.is_dense)
                self.keys[place] = fingerprint(bare, self.comparison.measures, self.texts)
                yield place, str(error)
            else:
                if cell.request is None:
                    yield place, cell.refusal or "it cannot be satisfied"

    @staticmethod
    def _is_kept(row: Row | None) -> bool:
        return row is not None and row.is_measured

    def _kept(self, known: Mapping[str, Row]) -> list[Row]:
        """The rows that are there already, with the names that the grid has for them now."""
        kept = []
        for place, cell in enumerate(self.comparison.cells):
            row = known.get(self.keys[place])
            if row is None or not self._is_kept(row):
                continue
            named = row.model_copy(update={"name": cell.name, "group": cell.group, "axes": dict(cell.axes)})
            if named != row:
                self.log.append(named)
            kept.append(named)
        return kept

    def _on_one_model(self, places: Sequence[int]) -> None:
        """Carry out the cells at these places, all of one model."""
        requests = [one for place in places if (one := self.comparison.cells[place].request) is not None]
        try:
            bench = Bench.open(requests[0], self.texts, self.progress, self.announce)
        except RequestError as error:
            for place in places:
                self._append(self._row(place, Status.REFUSED, str(error)))
            return
        metrics = dict.fromkeys(name for one in requests if _ranks(one) for name in one.metrics)
        shared = Shared(bench, self.out / SHARED, self.claims, tuple(metrics))
        figures = Figures(bench, self.comparison.measures)
        workplace = Workplace(bench, shared, figures, self.comparison.command)
        for place in places:
            with self.claims.claimed(self.keys[place]) as is_ours:
                if is_ours and not self._is_there(place):
                    self._carry_out(place, workplace)

    def _is_there(self, place: int) -> bool:
        """Whether another process has made the row meanwhile."""
        known = {row.cell: row for row in self.log.rows()}
        return self._is_kept(known.get(self.keys[place]))

    def _carry_out(self, place: int, workplace: Workplace) -> None:
        cell = self.comparison.cells[place]
        self.watch.running(cell)
        try:
            row = workplace.carry_out(cell, self.keys[place])
        except RequestError as error:
            row = self._row(place, Status.REFUSED, str(error))
        except Exception as error:
            logger.exception("%s failed", cell.name)
            where = traceback.extract_tb(error.__traceback__)[-1]
            told = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
            row = self._row(place, Status.FAILED, told)
        self._append(row)

    def _append(self, row: Row, known: Mapping[str, Row] | None = None) -> None:
        if known is None or known.get(row.cell) != row:
            self.log.append(row)
        self.watch.ended(row)

    def _row(self, place: int, status: Status, reason: str) -> Row:
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
        found = [known[key] for key in self.keys.values() if key in known]
        judged = with_drift(found)
        for before, after in zip(found, judged, strict=True):
            if before != after:
                self.log.append(after)
        return judged


def _ranks(request: Any) -> bool:
    return request.allocator is not None and request.allocator.reads_scores


def _by_model(cells: Sequence[Cell], places: Iterable[int]) -> list[list[int]]:
    """The places by what is loaded for them, in the order in which they come."""
    found: dict[tuple[object, ...], list[int]] = {}
    for place in places:
        request = cells[place].request
        if request is not None:
            recipe = request.recipe
            key = (recipe.model, recipe.revision, recipe.dtype, str(request.device))
            found.setdefault(key, []).append(place)
    return list(found.values())
