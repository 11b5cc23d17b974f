"""How fast a model or a folder runs, beside the dense model that it was made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from owl_compress.arguments import checked
from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.checkpoints.verification import verify
from owl_compress.consent import NO_CONSENT, Consent
from owl_compress.data.windows import check_batch_size
from owl_compress.device import DTYPES, resolve_device
from owl_compress.documents.measurements import Kernel, LatencyRecord, LatencyShape
from owl_compress.errors import RequestError
from owl_compress.evaluation.latency import check_kernel, check_positions, compare, compare_kernels
from owl_compress.evaluation.part_costs import DEFAULT_WIDTHS, check_widths
from owl_compress.pipeline.beside import Beside, Say, of_against
from owl_compress.pipeline.original import original_of
from owl_compress.pipeline.stages import load
from owl_compress.progress import SILENT, Progress


@checked
@dataclass(frozen=True)
class TimingOptions:
    """What is timed, and how; refused at birth where the parts do not go together.

    Attributes:
        device: where.
        shape: prompts and tokens.
        kernel: dense, or semi-structured: then a 2:4 model is timed against itself.
        against: a dense model to time in turn; None stands for the one that a folder was made from.
        compiled: decode through torch.compile.
        against_consent: what the model named by `against` may run while it loads. The one that a folder says
            it was made from may run nothing: nobody has named it.
    """

    device: torch.device = field(default_factory=lambda: resolve_device("auto"))
    shape: LatencyShape = field(default_factory=LatencyShape)
    kernel: Kernel = "dense"
    against: str | None = None
    compiled: bool = False
    against_consent: Consent = NO_CONSENT

    def __post_init__(self) -> None:
        beside = self.beside  # consent for a model that nobody names is refused
        if self.compiled and self.kernel != "dense":
            raise RequestError(f"--compile is for dense kernels: drop it, or --kernel {self.kernel}")
        if beside is not None and self.kernel != "dense":
            raise RequestError(
                f"--kernel {self.kernel} times a model against itself: drop --against {self.against}, or the "
                "kernel"
            )
        check_kernel(self.kernel, self.device)

    @property
    def beside(self) -> Beside | None:
        """The dense model that `against` names."""
        return Beside.of(self.against, self.against_consent)

    def check_model(self, model: str) -> None:
        """Refuse a model that cannot be timed so, before it is loaded.

        Raises:
            RequestError: it is named as its own dense model, or breaks the pattern of the kernel.
        """
        if self.beside is not None:
            self.beside.check(model)
        if self.kernel == "semi-structured":
            check_two_of_four(Path(model))


def latency_shape(batch_size: int, prompt_len: int, new_tokens: int) -> LatencyShape:
    """What is timed, from numbers that nobody has looked at.

    Raises:
        RequestError: a batch of no prompts.
    """
    check_batch_size(batch_size)
    return LatencyShape(batch_size=batch_size, prompt_len=prompt_len, new_tokens=new_tokens)


def cost_widths(given: str | None) -> tuple[float, ...]:
    """The shares of units that a cost table is measured at, besides all of them; the usual ones for None.

    Raises:
        RequestError: words that are no shares.
    """
    if given is None:
        return check_widths(DEFAULT_WIDTHS)
    try:
        return check_widths([float(width) for width in given.split(",")])
    except ValueError as error:
        raise RequestError(f"--cost-widths {given!r} is no list of shares such as 0.25,0.5,0.75") from error


def timing_options(
    device: torch.device,
    shape: LatencyShape,
    kernel: str,
    against: str | None,
    *,
    compiled: bool,
    against_consent: Consent = NO_CONSENT,
) -> TimingOptions:
    """Options from words: the kernel is still text.

    Raises:
        RequestError: an unknown kernel, or parts that do not go together.
    """
    if compiled and kernel != "dense":
        raise RequestError(f"--compile is for dense kernels: drop it, or --kernel {kernel}")
    return TimingOptions(device, shape, check_kernel(kernel, device), against, compiled, against_consent)


@dataclass(frozen=True)
class Timing:
    """Models that are loaded and ready to be timed, the one that others are compared with first."""

    models: Mapping[str, Any]
    options: TimingOptions

    def run(self, progress: Progress = SILENT) -> list[LatencyRecord]:
        """Time them in turn.

        Raises:
            RequestError: more positions than a model has, or what a kernel refuses.
        """
        options = self.options
        if options.kernel == "dense":
            return compare(self.models, options.shape, options.device, progress, compiled=options.compiled)
        ((name, model),) = self.models.items()
        return compare_kernels(name, model, options.kernel, options.shape, options.device, progress)


def prepare_timing(
    loaded: LoadedModel,
    options: TimingOptions,
    say: Say = lambda _: None,
    dense: LoadedModel | None = None,
) -> Timing:
    """What `options` want of `loaded`, with the dense model beside it where there is one.

    Args:
        loaded: the model.
        options: see there.
        say: is told what is loaded, and why a model made from another is timed alone.
        dense: the model that `options` name, where it is loaded already.

    Raises:
        RequestError: the model named by `against` cannot be loaded, or one of them has too few positions.
    """
    name = loaded.source
    beside: dict[str, Any] = {}
    if dense is not None:
        beside = {dense.source: dense.model}
    elif options.kernel == "dense":
        beside = _dense_beside(loaded, options, say)
    models = {**beside, name: loaded.model}
    for model in models.values():
        check_positions(model, options.shape)
    return Timing(models, options)


@checked
def time_model(
    model: Path | str, options: TimingOptions | None = None, progress: Progress = SILENT, **loading: Any
) -> list[LatencyRecord]:
    """Load `model` and time it, beside the dense model that it was made from if that is known.

    `loading` are options of `owl_compress.load`, for `model` alone.

    Raises:
        RequestError: a model that cannot be loaded or timed.
    """
    options = options or TimingOptions()
    options.check_model(str(model))
    return prepare_timing(load(model, **loading), options).run(progress)


def _dense_beside(loaded: LoadedModel, options: TimingOptions, say: Say) -> dict[str, Any]:
    """The dense model to time in turn with `loaded`, by its name; empty if there is none to be had."""
    if options.beside is not None:
        dense = options.beside.load(loaded, say)
        return {dense.source: dense.model}
    model, dtype = loaded.source, loaded.dtype if loaded.dtype in DTYPES else "auto"
    try:
        original = original_of(Path(model).expanduser())
        if original is None:
            return {}
        say(f"loading {original.source}, which {model} was made from")
        return {original.source: original.load(dtype=dtype)}
    except RequestError as error:
        reason = of_against(error)
        say(f"only {model} is timed, without the model it was made from ({reason}); --against names one")
        return {}


def check_two_of_four(folder: Path) -> None:
    """Refuse a checkpoint that keeps more than 2 of 4 weights anywhere, counted from its tensors.

    Raises:
        RequestError: no folder, or the first linear that breaks the pattern.
    """
    found = verify(folder, "2:4")
    if not found.ok:
        first = found.violations[0]
        raise RequestError(
            f"kernel 'semi-structured' needs 2 of every 4 weights at most, and {first.linear} in {folder} "
            f"keeps more in {first.violating} of {first.groups} groups ({len(found.violations)} such "
            "linears): make it with --nm 2:4 --allocator uniform"
        )
