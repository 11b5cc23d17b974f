"""owl-compress: measure layer importance once, turn it into budgets, carry them out with any backend.

    import owl_compress as oc

    loaded = oc.load("builtin")
    calibration = oc.calibrate(loaded, "builtin", samples=16, seq_len=512)
    report = oc.measure(loaded.model, calibration)
    plan = oc.allocate(report, "owl", sparsity=0.6)
    result = oc.compress_(loaded.model, plan, "wanda", calibration)
    oc.save(loaded, result, plan, "OUT")

Importing the package is light; torch and transformers are loaded by the first function that needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from owl_compress.consent import Consent
    from owl_compress.documents.plan import Plan
    from owl_compress.documents.recipe import Recipe
    from owl_compress.documents.report import ImportanceReport
    from owl_compress.documents.result import Result
    from owl_compress.documents.sensitivity import SensitivityProfile
    from owl_compress.errors import RequestError
    from owl_compress.evaluation.agreement import agreement
    from owl_compress.evaluation.perplexity import perplexity
    from owl_compress.evaluation.predictions import dense_predictions
    from owl_compress.evaluation.tasks import TaskOptions, Tasks, accuracy
    from owl_compress.importance.estimator import measure
    from owl_compress.pipeline.comparison.comparison import compare
    from owl_compress.pipeline.execution import make_plan, run
    from owl_compress.pipeline.feasibility import forecast
    from owl_compress.pipeline.folder import save
    from owl_compress.pipeline.original import original_of
    from owl_compress.pipeline.recovering import recover
    from owl_compress.pipeline.refining import refine
    from owl_compress.pipeline.session import Session
    from owl_compress.pipeline.stages import (
        allocate,
        compress_,
        evaluate,
        load,
        profile,
        verify,
    )
    from owl_compress.pipeline.timing import TimingOptions, time_model
    from owl_compress.pipeline.trial import try_out
    from owl_compress.pipeline.tuning import tune
    from owl_compress.pipeline.windows import (
        calibrate,
        hold_apart,
        hold_out,
    )

_HOMES = {
    "Consent": "consent",
    "ImportanceReport": "documents.report",
    "Plan": "documents.plan",
    "Recipe": "documents.recipe",
    "RequestError": "errors",
    "Result": "documents.result",
    "SensitivityProfile": "documents.sensitivity",
    "Session": "pipeline.session",
    "TaskOptions": "evaluation.tasks",
    "Tasks": "evaluation.tasks",
    "TimingOptions": "pipeline.timing",
    "accuracy": "evaluation.tasks",
    "agreement": "evaluation.agreement",
    "allocate": "pipeline.stages",
    "calibrate": "pipeline.windows",
    "compare": "pipeline.comparison.comparison",
    "compress_": "pipeline.stages",
    "dense_predictions": "evaluation.predictions",
    "evaluate": "pipeline.stages",
    "forecast": "pipeline.feasibility",
    "hold_apart": "pipeline.windows",
    "hold_out": "pipeline.windows",
    "load": "pipeline.stages",
    "make_plan": "pipeline.execution",
    "measure": "importance.estimator",
    "original_of": "pipeline.original",
    "perplexity": "evaluation.perplexity",
    "profile": "pipeline.stages",
    "recover": "pipeline.recovering",
    "refine": "pipeline.refining",
    "run": "pipeline.execution",
    "save": "pipeline.folder",
    "time_model": "pipeline.timing",
    "try_out": "pipeline.trial",
    "tune": "pipeline.tuning",
    "verify": "pipeline.stages",
}

__all__ = [
    "Consent",
    "ImportanceReport",
    "Plan",
    "Recipe",
    "RequestError",
    "Result",
    "SensitivityProfile",
    "Session",
    "TaskOptions",
    "Tasks",
    "TimingOptions",
    "accuracy",
    "agreement",
    "allocate",
    "calibrate",
    "compare",
    "compress_",
    "dense_predictions",
    "evaluate",
    "forecast",
    "hold_apart",
    "hold_out",
    "load",
    "make_plan",
    "measure",
    "original_of",
    "perplexity",
    "profile",
    "recover",
    "refine",
    "run",
    "save",
    "time_model",
    "try_out",
    "tune",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
