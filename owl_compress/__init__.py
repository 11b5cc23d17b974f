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
    from owl_compress.documents.plan import Plan
    from owl_compress.documents.recipe import Recipe
    from owl_compress.documents.report import ImportanceReport
    from owl_compress.documents.result import Result
    from owl_compress.errors import RequestError
    from owl_compress.evaluation.perplexity import perplexity
    from owl_compress.importance.estimator import measure
    from owl_compress.pipeline.line import Line
    from owl_compress.pipeline.stages import allocate, calibrate, compress_, evaluate, load, save

_HOMES = {
    "ImportanceReport": "documents.report",
    "Line": "pipeline.line",
    "Plan": "documents.plan",
    "Recipe": "documents.recipe",
    "RequestError": "errors",
    "Result": "documents.result",
    "allocate": "pipeline.stages",
    "calibrate": "pipeline.stages",
    "compress_": "pipeline.stages",
    "evaluate": "pipeline.stages",
    "load": "pipeline.stages",
    "measure": "importance.estimator",
    "perplexity": "evaluation.perplexity",
    "save": "pipeline.stages",
}

__all__ = [
    "ImportanceReport",
    "Line",
    "Plan",
    "Recipe",
    "RequestError",
    "Result",
    "allocate",
    "calibrate",
    "compress_",
    "evaluate",
    "load",
    "measure",
    "perplexity",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
