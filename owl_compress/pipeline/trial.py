"""One way of compressing tried out: on a copy, so that the next can be tried on the same dense model."""

from dataclasses import dataclass
from time import perf_counter

from owl_compress.arguments import checked
from owl_compress.data.windows import TokenWindows
from owl_compress.documents.measurements import PerplexityRecord
from owl_compress.documents.plan import Plan
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.result import Result
from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.errors import RequestError
from owl_compress.evaluation.perplexity import perplexity
from owl_compress.pipeline.dividing import divide
from owl_compress.pipeline.execution import compress_, make_plan
from owl_compress.pipeline.judging import judge
from owl_compress.pipeline.profiling import check_given
from owl_compress.pipeline.session import Session


@dataclass(frozen=True)
class Trial:
    """What came of it.

    Attributes:
        session: that of the copy, which holds the compressed model.
        report: what was measured, or was there already; None if the allocator looks at none.
        plan: what was carried out: by an allocator that reads damage, or equal shares if they had less.
        result: what was counted.
        perplexity: of the compressed model.
        profile: the same for an allocator that reads damage.
        seconds: that measuring, allocating and compressing took.
    """

    session: Session
    report: ImportanceReport | None
    plan: Plan
    result: Result
    perplexity: PerplexityRecord
    seconds: float
    profile: SensitivityProfile | None = None


@checked
def try_out(
    session: Session, windows: TokenWindows, source: ImportanceReport | SensitivityProfile | None = None
) -> Trial:
    """Compress a copy of the session's model and evaluate it on `windows`.

    With a report of that model as `source`, or a profile where damage is read, nothing is measured again.

    Raises:
        RequestError: what the request is refused for.
    """
    if session.writes_by_itself:
        raise RequestError(
            f"backend {session.recipe.backend!r} writes its own checkpoint: use run, with a folder"
        )
    copy, request = session.on_a_copy(), session.request
    start = perf_counter()
    if source is not None and request.allocator is not None and request.target is not None:
        if isinstance(source, SensitivityProfile) and request.reads_damage:
            check_given(copy, source)
        plan = divide(copy, source)
    else:
        source, plan = make_plan(copy)
    judged = judge(copy, source, plan, compress_)
    plan = judged.plan
    result = judged.told(compress_(copy, plan), copy)
    seconds = perf_counter() - start
    found = perplexity(
        copy.loaded.model,
        windows,
        batch_size=session.recipe.batch_size,
        device=request.device,
        progress=session.progress,
    )
    report = source if isinstance(source, ImportanceReport) else None
    profile = source if isinstance(source, SensitivityProfile) else None
    return Trial(copy, report, plan, result, found, seconds, profile)
