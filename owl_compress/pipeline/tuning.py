"""Allocator, metric and options chosen by trying: `--allocator auto`, and the command `tune`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from owl_compress.arguments import checked
from owl_compress.consent import NO_CONSENT, Consent
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.recipe_fields import DEFAULT_MEASURE_SAMPLES
from owl_compress.errors import RequestError
from owl_compress.memory import memory_errors
from owl_compress.pipeline.execution import compress_
from owl_compress.pipeline.methods import AUTO
from owl_compress.pipeline.request import Request
from owl_compress.pipeline.session import Session
from owl_compress.pipeline.tuning_scheme import Scheme, scheme_of
from owl_compress.pipeline.tuning_search import Tuned, search
from owl_compress.progress import SILENT, Progress

__all__ = ["Scheme", "Tuned", "Tuning", "scheme_of", "tune"]


@checked
def tune(session: Session) -> Tuned:
    """Try what several allocators, with several settings, make of the budget, and take the best plan.

    The session is of a recipe with the allocator "auto"; its model is unchanged afterwards. Plans are carried
    out on copies and judged on windows held apart from whatever else is looked at, many of them on little
    text, the best of these on more. The plan is that of equal shares unless another does less damage by more
    than chance.

        recipe = oc.Recipe.from_options({"model": "builtin", "calib": "builtin", "samples": 16,
                                         "allocator": "auto", "backend": "wanda", "sparsity": 0.6})
        found = oc.tune(oc.Session.open(recipe))
        found.plan.write("plan.json")

    Raises:
        RequestError: a request for another allocator, or what it is refused for.
    """
    if not session.request.candidates:
        raise RequestError(
            f"the request has an allocator or a plan already: name allocator {AUTO!r} in its recipe"
        )
    return search(session, compress_)


@dataclass(frozen=True)
class Tuning:
    """A search that options ask for, checked before the model is loaded."""

    request: Request

    @classmethod
    def of(cls, given: Mapping[str, Any], consent: Consent = NO_CONSENT) -> "Tuning":
        """What options ask for, under their names in a recipe; model and backend are among them.

        Raises:
            RequestError: what `Request.of` refuses.
        """
        usual = {"samples": DEFAULT_MEASURE_SAMPLES, "measure_samples": given.get("samples")}
        recipe = Recipe.from_options(usual | dict(given) | {"allocator": AUTO}, "options")
        return cls(Request.of(recipe, consent=consent))

    def session(self, progress: Progress = SILENT, told: Callable[[str], None] = lambda _: None) -> Session:
        """The model, loaded.

        Raises:
            RequestError: see `Session.open`.
        """
        with memory_errors("trying plans"):
            return Session.open(self.request, progress=progress, announce=told)
