"""A recipe resolved as far as it goes without a model: allocator, backend, target, stored form, device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from owl_compress.allocators import Allocator, Source, Target, allocate, reads_damage
from owl_compress.consent import NO_CONSENT, Consent
from owl_compress.device import resolve_device
from owl_compress.documents.option_names import option_name
from owl_compress.documents.plan import Plan
from owl_compress.documents.provenance import StatisticsSource
from owl_compress.documents.recipe import RECIPE_NAMES, Recipe
from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.documents.units import KeptOfGrid, Unit
from owl_compress.errors import RequestError, nearest
from owl_compress.options import not_taken
from owl_compress.pipeline.limits import Limit, asks_for_limit, everything_kept, limit_of
from owl_compress.pipeline.methods import ALLOCATORS, AUTO, BACKENDS, DEFAULT_FROM_PROFILE
from owl_compress.pipeline.targets import shape_of, target_of
from owl_compress.pipeline.tuning_candidates import Candidate, candidates_of, check_candidates
from owl_compress.registry import Registry

if TYPE_CHECKING:  # a plan is made without loading torch
    import torch

    from owl_compress.checkpoints.stored_forms import StoredForm
    from owl_compress.compression.contract import AnyBackend
    from owl_compress.pipeline.profile_settings import ProfileSettings

OF_PROFILES = (
    "part", "levels", "measure", "damage_samples", "damage_len", "damage_data", "positions", "max_cost",
)  # fmt: skip
"""Options of a recipe that say how a profile is measured."""

_OF_TRIALS = ("damage_samples", "damage_len", "damage_data", "positions", "max_cost")
"""What of it says how plans are tried, too."""

_CODES, _FORMATS = "packed", ("packed", "dense")
"""How quantized weights are stored: as integer codes, or dequantised like any other weight."""


@dataclass(frozen=True)
class Request:
    """What a recipe asks for, each thing made once.

    Attributes:
        recipe: the request as it was given.
        backend: who carries the plan out, with its options.
        export: the form for other software to store the checkpoint in; None for one of ours.
        keeps_codes: whether integer codes are to be stored as such.
        device: where blocks are run.
        plan: to be carried out, or None: then `allocator` makes one that meets `target`, or the best that
            `candidates` make is taken.
        allocator, target: None where there is a plan; the first also where there are candidates.
        profile, profiling: where `allocator` or a candidate reads damage, the profile that has it, or how it
            is measured.
        limit: what the outcome may cost; `target` is then the largest that it could be.
        metrics: to measure: the default ones, and the allocator's own if it is another.
        consent: what the recipe's model may run.
        candidates: whose plans are tried, where the best of them is wanted.
    """

    recipe: Recipe
    backend: "AnyBackend"
    export: "StoredForm | None"
    keeps_codes: bool
    device: "torch.device"
    plan: Plan | None
    allocator: Allocator | None
    target: Target | None
    metrics: tuple[str, ...]
    consent: Consent = NO_CONSENT
    limit: Limit | None = None
    profile: SensitivityProfile | None = None
    profiling: "ProfileSettings | None" = None
    candidates: tuple[Candidate, ...] = ()

    @property
    def reads_damage(self) -> bool:
        """Whether budgets are made from damages."""
        return self.allocator is not None and reads_damage(self.allocator)

    @property
    def measures_damage(self) -> bool:
        """Whether damage is measured, or read, on the way to a plan: there is a text for that then."""
        return self.reads_damage or bool(self.candidates)

    @property
    def unit(self) -> Unit:
        """What the budgets count."""
        return self.backend.unit

    @property
    def statistics(self) -> StatisticsSource:
        """Whose inputs the backend is told of: as asked for, or as it is best off with budgets like these."""
        from owl_compress.compression.statistics import usual_statistics  # noqa: PLC0415 - loads torch

        if self.recipe.statistics is not None:
            return self.recipe.statistics
        if self.plan is not None:
            return usual_statistics(self.backend, self.plan.asked)
        if self.target is None:
            raise TypeError("a request without a plan has a target")
        return usual_statistics(self.backend, self.target.value)

    @classmethod
    def of(cls, recipe: Recipe, where: str = "options", consent: Consent = NO_CONSENT) -> "Request":
        """Resolve `recipe`, which came from `where`; whatever can be refused without a model is.

        Raises:
            RequestError: names and options that do not exist or do not go together, values that cannot be
                meant, a device or package that is not there.
        """
        try:
            return cls._of(recipe, consent)
        except RequestError as error:
            if where == "options":
                raise
            raise RequestError(f"{where}: {error}") from error

    @classmethod
    def _of(cls, recipe: Recipe, consent: Consent) -> "Request":
        from owl_compress.importance.metrics import with_defaults  # noqa: PLC0415 - loads torch

        plan, allocator, target, limit = None, None, None, None
        candidates: tuple[Candidate, ...] = ()
        check_candidates(recipe)
        if recipe.plan is not None:
            plan = Plan.read(recipe.plan)
            unit = plan.unit
        else:
            allocator = None if recipe.allocator == AUTO else allocator_of(recipe)
            is_limited = asks_for_limit(recipe)
            target = everything_kept(recipe, shape_of(recipe)) if is_limited else target_of(recipe)
            limit = limit_of(recipe)
            if allocator is None:
                candidates = candidates_of(recipe, target)
            else:
                allocator.settled(target)
            unit = target.unit
        check_options(recipe)
        check_unit(recipe.backend, unit)
        export = _export_of(recipe)
        if export:
            # The parts of a plan are what its linears are; those of a request, what it names.
            export.check_request(unit, recipe.parts if target else (), recipe.options)
        backend = backend_of(recipe, export.option_defaults if export else {})
        _check_statistics(recipe, backend)
        _check_gradient_samples(recipe, backend)
        readers = [allocator] if allocator else [one.allocator for one in candidates]
        profile, profiling = _profile_of(recipe, backend, readers, target)
        device = resolve_device(recipe.device)
        owns = (getattr(one, "metric", None) for one in readers)
        metrics = with_defaults(list(dict.fromkeys(own for own in owns if own)))
        keeps_codes = _keeps_codes(recipe, backend)
        if limit is not None and unit is Unit.BITS:
            _check_codes_are_kept(recipe, backend, keeps_codes=keeps_codes)
        return cls(
            recipe, backend, export, keeps_codes, device, plan, allocator, target, metrics, consent, limit,
            profile, profiling, candidates,
        )  # fmt: skip


def _profile_of(
    recipe: Recipe, backend: "AnyBackend", allocators: Sequence[Allocator], target: Target | None
) -> "tuple[SensitivityProfile | None, ProfileSettings | None]":
    """The profile that allocators read, or how it is to be measured; neither where none of them reads any.

    Raises:
        RequestError: options of profiles where none is read or one is there already, or a profile of
            something else than is asked for.
    """
    from owl_compress.pipeline.profile_checks import by_block, check_profile  # noqa: PLC0415 - loads torch
    from owl_compress.pipeline.profile_settings import ProfileSettings  # noqa: PLC0415 - loads torch

    given = [name for name in ("profile", *OF_PROFILES) if getattr(recipe, name) is not None]
    is_tuned = recipe.allocator == AUTO
    if target is None or not any(map(reads_damage, allocators)):
        given = [name for name in given if not (is_tuned and name in _OF_TRIALS)]
        if given:
            who = "a plan that is made already" if target is None else f"allocator {recipe.allocator!r}"
            raise RequestError(
                f"{option_name(given[0])} is for allocators that read a sensitivity profile, and {who} reads "
                f"none: drop it, or use --allocator {DEFAULT_FROM_PROFILE}"
            )
        return None, None
    able = by_block(backend)
    if recipe.profile is None:
        return None, ProfileSettings.of(recipe, able.unit, target)
    given = [name for name in given[1:] if not (is_tuned and name in _OF_TRIALS)]
    if given:
        raise RequestError(
            f"{option_name(given[0])} says how a profile is measured, and {recipe.profile} is one: drop it"
        )
    profile = SensitivityProfile.read(recipe.profile)
    check_profile(profile, backend, target.unit, target.grid if isinstance(target.grid, KeptOfGrid) else None)
    return profile, None


def _export_of(recipe: Recipe) -> "StoredForm | None":
    from owl_compress.checkpoints.stored_forms import export_named  # noqa: PLC0415 - loads torch

    return None if recipe.export is None else export_named(recipe.export)


def _keeps_codes(recipe: Recipe, backend: "AnyBackend") -> bool:
    """Codes are kept unless told otherwise.

    Raises:
        RequestError: "packed" is asked for and the backend makes no codes, or it has a format of its own.
    """
    from owl_compress.compression.contract import CheckpointBackend, Quantizer  # noqa: PLC0415 - loads torch

    if recipe.format_ not in {None, *_FORMATS}:
        raise RequestError(f"unknown format {recipe.format_!r}: {nearest(recipe.format_ or '', _FORMATS)}")
    if recipe.format_ and isinstance(backend, CheckpointBackend):
        raise RequestError(f"backend {recipe.backend!r} writes a format of its own: drop --format")
    if not isinstance(backend, Quantizer) or isinstance(backend, CheckpointBackend):
        if recipe.format_ == _CODES:
            raise RequestError(
                f"--format packed stores integer codes, and backend {recipe.backend!r} makes none: drop it"
            )
        return False
    return recipe.format_ in {None, _CODES}


def _check_codes_are_kept(recipe: Recipe, backend: "AnyBackend", *, keeps_codes: bool) -> None:
    """Refuse a size where the bits that are chosen make no difference to it.

    Raises:
        RequestError: see above; or a backend with a format of its own, which tells no size beforehand.
    """
    from owl_compress.compression.contract import CheckpointBackend  # noqa: PLC0415 - loads torch

    if isinstance(backend, CheckpointBackend):
        raise RequestError(
            f"backend {recipe.backend!r} does not tell the size of its files beforehand: ask for bits instead"
        )
    if not keeps_codes:
        raise RequestError(
            f"size {recipe.size} cannot be met with --format dense: dequantised weights are stored like "
            "others, so the size does not change: drop --format"
        )


def _check_gradient_samples(recipe: Recipe, backend: "AnyBackend") -> None:
    from owl_compress.compression.contract import GradientReader  # noqa: PLC0415 - loads torch

    wanted = backend.gradient_samples if isinstance(backend, GradientReader) else None
    asked = recipe.options.get("gradient_samples")
    if wanted is not None and asked is not None and wanted > recipe.samples:
        raise RequestError(f"gradient-samples {wanted} is more than the {recipe.samples} samples there are")


def _check_statistics(recipe: Recipe, backend: "AnyBackend") -> None:
    from owl_compress.compression.statistics import check_statistics  # noqa: PLC0415 - loads torch

    if recipe.statistics is not None:
        check_statistics(backend, recipe.statistics)


def allocator_of(recipe: Recipe) -> Allocator:
    """The allocator of the recipe, with its options.

    Raises:
        RequestError: unknown name, or a value that it refuses; or it is none, but the best of several.
    """
    if recipe.allocator == AUTO:
        raise RequestError(
            f"allocator {AUTO!r} tries plans on the model, which takes more than a report or a profile: use "
            "`owl-compress tune MODEL`, or run"
        )
    allocator: Allocator = _created(ALLOCATORS, recipe.allocator or "", recipe, {})
    return allocator


def backend_of(recipe: Recipe, defaults: Mapping[str, Any] | None = None) -> "AnyBackend":
    """The backend of the recipe, with its options; `defaults` stand where the recipe gives none.

    Raises:
        RequestError: unknown name, or a value that it refuses.
    """
    backend: AnyBackend = _created(BACKENDS, recipe.backend, recipe, defaults or {})
    return backend


def _created(registry: Registry, name: str, recipe: Recipe, defaults: Mapping[str, Any]) -> Any:
    """The method with those options of the recipe that it takes, be they its own or every recipe's."""
    known = {one.name for one in registry.options(name)}
    given = {**defaults, **{one: value for one, value in recipe.options.items() if value is not None}}
    shared = {one: getattr(recipe, one) for one in known & RECIPE_NAMES & type(recipe).model_fields.keys()}
    return registry.create(name, {one: value for one, value in given.items() if one in known} | shared)


def check_options(recipe: Recipe) -> None:
    """Refuse an option that neither the allocator nor the backend of `recipe` takes.

    Raises:
        RequestError: naming what the method takes instead, or the option that was probably meant.
    """
    methods = [
        (registry, name)
        for registry, name in ((ALLOCATORS, recipe.allocator), (BACKENDS, recipe.backend))
        if name is not None and name in registry.names()
    ]
    taken = {one.name for registry, name in methods for one in registry.options(name)}
    for option in recipe.options:
        if option not in taken:
            raise RequestError(_not_taken(option, methods))


def _not_taken(option: str, methods: Sequence[tuple[Registry, str]]) -> str:
    for registry, name in methods:
        if any(option == one.name for _, one in registry.every_option()):
            return not_taken(f"{registry.kind} {name!r}", option, registry.options(name))
    shown = option_name(option)
    known = set(map(option_name, RECIPE_NAMES))
    known |= {one.shown_name for registry, _ in methods for _, one in registry.every_option()}
    return f"unknown key {shown!r}: {nearest(shown, known)}"


def plan_for(source: Source, recipe: Recipe) -> Plan:
    """Divide the budget of `recipe` over the linears of a report or a sensitivity profile.

    Raises:
        RequestError: the request cannot be satisfied.
    """
    check_options(recipe)
    return allocate(source, allocator_of(recipe), target_of(recipe))


def check_unit(backend: str, unit: Unit) -> None:
    """Refuse a backend that does not carry out budgets in `unit`; those that do are named.

    Raises:
        RequestError: see above.
    """
    own = BACKENDS.load(backend).unit
    if own is unit:
        return
    able = [repr(name) for name in BACKENDS.names() if BACKENDS.load(name).unit is unit]
    remedy = f"use --backend {' or '.join(able)}" if able else "no backend here does that"
    raise RequestError(f"backend {backend!r} carries out budgets in {own}, these are in {unit}: {remedy}")
