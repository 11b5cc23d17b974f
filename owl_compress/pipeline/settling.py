"""The recipe of what was done, with nothing left open: run again, it makes the same checkpoint."""

from collections.abc import Mapping, Sequence
from typing import Any

from owl_compress.documents.recipe import Recipe
from owl_compress.documents.result import Result
from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.options import Option, options_of
from owl_compress.pipeline.methods import AUTO
from owl_compress.pipeline.profile_settings import measured_as
from owl_compress.pipeline.session import Session


def settled_recipe(session: Session, result: Result, profile: SensitivityProfile | None = None) -> Recipe:
    """The recipe with what was left open filled in as it was done; a plan or profile is the one beside it."""
    recipe, calibration = session.recipe, session.calibration
    filled: dict[str, object] = {}
    if calibration is not None:
        filled = {"seq_len": calibration.record.seq_len, "bos": calibration.record.bos}
    if recipe.plan is not None:
        filled["plan"] = "plan.json"
    elif calibration is not None:
        filled["measure_samples"] = session.measure_samples
    if recipe.profile is not None:
        filled["profile"] = "sensitivity.json"
    elif profile is not None and recipe.allocator != AUTO:  # whose trials share some of its options
        filled |= measured_as(profile)
    if result.statistics is not None:
        filled["statistics"] = result.statistics
    if session.request.keeps_codes or recipe.format_:
        filled["format"] = "packed" if session.request.keeps_codes else recipe.format_
    return recipe.with_options(filled).with_method_options(_settled_options(session, result))


def _settled_options(session: Session, result: Result) -> dict[str, Any]:
    """The options of the methods: those that were given, or always matter, as they were in the end."""
    settled: dict[str, object] = dict(session.recipe.options)
    allocator, backend = session.request.allocator, session.request.backend
    if allocator is not None:
        settled |= _stated(options_of(type(allocator)), vars(allocator), settled)
    parameters = result.backend.parameters
    settled |= _stated(options_of(type(backend)), parameters, settled)
    return {name: value for name, value in settled.items() if value is not None}


def _stated(
    options: Sequence[Option], final: Mapping[str, Any], given: Mapping[str, object]
) -> dict[str, object]:
    """What a recipe says of a method's options; None for one that had no part in what was done."""
    return {
        option.name: None
        if final[option.field] is None and option.default is None
        else option.given_for(final[option.field])
        for option in options
        if option.name in given or option.stated
    }
