"""What a comparison will cost, told before it begins: forward tokens of every cell, and the time these take.

Models are loaded and texts cut into windows, so that what no cell of these could satisfy is told as well; but
nothing is measured or compressed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch

from owl_compress.compression.contract import Backend, GradientReader
from owl_compress.compression.gradient_memory import windows_of_gradients
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.comparison import ROWS
from owl_compress.documents.quantities import n_tokens
from owl_compress.documents.recipe_fields import DEFAULT_SAMPLES
from owl_compress.documents.row_log import RowLog
from owl_compress.errors import RequestError
from owl_compress.evaluation.perplexity import placed
from owl_compress.models.limits import resolve_seq_len
from owl_compress.models.state import evaluation_mode
from owl_compress.pipeline.comparison.bench import Bench
from owl_compress.pipeline.comparison.cells import Cell
from owl_compress.pipeline.comparison.comparison import Comparison
from owl_compress.pipeline.comparison.fingerprints import evaluated
from owl_compress.pipeline.comparison.identified import identify
from owl_compress.pipeline.comparison.measures import Measures
from owl_compress.pipeline.comparison.texts import Texts
from owl_compress.pipeline.comparison.work import by_model
from owl_compress.pipeline.feasibility import check_plan, check_request
from owl_compress.pipeline.session import Session
from owl_compress.pipeline.tuning_scheme import scheme_of
from owl_compress.progress import SILENT, Progress

_FORWARD_AND_BACK = 3
"""Forward passes that a pass forward and back takes the time of."""


@dataclass(frozen=True)
class CellCost:
    """What one cell will cost.

    Attributes:
        cell: which.
        forward_tokens: tokens that go through all blocks once, so often; of a profile at most.
        seconds: that these take; factorisations and tasks come on top.
        note: why it costs nothing: it has its row, or cannot be satisfied.
    """

    cell: Cell
    forward_tokens: int = 0
    seconds: float = 0.0
    note: str = ""


def costs(
    comparison: Comparison, out: Path | None = None, progress: Progress = SILENT
) -> tuple[CellCost, ...]:
    """The cost of every cell, in order; of those that have a row in `out`, nothing.

    Raises:
        RequestError: the rows in `out` cannot be read, or no cell can be satisfied.
    """
    log = RowLog(out / ROWS) if out is not None else None
    there = {row.cell for row in log.rows() if row.is_measured} if log else set()
    texts = Texts(comparison.consent)
    identified = identify(comparison, texts)
    found = {
        place: CellCost(comparison.cells[place], note=f"refused: {reason}")
        for place, reason in identified.refusals.items()
    }
    for place, key in enumerate(identified.keys):
        if key in there:
            found[place] = CellCost(comparison.cells[place], note="has its row")
    left = [place for place in range(len(comparison.cells)) if place not in found]
    for members in by_model(comparison.cells, left):
        cells = {place: comparison.cells[place] for place in members}
        found |= _of_one_model(cells, comparison.measures, texts, progress)
    return tuple(found[place] for place in range(len(comparison.cells)))


def _of_one_model(
    cells: Mapping[int, Cell], measures: Measures, texts: Texts, progress: Progress
) -> dict[int, CellCost]:
    first = next(iter(cells.values()))
    if first.request is None:
        raise TypeError("cells of a model have requests")
    try:
        bench = Bench.open(first.request, texts, progress)
    except RequestError as error:
        return {place: CellCost(cell, note=f"refused: {error}") for place, cell in cells.items()}
    count = _Count(bench, measures)
    return {place: count.of(cell) for place, cell in cells.items()}


@dataclass
class _Count:
    """Counts tokens of cells of one model; what several share is counted where it comes first."""

    bench: Bench
    measures: Measures
    _shared: set[str] = field(default_factory=set)
    _rate: float | None = None

    def of(self, cell: Cell) -> CellCost:
        if cell.request is None:
            raise TypeError("cells of a model have requests")
        try:
            windows = [self.bench.evaluation(one) for _, one in evaluated(cell.request.recipe, self.measures)]
            tokens = sum(map(_tokens, windows))
            if not cell.is_dense:
                session = self.bench.session(cell.request)
                if cell.request.plan is not None:
                    check_plan(session, cell.request.plan)
                else:
                    check_request(session)
                tokens += self._of_method(session)
            if self._rate is None and windows:
                self._rate = self._measured_rate(windows, cell)
        except RequestError as error:
            return CellCost(cell, note=f"refused: {error}")
        return CellCost(cell, tokens, tokens / self._rate if self._rate else 0.0)

    def _of_method(self, session: Session) -> int:
        """Tokens of measuring and compressing."""
        calibration, backend = session.calibration, session.request.backend
        if calibration is None:
            return 0
        key, n_calibration = calibration.record.token_ids_sha256, _tokens(calibration)
        tokens = 0
        if session.request.candidates:  # importance and a profile are measured in the course of it
            scheme = scheme_of(session)
            tokens += round(scheme.cost_of(scheme.rounds))
        elif session.measuring is not None:
            tokens += self._once(
                f"report {session.measuring.record.token_ids_sha256}", _tokens(session.measuring)
            )
        if isinstance(backend, Backend) and backend.statistic is not None:
            if session.asks_for_dense:
                is_measured = session.measuring is not None and len(session.measuring) == len(calibration)
                tokens += self._once(f"{'report' if is_measured else 'dense'} {key}", n_calibration)
            else:
                tokens += 2 * n_calibration  # statistics are gathered, then outputs computed anew
            if backend.survey is not None and backend.survey.statistic is not None:
                tokens += n_calibration
        if isinstance(backend, GradientReader) and backend.reads_gradients:
            tokens += _FORWARD_AND_BACK * _tokens(windows_of_gradients(backend, calibration))
        if session.request.reads_damage:
            tokens += self._of_damage(session)
        return tokens

    def _of_damage(self, session: Session) -> int:
        """Tokens of a profile, at most, and of the trial of the plan beside equal shares."""
        seen = session.profiled_windows
        trial = 0 if seen is None else 2 * 2 * _tokens(seen)
        if session.request.profile is not None:
            return trial
        recipe = session.recipe
        most = n_tokens(recipe.max_cost) if recipe.max_cost else 0
        usual = DEFAULT_SAMPLES * resolve_seq_len(None, session.loaded.model.config)
        return trial + self._once(f"profile {session.request.profiling} {recipe.seed}", most or usual)

    def _once(self, key: str, tokens: int) -> int:
        if key in self._shared:
            return 0
        self._shared.add(key)
        return tokens

    def _measured_rate(self, windows: Sequence[TokenWindows], cell: Cell) -> float:
        """Tokens a second through the dense model, in the second of two passes."""
        request, model = cell.request, self.bench.loaded.model
        if request is None:
            raise TypeError("cells of a model have requests")
        batch = windows[0].batches(request.recipe.batch_size)[0]
        with placed(model, request.device) as device, evaluation_mode(model), torch.inference_mode():
            for _ in range(2):
                start = perf_counter()
                float(model(input_ids=batch.to(device)).logits[0, 0, 0])
                seconds = perf_counter() - start
        return batch.numel() / max(seconds, 1e-9)


def _tokens(windows: TokenWindows) -> int:
    return windows.ids.numel()
