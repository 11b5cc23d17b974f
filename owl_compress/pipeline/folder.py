"""The folder of a compressed model: weights in some form, and beside them all that says how it was made."""

import logging
from pathlib import Path

from owl_compress.allocators import ALLOCATORS
from owl_compress.arguments import checked
from owl_compress.backends import BACKENDS
from owl_compress.checkpoints.leftovers import carry_over, name_all
from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.checkpoints.origin import origin_of
from owl_compress.checkpoints.saving import save_checkpoint
from owl_compress.checkpoints.stored_forms import StoredForm, export_named, suiting
from owl_compress.checkpoints.tensors import INDEX_NAME, bytes_on_disk
from owl_compress.documents.output_folders import output_folder
from owl_compress.documents.outputs import DAMAGE_PICTURE
from owl_compress.documents.paths import given_path
from owl_compress.documents.plan import Plan
from owl_compress.documents.quantities import parsed_bytes
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.result import EarlierStep, Result
from owl_compress.documents.sensitivity import SensitivityProfile
from owl_compress.documents.stored_format import StoredFormat
from owl_compress.documents.units import BitsGrid
from owl_compress.errors import RequestError
from owl_compress.forms.codes import coded_modules
from owl_compress.models.structure import find_structure
from owl_compress.pages.card import model_card
from owl_compress.pages.words import Given
from owl_compress.pipeline.tuning_search import Tuned

logger = logging.getLogger(__name__)

MadeFrom = ImportanceReport | SensitivityProfile | Tuned
"""What a plan was made from: a report, a sensitivity profile, or trials with whatever was read for them."""


@checked
def save(
    loaded: LoadedModel,
    result: Result,
    plan: Plan,
    folder: Path | str,
    *,
    report: MadeFrom | None = None,
    recipe: Recipe | None = None,
    keeps_codes: bool = True,
    export: StoredForm | str | None = None,
    overwrite: bool = False,
) -> Result:
    """Write the compressed model with its result, plan, report, recipe and model card; whole or not at all.

    Args:
        loaded: the model, as it was compressed in memory.
        result: of that compression.
        plan: that was carried out.
        folder: new or empty.
        report: that the plan was made from, or the sensitivity profile, or the trials that it won.
        recipe: that does it again; in the folder, paths of files here are seen from there. Weight files that
            are larger than the size that it asks for are not written.
        keeps_codes: store quantized weights as integer codes, and not dequantised like any other.
        export: the form for other software to store it in, such as "decilm".
        overwrite: replace an output of ours that is there, when the new one is whole.

    Returns:
        The result as written, with the bytes on disk. Bits per weight are those of the files; those of a
        quantized model that is stored dense stay those of its codes, scales and other tensors.

    Raises:
        RequestError: the folder is not empty, the disk is full, the form cannot hold the model, the plan is
            another than the result's, or the files are larger than asked for.
    """
    if plan.fingerprint != result.plan:
        raise RequestError("the result is not that of the plan: save them with what was compressed by it")
    folder = given_path(folder)
    codes = next((codes for _, _, codes in coded_modules(loaded.model)), None)
    is_quantized = codes is not None
    is_packed = is_quantized and keeps_codes and export is None
    form = export_named(export) if isinstance(export, str) else export
    if form and codes and keeps_codes:
        form.check_holds(loaded.model, find_structure(loaded.model), codes.code_format)
    form = form or suiting(loaded.model, wants_codes=is_packed)
    with output_folder(folder, overwrite=overwrite) as temporary:
        notes = save_checkpoint(loaded.model, loaded.tokenizer, temporary, form)
        counted: dict[str, float] = {"bytes_on_disk": bytes_on_disk(temporary)}
        if is_packed or not is_quantized:
            counted["bits_per_weight"] = 8 * counted["bytes_on_disk"] / result.totals.n_params_after
        leftovers = loaded.leftovers
        notes += name_all(leftovers) if form.is_asked_for else carry_over(leftovers, temporary)
        counted["bytes_on_disk"] = bytes_on_disk(temporary)
        if recipe is not None and recipe.size is not None:
            notes += _note_of_size(temporary, parsed_bytes(recipe.size), plan)
        totals = result.totals.model_copy(update=counted)
        # Whoever compressed knowing where the model came from has looked already, though there may be none.
        has_looked = "earlier" in result.model_fields_set
        earlier = result.earlier if has_looked else earlier_steps(loaded)
        result = result.model_copy(
            update={"totals": totals, "notes": (*result.notes, *notes), "earlier": earlier}
        )
        recipe = recipe.seen_from(folder) if recipe else None
        write_documents(temporary, loaded, result, plan, form.describe(), report=report, recipe=recipe)
    return result


def _note_of_size(folder: Path, most_bytes: int, plan: Plan) -> tuple[str, ...]:
    """What a result says of a size that was asked for.

    Raises:
        RequestError: the files in `folder` are larger.
    """
    index = folder / INDEX_NAME
    found = bytes_on_disk(folder) + (index.stat().st_size if index.exists() else 0)
    if found > most_bytes:
        raise RequestError(
            f"the weight files take {found:,} bytes and may take {most_bytes:,}: nothing was written; "
            f"ask for {found - most_bytes:,} bytes less"
        )
    told = f"asked for at most {most_bytes:,} bytes of weight files, got {found:,}"
    if isinstance(plan.grid, BitsGrid) and all(budget.value == plan.high for budget in plan.budgets):
        told += f": every linear has {plan.high:g} bits, the most of --bit-choices"
    return (told,)


def earlier_steps(loaded: LoadedModel) -> tuple[EarlierStep, ...]:
    """The compressions that `loaded` has behind it, from the result.json of ours beside its weights."""
    path = Path(loaded.source).expanduser() / "result.json"
    if not path.is_file():
        return ()
    try:
        return Result.read(path).as_earlier
    except (RequestError, ValueError, RecursionError) as error:
        logger.warning("what was done to the model before is not known: %s", error)
        return ()


def write_documents(
    folder: Path,
    loaded: LoadedModel,
    result: Result,
    plan: Plan,
    stored: StoredFormat,
    *,
    report: MadeFrom | None = None,
    recipe: Recipe | None = None,
) -> None:
    """Put result, plan, report or profile, trials, recipe and model card beside the weights in `folder`."""
    recipe_yaml = recipe.to_yaml() if recipe else None
    result.write(folder / "result.json")
    plan.write(folder / "plan.json")
    sources = (report.report, report.profile) if isinstance(report, Tuned) else (report,)
    profile = next((one for one in sources if isinstance(one, SensitivityProfile)), None)
    for source in filter(None, sources):
        source.write(folder / ("sensitivity.json" if source is profile else "report.json"))
    if isinstance(report, Tuned):
        report.document.write(folder / "tuning.json")
    if profile:
        _draw(profile, plan, folder / DAMAGE_PICTURE)
    if recipe_yaml:
        (folder / "recipe.yaml").write_text(recipe_yaml, encoding="utf-8")
    allocator, backend = plan.allocator, result.backend
    card = model_card(
        result,
        plan,
        recipe_yaml,
        origin_of(loaded),
        stored=stored,
        credit=_credit(allocator.maker),
        given=Given(
            ALLOCATORS.as_given(allocator.maker, allocator.parameters),
            BACKENDS.as_given(backend.name, backend.parameters),
        ),
        profile=profile,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _draw(profile: SensitivityProfile, plan: Plan, path: Path) -> None:
    """The picture of a profile, with the levels of a plan that was made from it."""
    # Most folders have no picture, and must not wait for matplotlib.
    from owl_compress.pages.chart import Budgets  # noqa: PLC0415
    from owl_compress.pages.damage_chart import draw_damage  # noqa: PLC0415

    is_its_own = plan.report == profile.fingerprint
    draw_damage(path, profile, [Budgets.of(plan)] if is_its_own else [])


def _credit(allocator: str) -> str | None:
    """What the allocator says of where it comes from, where it is one that is known here."""
    if allocator not in ALLOCATORS.names():
        return None
    credit: str | None = getattr(ALLOCATORS.load(allocator), "credit", None)
    return credit
