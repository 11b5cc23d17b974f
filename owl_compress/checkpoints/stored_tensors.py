"""Tensors where they lie in files, each read by itself when it is wanted."""

from dataclasses import dataclass
from os import stat_result
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor

from owl_compress.checkpoints.files import check_is_file
from owl_compress.errors import RequestError
from owl_compress.models.residence import Bring
from owl_compress.models.tensor_file import opened_tensors

HOST = torch.device("cpu")


class Stored(Protocol):
    """Where a tensor lies in files."""

    def read(self, like: Tensor, called: str, bring: Bring) -> Tensor:
        """What `bring` makes of it in the shape and data type of `like`; nothing of a file stays mapped.

        Raises:
            RequestError: a file is gone, broken or changed, or what it holds is of another shape; naming
                `called`.
        """
        ...


@dataclass(frozen=True)
class StoredTensor:
    """A safetensors file as it was found, and the name that the tensor has there.

    A file that is written again under way is refused: half of the model would be another one.
    """

    file: Path
    name: str
    found: stat_result

    @classmethod
    def at(cls, file: Path, name: str) -> "StoredTensor":
        """In `file` as it is now.

        Raises:
            RequestError: it is no ordinary file, or may not be read.
        """
        return cls(file, name, check_is_file(file))

    def read(self, like: Tensor, called: str, bring: Bring) -> Tensor:
        """See the protocol; it is refused, too, where the file has changed since it was found."""
        now = check_is_file(self.file)
        if (now.st_size, now.st_mtime_ns) != (self.found.st_size, self.found.st_mtime_ns):
            raise RequestError(
                f"{self.file} was written again while it was being read: what was made so far is of another "
                "model, start anew"
            )
        try:
            with opened_tensors(self.file) as tensors:
                stored: Tensor = tensors.get_tensor(self.name)
                if stored.shape != like.shape:
                    raise RequestError(
                        f"{called} has shape {tuple(stored.shape)} in {self.file}, {tuple(like.shape)} by "
                        "config.json: the checkpoint is broken or its config is another model's"
                    )
                return bring(stored.to(like.dtype))
        except (SafetensorError, OSError) as error:
            raise RequestError(
                f"{called} cannot be read from {self.file} ({error}): fetch it again"
            ) from error


def copied(tensor: Tensor, where: torch.device = HOST) -> Tensor:
    """A copy of a tensor there, by default on the host."""
    return tensor.to(where, copy=True)
