"""The stages by name: what the Python interface offers."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from owl_compress.allocators import Allocator, Target
from owl_compress.allocators import allocate as allocate_to_target
from owl_compress.checkpoints.loading import LoadedModel, load_model
from owl_compress.checkpoints.narrow import has_narrowed_blocks
from owl_compress.checkpoints.origin import origin_of
from owl_compress.checkpoints.packed import packed_checkpoint
from owl_compress.checkpoints.saving import save_checkpoint
from owl_compress.checkpoints.tensors import bytes_on_disk
from owl_compress.compression.contract import AnyBackend, CheckpointBackend
from owl_compress.compression.driver import WalkOptions, compress_with_
from owl_compress.data.text import load_text
from owl_compress.data.windows import TokenWindows, evaluation_windows, resolve_bos, sample_windows
from owl_compress.device import find_dtype
from owl_compress.documents.disk import output_folder
from owl_compress.documents.measurements import PerplexityRecord
from owl_compress.documents.plan import Plan
from owl_compress.documents.provenance import ModelIdentity
from owl_compress.documents.recipe import Export, Recipe, Storage
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.result import EarlierStep, Result
from owl_compress.documents.stored_format import DECILM, DENSE, NARROW, PACKED, PACKED_NARROW, StoredFormat
from owl_compress.errors import RequestError
from owl_compress.evaluation.perplexity import perplexity
from owl_compress.forms.codes import coded_modules
from owl_compress.models.limits import resolve_seq_len
from owl_compress.models.state import check_finite, identify, place_
from owl_compress.models.structure import find_structure
from owl_compress.pages.card import model_card
from owl_compress.pipeline.request import create_backend, split_target
from owl_compress.progress import SILENT, Progress

logger = logging.getLogger(__name__)


def allocate(
    report: ImportanceReport,
    allocator: str | Allocator = "owl",
    *,
    target: Target | None = None,
    **options: Any,
) -> Plan:
    """Divide a budget over the linears of `report`.

    Give a `target`, or one of `sparsity=0.7`, `nm="3:8"`, `prune_ratio=0.2`, `bits=3` (with `bit_choices`)
    and the options of a target (`low`, `high`, `granularity`, `pins`, `skips`, `solver`); everything else is
    an option of the allocator, such as `metric="lod@5"` or `lam=0.08`.

    Raises:
        RequestError: the request cannot be satisfied.
    """
    if target is None:
        target, options = split_target(options)
    return allocate_to_target(report, allocator, target, options)


def compress_(
    model: nn.Module,
    plan: Plan,
    backend: str | AnyBackend,
    calibration: TokenWindows | None = None,
    *,
    device: torch.device | None = None,
    batch_size: int = 1,
    keep_on: torch.device | None = None,
    progress: Progress = SILENT,
) -> Result:
    """Compress `model` in place as `plan` says; see `owl_compress.compression.driver.compress_with_`.

    `backend` is a registered name, or a backend that has its options already.
    """
    if isinstance(backend, str):
        name, backend = backend, create_backend(backend)
    else:
        name = type(backend).__name__.lower()
    if isinstance(backend, CheckpointBackend):
        raise RequestError(
            f"backend {name!r} writes a checkpoint of its own and compresses no model in memory: "
            "use owl_compress.Line(recipe).run(folder), or the command line"
        )
    options = WalkOptions(device=device, batch_size=batch_size, keep_on=keep_on, progress=progress)
    return compress_with_(model, plan, backend, name, calibration, options)


def calibrate(
    loaded: LoadedModel,
    source: str,
    *,
    samples: int = 128,
    seq_len: int | None = None,
    sampling: str = "random",
    seed: int = 0,
    bos: str = "auto",
    text_field: str = "text",
) -> TokenWindows:
    """Token windows to measure or compress `loaded` with, cut out of the text `source`.

    `source` is a path, a named set, or "builtin"; see `owl_compress.data.text.load_text`. The windows have
    shape [samples, seq_len].
    """
    return sample_windows(
        loaded.tokenizer,
        load_text(source, text_field=text_field, part="calibration"),
        samples=samples,
        seq_len=resolve_seq_len(seq_len, loaded.model.config),
        sampling=sampling,  # type: ignore[arg-type]  # checked where it is used
        seed=seed,
        bos=resolve_bos(bos, find_structure(loaded.model).bos),
    )


def hold_out(
    loaded: LoadedModel,
    source: str,
    *,
    seq_len: int | None = None,
    bos: str = "auto",
    max_windows: int | None = None,
    text_field: str = "text",
) -> TokenWindows:
    """Token windows to evaluate `loaded` on: the whole text `source`, cut into consecutive windows."""
    return evaluation_windows(
        loaded.tokenizer,
        load_text(source, text_field=text_field, part="evaluation"),
        seq_len=resolve_seq_len(seq_len, loaded.model.config),
        bos=resolve_bos(bos, find_structure(loaded.model).bos),
        max_windows=max_windows,
    )


def evaluate(
    loaded: LoadedModel,
    source: str,
    *,
    seq_len: int | None = None,
    bos: str = "auto",
    max_windows: int | None = None,
    text_field: str = "text",
    batch_size: int = 1,
    device: torch.device | None = None,
    progress: Progress = SILENT,
) -> PerplexityRecord:
    """Perplexity of `loaded` on the text `source`, in consecutive windows of `seq_len` tokens."""
    windows = hold_out(
        loaded, source, seq_len=seq_len, bos=bos, max_windows=max_windows, text_field=text_field
    )
    return perplexity(loaded.model, windows, batch_size=batch_size, device=device, progress=progress)


def load(
    source: str,
    *,
    dtype: str = "auto",
    device: torch.device | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> LoadedModel:
    """Load a model from a hub id, a checkpoint folder, a `.gguf` file, or "builtin".

    With `device` the model is moved there if it fits; a model that does not fit stays on the host.

    Raises:
        RequestError: not there, not whole, not a causal language model, pickled, in need of remote code, or
            with NaN or Inf among its weights.
    """
    loaded = load_model(
        source,
        dtype=find_dtype(dtype),
        revision=revision,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )
    if device:
        place_(loaded.model, device)
    check_finite(loaded.model)
    return loaded


def identity_of(loaded: LoadedModel) -> ModelIdentity:
    """What report and result say about `loaded`."""
    identity = identify(loaded.model, find_structure(loaded.model), source=loaded.id)
    return identity.model_copy(update={"revision": loaded.revision})


def earlier_steps(loaded: LoadedModel) -> tuple[EarlierStep, ...]:
    """The compressions that `loaded` has behind it, from the result.json of ours beside its weights."""
    path = Path(loaded.source).expanduser() / "result.json"
    if not path.is_file():
        return ()
    try:
        return Result.read(path).as_earlier
    except RequestError as error:
        logger.warning("what was done to the model before is not known: %s", error)
        return ()


def save(
    loaded: LoadedModel,
    result: Result,
    plan: Plan,
    folder: Path | str,
    *,
    report: ImportanceReport | None = None,
    recipe: Recipe | None = None,
    storage: Storage | None = None,
    export: Export | None = None,
) -> Result:
    """Write the compressed model with its result, plan, report, recipe and model card; whole or not at all.

    `storage` says how quantized weights are stored: "packed" (integer codes) or "dense" (dequantised like any
    other weight). By default they are packed. `export` names a format of other software.

    Returns:
        The result as written, with the bytes on disk. Bits per weight are those of the files; those of a
        quantized model that is stored dense stay those of its codes, scales and other tensors.

    Raises:
        RequestError: the folder is not empty, the disk is full, or the model cannot be packed or exported.
    """
    is_quantized = any(coded_modules(loaded.model))
    is_packed = storage == "packed" or (storage is None and is_quantized)
    with output_folder(Path(folder)) as temporary:
        packed = packed_checkpoint(loaded.model) if is_packed else None
        notes = save_checkpoint(loaded.model, loaded.tokenizer, temporary, packed=packed, export=export)
        counted: dict[str, float] = {"bytes_on_disk": bytes_on_disk(temporary)}
        if is_packed or not is_quantized:
            counted["bits_per_weight"] = 8 * counted["bytes_on_disk"] / result.totals.n_params_after
        totals = result.totals.model_copy(update=counted)
        # Whoever compressed knowing where the model came from has looked already, though there may be none.
        has_looked = "earlier" in result.model_fields_set
        earlier = result.earlier if has_looked else earlier_steps(loaded)
        result = result.model_copy(
            update={"totals": totals, "notes": (*result.notes, *notes), "earlier": earlier}
        )
        stored = _stored_format(loaded, is_packed=is_packed, export=export)
        write_documents(temporary, loaded, result, plan, stored, report=report, recipe=recipe)
    return result


def _stored_format(loaded: LoadedModel, *, is_packed: bool, export: Export | None) -> StoredFormat:
    if export == "decilm":
        return DECILM
    if has_narrowed_blocks(loaded.model):
        return PACKED_NARROW if is_packed else NARROW
    return PACKED if is_packed else DENSE


def write_documents(
    folder: Path,
    loaded: LoadedModel,
    result: Result,
    plan: Plan,
    stored: StoredFormat,
    *,
    report: ImportanceReport | None = None,
    recipe: Recipe | None = None,
) -> None:
    """Put result, plan, report, recipe and model card beside the weights in `folder`."""
    recipe_yaml = recipe.to_yaml() if recipe else None
    result.write(folder / "result.json")
    plan.write(folder / "plan.json")
    if report:
        report.write(folder / "report.json")
    if recipe_yaml:
        (folder / "recipe.yaml").write_text(recipe_yaml, encoding="utf-8")
    card = model_card(result, plan, recipe_yaml, origin_of(loaded), stored=stored)
    (folder / "README.md").write_text(card, encoding="utf-8")
