"""One way of compressing tried out: on a copy, so that the next can be tried on the same dense model."""

from dataclasses import dataclass
from time import perf_counter

from owl_compress.arguments import checked
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.measurements import PerplexityRecord
from owl_compress.documents.plan import Plan
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.result import Result
from owl_compress.errors import RequestError
from owl_compress.evaluation.perplexity import perplexity
from owl_compress.pipeline.dividing import divide
from owl_compress.pipeline.execution import compress_, make_plan
from owl_compress.pipeline.session import Session


@dataclass(frozen=True)
class Trial:
    """What came of it.

    Attributes:
        session: that of the copy, which holds the compressed model.
        report: what was measured, or was there already; None if the allocator looks at none.
        plan: what was carried out.
        result: what was counted.
        perplexity: of the compressed model.
        seconds: that measuring, allocating and compressing took.
    """

    session: Session
    report: ImportanceReport | None
    plan: Plan
    result: Result
    perplexity: PerplexityRecord
    seconds: float


@checked
def try_out(session: Session, windows: TokenWindows, report: ImportanceReport | None = None) -> Trial:
    """Compress a copy of the session's model and evaluate it on `windows`.

    With a `report` of that model nothing is measured again.

    Raises:
        RequestError: what the request is refused for.
    """
    if session.writes_by_itself:
        raise RequestError(
            f"backend {session.recipe.backend!r} writes its own checkpoint: use run, with a folder"
        )
    copy, request = session.on_a_copy(), session.request
    start = perf_counter()
    if report is not None and request.allocator is not None and request.target is not None:
        plan = divide(copy, report)
    else:
        report, plan = make_plan(copy)
    result = compress_(copy, plan)
    seconds = perf_counter() - start
    found = perplexity(
        copy.loaded.model,
        windows,
        batch_size=session.recipe.batch_size,
        device=request.device,
        progress=session.progress,
    )
    return Trial(copy, report, plan, result, found, seconds)
