"""Where the hidden states of all sequences wait between two blocks: on the device, on the host, or in a file.

The file is a temporary one, mapped into memory: the system writes it out and reads it back. It loses its name
as soon as it is mapped, so that nothing is left of it however the process ends.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from owl_compress.device import free_device_bytes
from owl_compress.documents.disk import disk_errors
from owl_compress.documents.recipe_fields import ActivationsName
from owl_compress.documents.temporary import remove_dead, temporary_name
from owl_compress.errors import RequestError
from owl_compress.memory import free_host_bytes, page_out

KeepOn = torch.device | ActivationsName | None
"""Where hidden states are kept; "auto" is the first place with room, None the same without a file."""

STATES_ON_DEVICE = 0.3
"""Share of the free device memory that hidden states between blocks may take."""

STATES_ON_HOST = 0.5
"""The same of the host's memory, where a file may hold them."""

_TEMPORARY = "owl-compress-states"
_CHUNK_BYTES = 2**20


class Keeper(Protocol):
    """Who keeps hidden states, a tensor for each batch."""

    def keep(self, states: Tensor) -> Tensor:
        """Those of a further batch, where they wait."""
        ...

    def replace(self, kept: Tensor, states: Tensor) -> Tensor:
        """What a batch has come to, in the place of what was `kept` of it and in its type."""
        ...

    def let_go(self, kept: Tensor) -> None:
        """These are not wanted for a while."""
        ...

    def is_on(self, device: torch.device) -> bool:
        """Whether they wait in the memory of this very device."""
        ...


class InMemory:
    """Keeps them as tensors of a device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def keep(self, states: Tensor) -> Tensor:
        """A tensor there."""
        return states.to(self._device)

    def replace(self, kept: Tensor, states: Tensor) -> Tensor:
        """Another tensor there."""
        return states.to(self._device, kept.dtype)

    def let_go(self, kept: Tensor) -> None:
        """They stay."""

    def is_on(self, device: torch.device) -> bool:
        """Whether it is that device."""
        return self._device == device


class InFile:
    """Keeps them in a file, for as long as one of them is there: so many elements in all.

    Raises:
        RequestError: the disk has no room for them.
    """

    def __init__(self, n_elements: int, dtype: torch.dtype) -> None:
        self._whole = _mapped(n_elements, dtype)
        self._taken = 0

    def keep(self, states: Tensor) -> Tensor:
        """A part of the file."""
        first, self._taken = self._taken, self._taken + states.numel()
        return self._whole[first : self._taken].view(states.shape).copy_(states)

    def replace(self, kept: Tensor, states: Tensor) -> Tensor:
        """The same part of the file, written over."""
        return kept.copy_(states)

    def let_go(self, kept: Tensor) -> None:
        """They leave memory for the file."""
        page_out(kept.data_ptr(), kept.numel() * kept.element_size())

    def is_on(self, device: torch.device) -> bool:  # noqa: ARG002
        """They are in no memory."""
        return False


def place_of(
    n_bytes: int, asked: ActivationsName, on_device: int | None, on_host: int | None
) -> Literal["device", "host", "disk"]:
    """Where so many bytes of hidden states are kept.

    `on_device` and `on_host` are what they may take there at most; None where that is not known.
    """
    if asked != "auto":
        return asked
    if on_device is None or n_bytes <= on_device:
        return "device"
    return "host" if on_host is None or n_bytes <= on_host else "disk"


def room_on_device(device: torch.device) -> int:
    """Bytes that hidden states may take on a device which is not the host's own memory; there, none."""
    return int(STATES_ON_DEVICE * free_device_bytes(device))


def room_on_host() -> int | None:
    """Bytes that they may take on the host; None where the system does not tell."""
    free = free_host_bytes()
    return int(STATES_ON_HOST * free) if free else None


def room_beside(device: torch.device) -> int | None:
    """The same of whichever of the two blocks run on; None where the system does not tell."""
    return room_on_host() if device.type == "cpu" else room_on_device(device)


def keeper_of(keep_on: KeepOn, batches: Sequence[Tensor], of_first: Tensor, device: torch.device) -> Keeper:
    """Who keeps hidden states of all `batches`, as large by the token as those `of_first`."""
    if isinstance(keep_on, torch.device):
        return InMemory(keep_on)
    n_elements = of_first.numel() // batches[0].numel() * sum(batch.numel() for batch in batches)
    n_bytes = n_elements * of_first.element_size()
    room = None if keep_on is None else room_on_host()
    place = place_of(n_bytes, keep_on or "auto", room_on_device(device), room)
    if place == "disk":
        return InFile(n_elements, of_first.dtype)
    return InMemory(device if place == "device" else torch.device("cpu"))


def _mapped(n_elements: int, dtype: torch.dtype) -> Tensor:
    """The memory of a new file, [n_elements], which has its place on the disk already.

    Raises:
        RequestError: there is no room for it, or it cannot be written.
    """
    place = Path(tempfile.gettempdir())
    remove_dead(place, _TEMPORARY)  # of processes that were killed before the file had lost its name
    n_bytes = n_elements * dtype.itemsize
    path = place / temporary_name(_TEMPORARY)
    with disk_errors(path):
        free = shutil.disk_usage(place).free
        if free < n_bytes:
            raise RequestError(
                f"hidden states take {n_bytes:,} bytes, and {place} has {free:,} free: set TMPDIR to a "
                "folder with more room, or use fewer --samples, a shorter --seq-len or --activations host"
            )
        try:
            _reserve(path, n_bytes)
            return torch.from_file(str(path), shared=True, size=n_elements, dtype=dtype)
        finally:
            with suppress(OSError):  # a system that holds on to mapped files leaves it to `remove_dead`
                path.unlink()


def _reserve(path: Path, n_bytes: int) -> None:
    """Have the disk set so many bytes aside: what is not there when memory is written out ends a process."""
    with path.open("xb") as file:
        path.chmod(0o600)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, n_bytes)
            return
        for first in range(0, n_bytes, _CHUNK_BYTES):
            file.write(bytes(min(_CHUNK_BYTES, n_bytes - first)))
