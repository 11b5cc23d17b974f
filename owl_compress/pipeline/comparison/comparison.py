"""A comparison from its grid to its rows: what is there already is kept, all else is carried out in order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from owl_compress.arguments import checked
from owl_compress.consent import NO_CONSENT, Consent
from owl_compress.device import own_gpu
from owl_compress.documents.comparison import SHARED, Row
from owl_compress.documents.grid import Grid
from owl_compress.documents.paths import given_path
from owl_compress.errors import RequestError, nearest
from owl_compress.pipeline.comparison.cells import Cell, Place, cells_of, grid_names
from owl_compress.pipeline.comparison.claims import Claims
from owl_compress.pipeline.comparison.identified import check_any, identify
from owl_compress.pipeline.comparison.measures import Measures
from owl_compress.pipeline.comparison.processes import Jobs
from owl_compress.pipeline.comparison.results import (
    await_folder,
    begin_folder,
    prepare_folder,
    write_page,
    write_tables,
)
from owl_compress.pipeline.comparison.share import Share
from owl_compress.pipeline.comparison.texts import Texts
from owl_compress.pipeline.comparison.watch import Unwatched, Watch
from owl_compress.pipeline.comparison.work import Work
from owl_compress.pipeline.scoring import tasks_of
from owl_compress.progress import SILENT, Progress


@dataclass(frozen=True)
class Comparison:
    """A grid resolved as far as it goes without a model.

    Attributes:
        grid: as it was given.
        cells: in the order in which they are carried out.
        measures: what is measured of each.
        consent: what the models may run while they load.
        command: that rows name as theirs.
        path: of the grid.
    """

    grid: Grid
    cells: tuple[Cell, ...]
    measures: Measures
    consent: Consent = NO_CONSENT
    command: str = "owl_compress.compare"
    path: Path | None = None

    @classmethod
    def read(
        cls,
        path: Path | str,
        consent: Consent = NO_CONSENT,
        *,
        place: Place | None = None,
    ) -> "Comparison":
        """Read the grid at `path` and resolve its cells, which are carried out at `place`.

        Raises:
            RequestError: see `Grid.read`, `cells_of` and `Measures.of`; no cell can be satisfied, or none has
                the baseline.
        """
        path = given_path(path)
        grid = Grid.read(path, grid_names())
        measures = Measures.of(grid.settings, path.parent, str(path))
        try:
            cells = cells_of(grid, path.parent, consent=consent, place=place)
        except RequestError as error:
            raise RequestError(f"{path}: {error}") from error
        check_any(path, [cell.refusal for cell in cells])
        _check_baseline(path, grid, cells)
        asked = [tasks_of(cell.request.recipe) for cell in cells if cell.request is not None]
        if not measures.texts and not any(asked):
            raise RequestError(f"{path}: nothing is measured: add data, one text or a list, or tasks")
        return cls(grid, cells, measures, consent, path=path)

    def named(self, command: str) -> "Comparison":
        """The same, of whose rows `command` is said to make them."""
        return replace(self, command=command)

    def run(
        self,
        out: Path,
        progress: Progress = SILENT,
        watch: Watch | None = None,
        announce: Callable[[str], None] = lambda _: None,
        share: Share | None = None,
        jobs: Jobs | None = None,
    ) -> tuple[Row, ...]:
        """Carry out every cell that has no row in `out` yet; the rows of all of them, in order.

        Whatever ends this early, rows that were appended stay, and the tables are of these. Where several
        processes do this with the same folder, each with its `share`, every cell is carried out by one of
        them; without one, the variables that torchrun sets say which. With `jobs` they are started here.

        Raises:
            RequestError: the folder holds something else, the disk is full, or no cell can be satisfied.
        """
        share = share or Share.from_environment()
        texts = Texts(self.consent)
        identified = identify(self, texts)
        if share.leads:
            prepare_folder(out, {str(cell.settings.get("model")) for cell in self.cells})
        else:
            await_folder(out, self.grid.text)
        with Claims.within(out / SHARED) as claims:
            claims.join(self.grid.text, out)
            if share.leads:
                begin_folder(out, self.grid.text)
            work = Work(self, out, claims, identified, texts, share, progress, watch or Unwatched(), announce)
            try:
                if jobs is not None and len(jobs.gpus) > 1 and self.path is not None:
                    work.watch_others(jobs.run(self.path, out, self.consent, self.command))
                work.all_cells()
            finally:
                rows = work.rows()
                if share.leads:
                    write_tables(out, rows, self.measures.options.baseline)
        if share.leads:
            write_page(out, rows, self.measures.options.baseline, self.grid.text)
        return rows


def _check_baseline(path: Path, grid: Grid, cells: Sequence[Cell]) -> None:
    """Refuse a baseline that the grid names and no cell has."""
    named = grid.settings.get("baseline")
    allocators = {str(cell.settings["allocator"]) for cell in cells if "allocator" in cell.settings}
    if named is not None and named not in allocators:
        raise RequestError(
            f"{path}: baseline {named!r} is the allocator of no cell: {nearest(str(named), allocators)}"
        )


@checked
def compare(
    grid: Path | str,
    out: Path | str,
    consent: Consent = NO_CONSENT,
    *,
    device: str | None = None,
    jobs: int = 1,
    progress: Progress = SILENT,
) -> tuple[Row, ...]:
    """Carry out every cell of the grid at `grid`, each a row in the folder `out`; see `owl-compress compare`.

    Cells that have a row there are not carried out again. One that cannot be satisfied is a row with its
    reason. `consent` is what the models of the grid may run while they load. With several `jobs` as many
    processes share the cells out, on a GPU each where there are any.

    Raises:
        RequestError: a grid that cannot be meant, a folder that holds something else, or a full disk.
    """
    comparison = Comparison.read(grid, consent, place=Place(device, own_gpu()))
    return comparison.run(given_path(out), progress, jobs=Jobs.of(jobs, device))
