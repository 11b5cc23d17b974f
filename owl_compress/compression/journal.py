"""The journal of a compression: each block that is done, kept on disk until the whole is.

A folder with one safetensors file for each finished block, which holds its tensors by their names in the
model, and a small file beside it that says what was done, and how wide the block is where it was narrowed.
That small file comes last: a block without one is not done. Whoever goes on puts the finished blocks back and
runs them; what they hand to the next block is computed again by the same operations, hence the same to the
last bit.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import finalize

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from owl_compress.compression.tasks import LinearOutcome
from owl_compress.documents.disk import disk_errors, put_in_place
from owl_compress.documents.journal import FinishedBlock, FinishedLinear, check_same_method
from owl_compress.documents.notes import KeptError
from owl_compress.documents.result import MethodRecord
from owl_compress.documents.temporary import remove_dead, temporary_name
from owl_compress.forms.codes import QuantizedWeight
from owl_compress.forms.narrowing import narrow_again_
from owl_compress.memory import page_out
from owl_compress.models.residence import residence_of
from owl_compress.models.structure import BlockSite
from owl_compress.models.tensor_file import opened_tensors

_TEMPORARY = "owl-compress-blocks"
_SETTLED = "backend"


@dataclass
class Journal:
    """The finished blocks in `folder`, which is there."""

    folder: Path
    _restored: int = field(default=0, init=False)

    @classmethod
    def until_gone(cls, model: nn.Module) -> "Journal":
        """One in a temporary folder, for as long as `model` lives: it holds what memory has no room for."""
        place = Path(tempfile.gettempdir())
        remove_dead(place, _TEMPORARY)  # of processes that were killed
        folder = place / temporary_name(_TEMPORARY)
        folder.mkdir(mode=0o700)
        finalize(model, shutil.rmtree, folder, ignore_errors=True)
        return cls(folder)

    @property
    def n_finished(self) -> int:
        """Blocks that are done."""
        return sum(1 for _ in self.folder.glob("*.json"))

    @property
    def n_restored(self) -> int:
        """Blocks that were done before and were put back."""
        return self._restored

    def settle(self, backend: MethodRecord) -> None:
        """Take note of how the backend runs, what it left to the memory there is included.

        Raises:
            KeptError: that came out otherwise before, or what says so is broken.
            RequestError: the disk is full, or cannot be written to.
        """
        path = self.folder / _SETTLED
        if path.exists():
            check_same_method(_settled(path), backend)
            return
        with put_in_place(path) as temporary:
            temporary.write_text(backend.model_dump_json(), encoding="utf-8")

    def note(self, site: BlockSite, outcomes: Sequence[LinearOutcome]) -> tuple[LinearOutcome, ...]:
        """Keep a block as it is now, with what was done to it; a streamed one lives there from here on.

        Returns:
            The outcomes; of a streamed block with codes that are in the file, too, and not in memory.

        Raises:
            RequestError: the disk is full, or cannot be written to.
        """
        weights = self._file(site, ".safetensors")
        _save(weights, _named(site))
        codes = {
            f"{one.name}.{part}": tensor
            for one in outcomes
            if one.quantized is not None
            for part, tensor in one.quantized.parts.items()
        }
        if codes:
            _save(self._file(site, ".codes"), codes)
        linears = tuple(map(_as_finished, outcomes))
        widths = getattr(site.module, "narrow_widths", None)
        entry = FinishedBlock(block=site.name, linears=linears, widths=widths).to_json()
        with put_in_place(self._file(site, ".json")) as temporary:
            temporary.write_text(entry, encoding="utf-8")
        residence = residence_of(site.module)
        if residence is None:
            return tuple(outcomes)
        residence.moved_to(weights)
        return self._as_outcomes(site, linears)

    def restored_(self, site: BlockSite) -> tuple[LinearOutcome, ...] | None:
        """Put a block back that was finished before, and say what was done to it; None if it was not.

        The block holds its weights, somewhere.

        Raises:
            KeptError: what was kept of it is broken.
        """
        entry = self._file(site, ".json")
        if not entry.exists():
            return None
        finished = FinishedBlock.read(entry)
        if finished.widths is not None:
            narrow_again_(site.module, finished.widths)
        weights = self._file(site, ".safetensors")
        with _opened(weights) as tensors:
            for name, tensor in _named(site).items():
                kept = tensors.get_tensor(name)
                if kept.shape != tensor.shape:
                    raise KeptError(f"{weights} holds {name} in another shape: {_BROKEN}")
                tensor.copy_(kept)
        residence = residence_of(site.module)
        if residence is not None:
            residence.moved_to(weights)
        self._restored += 1
        return self._as_outcomes(site, finished.linears)

    def _as_outcomes(self, site: BlockSite, linears: Sequence[FinishedLinear]) -> tuple[LinearOutcome, ...]:
        path = self._file(site, ".codes")
        parts = self._parts(site, path) if any(one.bits is not None for one in linears) else {}
        shapes = {one.name: one.shape for one in site.linears}

        def codes(one: FinishedLinear) -> QuantizedWeight | None:
            if one.bits is None:
                return None
            own = {
                name.removeprefix(f"{one.name}."): part
                for name, part in parts.items()
                if name.startswith(f"{one.name}.")
            }
            try:
                return QuantizedWeight.of_parts(own, shapes[one.name], one.bits, one.group_size)
            except KeyError as error:
                raise KeptError(f"{path} lacks {one.name}.{error.args[0]}: {_BROKEN}") from error

        return tuple(
            LinearOutcome(one.name, one.achieved, one.relative_error, one.seconds, one.fallbacks, codes(one))
            for one in linears
        )

    def _parts(self, site: BlockSite, path: Path) -> dict[str, Tensor]:
        """What codes of the block are made of; of a streamed one as the system pages it in from the file."""
        with _opened(path) as tensors:
            found = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
        if residence_of(site.module) is None:
            return {name: part.clone() for name, part in found.items()}
        for part in found.values():
            page_out(part.data_ptr(), part.numel() * part.element_size())
        return found

    def _file(self, site: BlockSite, ending: str) -> Path:
        return self.folder / f"{site.name}{ending}"


_BROKEN = "what was kept of an unfinished run is broken; start over with --overwrite"


def _settled(path: Path) -> MethodRecord:
    try:
        with disk_errors(path):
            return MethodRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise KeptError(f"{path} is not whole: {_BROKEN}") from error


def _as_finished(outcome: LinearOutcome) -> FinishedLinear:
    codes = outcome.quantized
    return FinishedLinear(
        name=outcome.name,
        achieved=outcome.achieved,
        relative_error=outcome.relative_error,
        seconds=outcome.seconds,
        fallbacks=outcome.fallbacks,
        bits=codes.bits if codes else None,
        group_size=codes.group_size if codes else None,
    )


def _named(site: BlockSite) -> dict[str, Tensor]:
    """What is saved of a block, by its names in the model; a tensor that it uses twice is there once."""
    found: dict[int, str] = {}
    state = site.module.state_dict(keep_vars=True)
    for name, tensor in state.items():
        found.setdefault(id(tensor), name)
    return {f"{site.name}.{name}": state[name].detach() for name in found.values()}


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    with put_in_place(path) as temporary:
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(whole, temporary, metadata={"format": "pt"})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with disk_errors(path), opened_tensors(path) as tensors:
            yield tensors
    except SafetensorError as error:
        raise KeptError(f"{path} is not whole ({error}): {_BROKEN}") from error
