"""A folder that can be recovered, or why it cannot: told before its model is loaded."""

from dataclasses import dataclass

from owl_compress.checkpoints.hub import quietly_explained
from owl_compress.checkpoints.loading import LoadedModel, locate
from owl_compress.checkpoints.reading import CheckpointSource
from owl_compress.checkpoints.stored_forms import StoredForm, recognised
from owl_compress.documents.outputs import ADAPTER_FOLDER
from owl_compress.documents.plan import Plan
from owl_compress.documents.result import Result
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError
from owl_compress.pipeline.recovered_folder import check_source, loaded_again
from owl_compress.pipeline.recovery_request import RecoveryRequest


@dataclass(frozen=True)
class Subject:
    """A folder that can be recovered, told without loading its model."""

    request: RecoveryRequest
    result: Result
    plan: Plan
    form: StoredForm

    @classmethod
    def of(cls, request: RecoveryRequest) -> "Subject":
        """What the folder of `request` holds.

        Raises:
            RequestError: no folder of ours, an adapter that is not merged, codes, or quantized weights that
                the method would change.
        """
        folder = request.folder
        if not (folder / "result.json").is_file() or not (folder / "plan.json").is_file():
            raise RequestError(
                f"{folder} holds no result.json and plan.json: recover takes what compress or run wrote"
            )
        result, plan = Result.read(folder / "result.json"), Plan.read(folder / "plan.json")
        if (folder / ADAPTER_FOLDER).exists():
            raise RequestError(
                f"{folder} has an adapter already: recover the folder that it was made from, for longer"
            )
        locate(str(folder))  # refuses files that are broken, by name
        source = CheckpointSource.of_folder(folder, trust_remote_code=request.consent.trust_remote_code)
        with quietly_explained(str(folder)):
            form = recognised(source)
        if not isinstance(form, StoredForm) or form.holds_codes:
            raise RequestError(
                f"{folder} holds integer codes ({form.name}), which no training can change: compress with "
                "--format dense, and recover that with --method lora or bias"
            )
        is_quantized = any(step.unit is Unit.BITS for step in result.as_earlier)
        if is_quantized and request.method.changes_weights:
            raise RequestError(
                f"{folder} is quantized, and method {request.method.name!r} would take its weights off their "
                "grid: use --method bias, or lora without --merge"
            )
        check_source(folder, trust_remote_code=request.consent.trust_remote_code)
        return cls(request, result, plan, form)

    def load(self, dtype: str) -> LoadedModel:
        """The model as it lies in the folder."""
        return loaded_again(
            self.request.folder, dtype, trust_remote_code=self.request.consent.trust_remote_code
        )
