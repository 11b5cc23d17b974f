"""How large a model in memory would be on the disk, told to the byte without writing it."""

from dataclasses import dataclass

from owl_compress.checkpoints.leftovers import carried_headers
from owl_compress.checkpoints.stored_forms import SizedForm, StoredForm, suiting
from owl_compress.checkpoints.stored_size import WeightFiles, file_bytes
from owl_compress.forms.codes import coded_modules, stored_bits
from owl_compress.models.state import n_parameters
from owl_compress.pipeline.session import Session


@dataclass(frozen=True)
class StoredSize:
    """What `save` would count; None for a form that tells no size beforehand."""

    bytes_on_disk: int | None
    bits_per_weight: float


def stored_size(session: Session) -> StoredSize:
    """The size of the model of `session` as it is now, in the form that it would be saved in.

    Raises:
        RequestError: a form that cannot hold it.
    """
    model, request = session.loaded.model, session.request
    bits = {name: codes.bits for name, _, codes in coded_modules(model)}
    code_format = next((codes.code_format for _, _, codes in coded_modules(model)), None)
    is_packed = bool(bits) and request.keeps_codes and request.export is None
    form: StoredForm = request.export or suiting(model, wants_codes=is_packed)
    if not isinstance(form, SizedForm):
        return StoredSize(None, stored_bits(model) / n_parameters(model))
    files = form.sizer(model, list(bits), code_format if is_packed else None)(bits)
    n_bits = 8 * _bytes_of(files) if is_packed or not bits else stored_bits(model)
    if not form.is_asked_for and session.loaded.leftovers is not None:
        held = {name for headers in files.shards.values() for name in headers}
        files = files.carrying(carried_headers(session.loaded.leftovers, held))
    return StoredSize(_bytes_of(files), n_bits / n_parameters(model))


def _bytes_of(files: WeightFiles) -> int:
    """Of all weight files, without their index."""
    return sum(map(file_bytes, files.shards.values()))
