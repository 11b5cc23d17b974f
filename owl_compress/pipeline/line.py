"""The whole line for one recipe: measure, allocate, compress, evaluate, save."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from owl_compress.allocators import Allocator, allocate
from owl_compress.checkpoints.decilm import check_decilm
from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.checkpoints.packed import check_packable, require_package
from owl_compress.checkpoints.stock import to_stock_
from owl_compress.compression.contract import CheckpointBackend, Quantizer
from owl_compress.compression.driver import WalkOptions, compress_with_
from owl_compress.data.windows import TokenWindows
from owl_compress.device import resolve_device
from owl_compress.documents.disk import check_output_folder, output_folder
from owl_compress.documents.measurements import Evaluation, PerplexityRecord
from owl_compress.documents.plan import Plan
from owl_compress.documents.recipe import Recipe, Storage
from owl_compress.documents.report import ImportanceReport
from owl_compress.documents.result import Result
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError
from owl_compress.evaluation.perplexity import perplexity
from owl_compress.importance.estimator import measure, outline
from owl_compress.importance.metrics import with_defaults
from owl_compress.memory import memory_errors
from owl_compress.models.structure import find_structure
from owl_compress.pipeline.checkpoints import compress_checkpoint_
from owl_compress.pipeline.feasibility import check_plan, check_request
from owl_compress.pipeline.request import allocator_of, backend_of, check_unit, target_of
from owl_compress.pipeline.stages import (
    calibrate,
    earlier_steps,
    hold_out,
    identity_of,
    load,
    save,
    write_documents,
)
from owl_compress.progress import SILENT, Progress

DEFAULT_MEASURE_SAMPLES = 16
"""Sequences that fix an OWL plan well enough; see benchmarks/plan_stability.py for the measurement."""


@dataclass(frozen=True)
class Run:
    """What a run made: everything but the model, which was compressed in place."""

    report: ImportanceReport | None
    plan: Plan
    result: Result


@dataclass(frozen=True)
class Line:
    """One recipe, and who is told how far it is."""

    recipe: Recipe
    progress: Progress = SILENT

    def load(self) -> LoadedModel:
        """Load the model of the recipe, on the device if it fits there."""
        recipe = self.recipe
        return load(
            recipe.model,
            dtype=recipe.dtype,
            device=resolve_device(recipe.device),
            revision=recipe.revision,
            trust_remote_code=recipe.trust_remote_code,
            allow_pickle=recipe.allow_pickle,
        )

    def plan(
        self, loaded: LoadedModel, calibration: TokenWindows | None
    ) -> tuple[ImportanceReport | None, Plan]:
        """The recipe's own plan; or else measure `loaded`, if the allocator asks for it, and allocate.

        Returns:
            The report, None if nothing was measured, and the plan.
        """
        recipe = self.recipe
        if recipe.plan is not None:
            plan = Plan.read(recipe.plan)
            plan.check_fits(find_structure(loaded.model).linear_sizes)
            check_plan(loaded, recipe, plan)
            return None, plan
        check_request(loaded, recipe)
        allocator = allocator_of(recipe)
        identity = identity_of(loaded)
        if allocator.reads_scores and calibration is not None:
            report = measure(
                loaded.model,
                calibration.first(recipe.measure_samples or DEFAULT_MEASURE_SAMPLES),
                metrics=metrics_of(allocator),
                device=resolve_device(recipe.device),
                batch_size=recipe.batch_size,
                identity=identity,
                progress=self.progress,
            )
            return report, allocate(report, allocator, target_of(recipe))
        return None, allocate(outline(loaded.model, identity), allocator, target_of(recipe))

    def windows(self, loaded: LoadedModel) -> TokenWindows | None:
        """The calibration windows of the recipe; None if neither allocator nor backend looks at text."""
        recipe = self.recipe
        measures = recipe.plan is None and allocator_of(recipe).reads_scores
        if not measures and backend_of(recipe).statistic is None:
            return None
        return calibrate(
            loaded,
            recipe.calib,
            samples=recipe.samples,
            seq_len=recipe.seq_len,
            sampling=recipe.sampling,
            seed=recipe.seed,
            bos=recipe.bos,
            text_field=recipe.text_field,
        )

    def held_out(self, loaded: LoadedModel) -> TokenWindows | None:
        """The windows of the recipe's evaluation text; None if it names no such text."""
        recipe = self.recipe
        if recipe.data is None:
            return None
        return hold_out(
            loaded,
            recipe.data,
            seq_len=recipe.seq_len,
            bos=recipe.bos,
            max_windows=recipe.max_windows,
            text_field=recipe.text_field,
        )

    def evaluate(self, loaded: LoadedModel, windows: TokenWindows) -> PerplexityRecord:
        """Perplexity of the model as it is now."""
        return perplexity(
            loaded.model,
            windows,
            batch_size=self.recipe.batch_size,
            device=resolve_device(self.recipe.device),
            progress=self.progress,
        )

    def run(self, out: Path | None, loaded: LoadedModel | None = None) -> Run:
        """Do it all, and write `out` unless it is None; a `loaded` model is used instead of loading one.

        Raises:
            RequestError: see everything this calls; with `strict` also any fallback.
        """
        self.check(out)
        with memory_errors("running the recipe"):
            loaded = loaded or self.load()
            if out:
                self.check_storage(loaded)
            calibration = self.windows(loaded)
            held_out = self.held_out(loaded)
            report, plan = self.plan(loaded, calibration)
            dense = self.evaluate(loaded, held_out) if held_out else None
            with self._own_folder(out) as folder:
                result = self.compress_(loaded, plan, calibration, folder)
                if held_out and dense:
                    evaluation = Evaluation(dense=dense, compressed=self.evaluate(loaded, held_out))
                    result = result.model_copy(update={"evaluation": evaluation})
                backend, recipe = backend_of(self.recipe), self.settled(calibration, result)
                if folder and isinstance(backend, CheckpointBackend):
                    stored = backend.stored_format
                    write_documents(folder, loaded, result, plan, stored, report=report, recipe=recipe)
                elif out:
                    result = save(
                        loaded,
                        result,
                        plan,
                        out,
                        report=report,
                        recipe=recipe,
                        storage=self.storage,
                        export=self.recipe.export,
                    )
        return Run(report, plan, result)

    def _own_folder(self, out: Path | None) -> AbstractContextManager[Path | None]:
        """The folder that a backend writes its own checkpoint into; None for all others, which do not."""
        if out and isinstance(backend_of(self.recipe), CheckpointBackend):
            return output_folder(out)
        return nullcontext()

    def check(self, out: Path | None) -> None:
        """Refuse what can be refused before a model is loaded."""
        if out:
            check_output_folder(out)
        resolve_device(self.recipe.device)
        if self.recipe.plan is not None:
            unit = Plan.read(self.recipe.plan).unit
        else:
            target = target_of(self.recipe)
            metrics_of(allocator_of(self.recipe).settled(target))  # refuses what is no metric
            unit = target.unit
        check_unit(self.recipe.backend, unit)
        if self.recipe.export and unit is not Unit.WIDTH:
            raise RequestError(f"--export {self.recipe.export} is for widths, the plan is in {unit}: drop it")
        backend = backend_of(self.recipe)
        if self.storage == "packed" and out and not isinstance(backend, CheckpointBackend):
            require_package()
        if out and isinstance(backend, CheckpointBackend):
            backend.check_ready()

    @property
    def storage(self) -> Storage:
        """How the checkpoint is stored: codes are packed unless told otherwise.

        Raises:
            RequestError: "packed" is asked for and the backend makes no codes, or it has a format of its own.
        """
        recipe = self.recipe
        if recipe.format_ and isinstance(backend_of(recipe), CheckpointBackend):
            raise RequestError(f"backend {recipe.backend!r} writes a format of its own: drop --format")
        if isinstance(backend_of(recipe), Quantizer):
            return recipe.format_ or "packed"
        if recipe.format_ == "packed":
            raise RequestError(
                f"--format packed stores integer codes, and backend {recipe.backend!r} makes none: drop it"
            )
        return "dense"

    def check_storage(self, loaded: LoadedModel) -> None:
        """Refuse a model that cannot be stored as asked, before it is compressed.

        Raises:
            RequestError: codes or a family that the format does not hold.
        """
        backend = backend_of(self.recipe)
        if isinstance(backend, CheckpointBackend):
            return
        if self.recipe.export == "decilm":
            check_decilm(loaded.model, widths_are_final=False)
        if self.storage == "packed" and isinstance(backend, Quantizer):
            names = [linear.name for linear in find_structure(loaded.model).linears]
            check_packable(loaded.model, names, backend.code_format)

    def settled(self, calibration: TokenWindows | None, result: Result) -> Recipe:
        """The recipe with what was left open filled in as it was done; a plan is the one beside it."""
        recipe, backend = self.recipe, backend_of(self.recipe)
        filled: dict[str, object] = {}
        if calibration is not None:
            filled = {"seq_len": calibration.record.seq_len, "bos": calibration.record.bos}
        if recipe.plan is not None:
            filled["plan"] = "plan.json"
        elif calibration is not None:
            filled["measure_samples"] = recipe.measure_samples or DEFAULT_MEASURE_SAMPLES
        if recipe.importance == "auto":  # another time memory may decide otherwise
            recipe = recipe.with_importance(str(result.backend.parameters["importance"]))
        if isinstance(backend, Quantizer):
            filled["group_size"] = backend.code_format.group_size or "none"
            if not isinstance(backend, CheckpointBackend):
                filled["format"] = self.storage
        return recipe.with_options(filled)

    def compress_(
        self,
        loaded: LoadedModel,
        plan: Plan,
        calibration: TokenWindows | None,
        folder: Path | None = None,
    ) -> Result:
        """Compress `loaded` in place with the recipe's backend; one with its own format writes `folder`."""
        recipe, backend, name = self.recipe, backend_of(self.recipe), self.recipe.backend
        device, identity = resolve_device(recipe.device), identity_of(loaded)
        if isinstance(backend, CheckpointBackend):
            if folder is None:
                raise RequestError(f"backend {name!r} writes its own checkpoint: name a folder")
            result = compress_checkpoint_(loaded, plan, backend, name, calibration, folder, device, identity)
        else:
            options = WalkOptions(device, recipe.batch_size, progress=self.progress)
            result = compress_with_(loaded.model, plan, backend, name, calibration, options, identity)
            if recipe.uniform_width:
                to_stock_(loaded.model)
        refuse_fallbacks(result, strict=recipe.strict)
        return result.model_copy(update={"earlier": earlier_steps(loaded)})


def refuse_fallbacks(result: Result, *, strict: bool) -> None:
    """With `strict`, refuse a result that did not go the first way.

    Raises:
        RequestError: there is a fallback.
    """
    if strict and result.fallbacks:
        first = result.fallbacks[0]
        raise RequestError(
            f"--strict: {first.what} at {first.where} ({len(result.fallbacks)} fallbacks in all)"
        )


def metrics_of(allocator: Allocator) -> tuple[str, ...]:
    """The default metrics, and the allocator's own if it is another.

    Raises:
        RequestError: its own is none that is known.
    """
    own = getattr(allocator, "metric", None)
    return with_defaults([] if own is None else [own])
