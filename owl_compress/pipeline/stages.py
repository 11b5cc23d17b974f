"""The stages one by one: what the Python interface offers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from owl_compress.allocators import Allocator, Target, default_for
from owl_compress.allocators import allocate as allocate_to_target
from owl_compress.arguments import checked
from owl_compress.backends import BACKENDS
from owl_compress.checkpoints.loading import LoadedModel, load_model, locate
from owl_compress.checkpoints.verification import verify as verify_folder
from owl_compress.compression.contract import AnyBackend, CheckpointBackend
from owl_compress.compression.driver import WalkOptions, compress_with_
from owl_compress.compression.statistics import usual_statistics
from owl_compress.data.windows import (
    TokenWindows,
)
from owl_compress.device import find_dtype, given_device
from owl_compress.documents.measurements import PerplexityRecord, Verification
from owl_compress.documents.paths import given_path
from owl_compress.documents.plan import Plan
from owl_compress.documents.provenance import ModelIdentity, StatisticsSource
from owl_compress.documents.recipe_fields import OffloadName
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.result import Result
from owl_compress.documents.sensitivity import Measure, PartKind, SensitivityProfile
from owl_compress.errors import RequestError, member
from owl_compress.evaluation.perplexity import perplexity
from owl_compress.importance.profile import ProfileOptions, ProfileRun
from owl_compress.importance.profile import profile as measured_profile
from owl_compress.importance.reference import DEFAULT_POSITIONS
from owl_compress.memory import memory_errors
from owl_compress.models.state import check_finite, identify, place_
from owl_compress.models.structure import ModelStructure, find_structure
from owl_compress.pipeline.profile_checks import by_block
from owl_compress.pipeline.profile_settings import (
    parsed_levels,
)
from owl_compress.pipeline.targets import split_target
from owl_compress.pipeline.windows import hold_out
from owl_compress.progress import SILENT, Progress
from owl_compress.walk.dense_statistics import DenseStatistics

_REMEDIES_OF_LOADING = (
    "use --offload disk, --dtype bfloat16, or a host with more memory; hold a process to less by a control "
    "group, since ulimit -v and -d count the files of a model whole"
)


@checked
def load(
    source: Path | str,
    *,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    offload: OffloadName = "auto",
) -> LoadedModel:
    """Load a model from a hub id, a checkpoint folder, a `.gguf` file, or "builtin".

    `offload` says where its weights wait until they are worked on: on the `device` ("none"), on the host
    ("host"), or in its files ("disk"), from which a block at a time is read. "auto" is the first of these
    that has room for them.

    Raises:
        RequestError: weights that do not fit on the device where they have to, or whose files cannot be read
            block by block where they should; a model that is not there, not whole, not a causal language
            model, pickled, in need of remote code, or with NaN or Inf among its weights.
    """
    device = given_device(device)
    with memory_errors(f"loading {source}", _REMEDIES_OF_LOADING):
        loaded = load_model(
            str(source),
            dtype=find_dtype(dtype),
            revision=revision,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            offload=offload,
        )
        if device and offload in {"auto", "none"}:
            place_(loaded.model, device, must=offload == "none")
        check_finite(loaded.model)
    return loaded


def check_there(source: str, *, dtype: str = "auto", allow_pickle: bool = False, **_further: Any) -> None:
    """Refuse what `load` refuses before it opens anything, so that it is told before a text is read.

    Raises:
        RequestError: nothing is there, it is no whole checkpoint, or a type that does not exist.
    """
    find_dtype(dtype)
    locate(source, allow_pickle=allow_pickle)


def identity_of(loaded: LoadedModel, structure: ModelStructure | None = None) -> ModelIdentity:
    """What report and result say about `loaded`."""
    identity = identify(loaded.model, structure or find_structure(loaded.model), source=loaded.id)
    return identity.model_copy(update={"revision": loaded.revision})


@checked
def evaluate(
    loaded: LoadedModel,
    source: Path | str,
    *,
    batch_size: int = 1,
    device: torch.device | str | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> PerplexityRecord:
    """Perplexity of `loaded` on the text `source`, in consecutive windows; `options` as for `hold_out`."""
    device = given_device(device)
    windows = hold_out(loaded, source, **options)
    return perplexity(loaded.model, windows, batch_size=batch_size, device=device, progress=progress)


@checked
def profile(  # noqa: PLR0913 - each is an option of the command line, too
    model: nn.Module,
    backend: str | AnyBackend,
    statistics: TokenWindows | None,
    damage: TokenWindows,
    *,
    part: PartKind | str | None = None,
    levels: Sequence[float | str] | None = None,
    measure: Measure | str = Measure.KL,
    positions: int = DEFAULT_POSITIONS,
    names: Sequence[str] | None = None,
    known: SensitivityProfile | None = None,
    device: torch.device | str | None = None,
    batch_size: int = 1,
    progress: Progress = SILENT,
    **options: Any,
) -> SensitivityProfile:
    """Compress each part of `model` alone, at several levels, and measure the damage to its output.

        calibration = oc.calibrate(loaded, "builtin", samples=16)
        damage = oc.hold_apart(loaded, "builtin", [calibration])
        profile = oc.profile(loaded.model, "wanda", calibration, damage, levels=["2:8", "3:8", "4:8"])
        plan = oc.allocate(profile, nm="3:8")

    Args:
        model: a causal language model; unchanged afterwards.
        backend: a registered name, with `options` for it, or a backend that has its options already.
        statistics: windows that it sees; None for one that reads no text.
        damage: windows to measure damage on; see `hold_apart`.
        part: what is compressed at a time: "block", "sublayer", "role", "tied" or "linear"; what is usual in
            the unit of the backend, by default.
        levels: shares kept, N:M as "3:8" (the grid of the profile then), or bits; by default the usual ones,
            of which those that the backend refuses are passed over.
        measure: "kl", "loss", "output-error" or "fisher"; see `owl_compress.importance.damage`.
        positions: that measures of the model's output compare.
        names: of the linears that are in parts; None for all.
        known: a profile of the same that is there already: what it lacks is measured, and it is extended.
        device: where blocks are run.
        batch_size: sequences per forward pass.
        progress: who is told how far it is.
        options: of a backend given by name.

    Raises:
        RequestError: see `owl_compress.importance.profile.profile`.
    """
    method = by_block(_backend(backend, options))
    found, grid = (None, None) if levels is None else parsed_levels(levels, method.unit)
    chosen = ProfileOptions(
        part=None if part is None else member(PartKind, part, "part"),
        levels=found,
        grid=grid,
        measure=member(Measure, measure, "measure"),
        positions=positions,
        names=names,
    )
    where = ProfileRun(device=given_device(device), batch_size=batch_size, progress=progress)
    return measured_profile(model, method, statistics, damage, chosen, where, known=known)


def _backend(backend: str | AnyBackend, options: Mapping[str, Any]) -> AnyBackend:
    """The backend that a user named, with `options` for it, or gave with its options.

    Raises:
        RequestError: unknown name or option, or options for one that has its own already.
    """
    if isinstance(backend, str):
        created: AnyBackend = BACKENDS.create(backend, options)
        return created
    if options:
        raise RequestError(f"options {sorted(options)} are for a backend given by name, not for {backend!r}")
    return backend


@checked
def allocate(
    source: ImportanceReport | SensitivityProfile,
    allocator: str | Allocator | None = None,
    *,
    target: Target | None = None,
    **options: Any,
) -> Plan:
    """Divide a budget over the linears of `source`, a report or a sensitivity profile.

    Left open, the allocator is "owl" for a report and "sensitivity" for a profile. Give a `target`, or one of
    `sparsity=0.7`, `nm="3:8"`, `prune_ratio=0.2`, `bits=3` (with `bit_choices`) and the options of a target
    (`low`, `high`, `granularity`, `pins`, `skips`, `solver`); everything else is an option of the allocator,
    such as `metric="lod@5"` or `lam=0.08`.

    Raises:
        RequestError: the request cannot be satisfied.
    """
    if target is None:
        target, options = split_target(options)
    return allocate_to_target(source, allocator or default_for(source), target, options)


@checked
def verify(folder: Path | str, pattern: str = "plan", *, trust_remote_code: bool = False) -> Verification:
    """Count the saved tensors of a folder; see `owl_compress.checkpoints.verification.verify`."""
    return verify_folder(given_path(folder), pattern, trust_remote_code=trust_remote_code)


@checked
def compress_(  # noqa: PLR0913 - each is an option of the command line, too
    model: nn.Module,
    plan: Plan,
    backend: str | AnyBackend,
    calibration: TokenWindows | None = None,
    *,
    device: torch.device | str | None = None,
    batch_size: int = 1,
    keep_on: torch.device | str | None = None,
    partial: bool = False,
    statistics: StatisticsSource | DenseStatistics | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> Result:
    """Compress `model` in place as `plan` says; see `owl_compress.compression.driver.compress_with_`.

    `backend` is a registered name, with `options` for it such as `group_size=128`, or a backend that has its
    options already. With `partial` a model is taken of which less than half of the weights in the blocks can
    get a budget. With `statistics` "dense" a backend that needs only the norms of inputs is told those of the
    dense model, which takes one pass over the blocks in the place of two or three; "sequential" are those
    behind the compressed blocks, "true-sequential" those behind the compressed linears of the block, too; by
    default the backend has what serves it at what the plan was asked for.
    `keep_on` is the device that hidden states wait on between blocks, or "disk" for a temporary file.

    Raises:
        RequestError: the request cannot be satisfied.
    """
    method = _backend(backend, options)
    if isinstance(method, CheckpointBackend):
        raise RequestError(
            f"backend {method.name!r} writes a checkpoint of its own and compresses no model in memory: "
            "use owl_compress.run(recipe, folder), or the command line"
        )
    walk = WalkOptions(
        device=given_device(device),
        batch_size=batch_size,
        keep_on="disk" if keep_on == "disk" else given_device(keep_on),
        progress=progress,
    )
    source = statistics or usual_statistics(method, plan.asked)
    return compress_with_(model, plan, method, calibration, walk, partial=partial, statistics=source)
