"""A refinement that is asked to go on, and is done already: told from what the refined plan says of itself.

A plan that an earlier version wrote says less, and is held against less.
"""

from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from owl_compress.compression.account import settled_options
from owl_compress.documents.option_names import option_name
from owl_compress.documents.plan import Plan
from owl_compress.pipeline.request import Request
from owl_compress.pipeline.unfinished import check_finished
from owl_compress.refinement.refined import RefinementOptions

_SETTLED = ("part", "step")
"""Options that a refinement settles where nobody names them."""

_Pairs = dict[str, tuple[object, object]]


def check_told(out: Path, done: Plan, request: Request, options: RefinementOptions) -> None:
    """Refuse a plan that was refined from another one, by another backend, or otherwise than is asked for.

    Raises:
        RequestError: naming what differs.
    """
    told = done.allocator.parameters
    pairs: _Pairs = {
        "the plan that it is refined from": (
            told.get("refined_from"),
            request.plan.fingerprint if request.plan else None,
        ),
        "--backend": (told.get("backend"), request.backend.name),
    }
    pairs |= _of_backend(told, request)
    if "statistics" in told:
        pairs["--statistics"] = told["statistics"], request.statistics
    check_finished(out, pairs | _of_search(told, options))


def _of_backend(told: Mapping[str, JsonValue], request: Request) -> _Pairs:
    """Its options; what it leaves open until it sees the model may be as it was there."""
    there = told.get("backend_options")
    if not isinstance(there, Mapping):
        return {}
    here = settled_options(request.backend)
    return {f"--{option_name(name)}": (there.get(name), value) for name, value in here.items()}


def _of_search(told: Mapping[str, JsonValue], options: RefinementOptions) -> _Pairs:
    settled = {name: getattr(options, name) for name in _SETTLED}
    asked = {name: value for name, value in settled.items() if name in told and value is not None}
    is_all_told = "positions" in told  # what is absent was left open
    asked |= {name: value for name, value in options.record.items() if is_all_told or name in told}
    return {f"--{option_name(name)}": (told.get(name), value) for name, value in asked.items()}


def check_told_texts(out: Path, done: Plan, texts: Mapping[str, str]) -> None:
    """Refuse a plan that was refined on other texts.

    Raises:
        RequestError: naming the first that differs.
    """
    told = done.allocator.parameters
    if any(name in told for name in texts):
        check_finished(
            out, {f"the {name.replace('_', ' ')}": (told.get(name), text) for name, text in texts.items()}
        )
