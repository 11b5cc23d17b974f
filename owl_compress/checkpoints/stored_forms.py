"""The forms in which weights lie on disk, each with all that is particular to it, in one table.

Adding one: a file with a class that follows the protocol `StoredForm`, and a line in the table here. Forms
that are more particular than others stand before them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from owl_compress.documents.stored_format import StoredFormat
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError, nearest
from owl_compress.registry import Registry

if TYPE_CHECKING:  # the table loads no torch
    from owl_compress.checkpoints.reading import CheckpointSource
    from owl_compress.checkpoints.stored_size import Sizer
    from owl_compress.documents.measurements import Verification
    from owl_compress.forms.codes import CodeFormat
    from owl_compress.models.structure import ModelStructure


class ReadableForm(Protocol):
    """A form in which checkpoints are found; `name` is what it is registered as."""

    name: ClassVar[str]

    def recognise(self, source: "CheckpointSource") -> bool:
        """Whether the checkpoint is of this form, told without reading a tensor, mostly by config.json."""
        ...

    def check_loadable(self, source: "CheckpointSource") -> None:
        """Refuse what can be refused before tensors are read."""
        ...

    def load(self, source: "CheckpointSource") -> Any:
        """The model, as it was in memory before it was saved."""
        ...


@runtime_checkable
class StreamedForm(ReadableForm, Protocol):
    """A form whose models can be worked on while their blocks stay in its files."""

    def load_streamed(self, source: "CheckpointSource") -> Any:
        """The model, whose blocks are read when they are asked for."""
        ...


@runtime_checkable
class StoredForm(ReadableForm, Protocol):
    """A form in which models are stored too.

    `option_defaults` are options of a backend without which it could not hold what that makes. `is_asked_for`
    says that it is only taken where a user names it, being for other software; `holds_codes` that integer
    codes stand for weights in it, which no training can change.
    """

    option_defaults: ClassVar[Mapping[str, Any]]
    is_asked_for: ClassVar[bool]
    holds_codes: ClassVar[bool]

    def suits(self, model: Any, *, wants_codes: bool) -> bool:
        """Whether it is the natural form for the model; with `wants_codes`, one that keeps integer codes."""
        ...

    def check_request(self, unit: Unit, parts: Sequence[str], options: Mapping[str, Any]) -> None:
        """Refuse a request whose outcome it could not hold, whatever the model."""
        ...

    def check_holds(self, model: Any, structure: "ModelStructure", code_format: "CodeFormat | None") -> None:
        """Refuse a model whose compression it could not hold, before that is done."""
        ...

    def save(self, model: Any, folder: Path, *, max_shard_size: str) -> Sequence[str]:
        """Write tensors and configuration into the existing `folder`; refuse a model that it cannot hold.

        Returns:
            Notes for the result: what of the model lies otherwise than the form has it.
        """
        ...

    def describe(self) -> StoredFormat:
        """What the model card says of it."""
        ...

    def verify(self, source: "CheckpointSource", pattern: str) -> "Verification":
        """Count what the saved tensors keep, see `verification.verify`."""
        ...


@runtime_checkable
class SizedForm(StoredForm, Protocol):
    """A form that can tell how large its files become before there is anything to write."""

    def sizer(self, model: Any, names: Sequence[str], code_format: "CodeFormat | None") -> "Sizer":
        """Who tells it of `model`, whose linears `names` are, or become, codes in this format.

        Without codes the model counts as it is in memory.
        """
        ...


STORED_FORMS = Registry(
    kind="stored form",
    group="owl_compress.stored_forms",
    builtin={
        "gguf": "owl_compress.checkpoints.gguf:Gguf",
        "decilm": "owl_compress.checkpoints.decilm:DeciLM",
        "gptqmodel": "owl_compress.checkpoints.gptqmodel:GptqModelCodes",
        "packed-narrow": "owl_compress.checkpoints.packed_narrow:PackedNarrow",
        "narrow": "owl_compress.checkpoints.narrow:Narrow",
        "packed": "owl_compress.checkpoints.packed:Packed",
        "quantized-elsewhere": "owl_compress.checkpoints.quantized_elsewhere:QuantizedElsewhere",
        "dense": "owl_compress.checkpoints.dense:Dense",
    },
)


def form_named(name: str) -> StoredForm:
    """The form registered as `name`.

    Raises:
        RequestError: unknown name.
    """
    form: StoredForm = STORED_FORMS.load(name)()
    return form


def recognised(source: "CheckpointSource") -> ReadableForm:
    """The form of a checkpoint, the first in the table that knows it."""
    for form in _all_forms():
        with STORED_FORMS.answering_for(getattr(form, "name", type(form).__name__), "asked"):
            if form.recognise(source):
                return form
    raise TypeError("no form in the table is dense")


def suiting(model: Any, *, wants_codes: bool) -> StoredForm:
    """The form that a model is saved in where nobody asks for another."""
    return next(form for form in _storing_forms() if form.suits(model, wants_codes=wants_codes))


def export_named(name: str) -> StoredForm:
    """The form for other software that is called so.

    Raises:
        RequestError: unknown name, or one of ours, which are taken unasked.
    """
    found = {form.name: form for form in _storing_forms() if form.is_asked_for}
    if name not in found:
        raise RequestError(f"unknown export {name!r}: {nearest(name, found)}")
    return found[name]


def _storing_forms() -> list[StoredForm]:
    return [form for form in _all_forms() if isinstance(form, StoredForm)]


def _all_forms() -> list[ReadableForm]:
    """Third-party ones first: they know something that ours do not."""
    ours = list(STORED_FORMS.builtin)
    others = [name for name, _ in STORED_FORMS.loadable() if name not in STORED_FORMS.builtin]
    forms = []
    for name in (*others, *ours):
        with STORED_FORMS.answering_for(name, "made"):
            forms.append(STORED_FORMS.load(name)())
    return forms
