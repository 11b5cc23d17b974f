"""Tensors where they lie in files, each read by itself when it is wanted."""

from dataclasses import dataclass
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
            RequestError: a file is gone or broken, or what it holds is of another shape; naming `called`.
        """
        ...


@dataclass(frozen=True)
class StoredTensor:
    """A safetensors file, and the name that the tensor has there."""

    file: Path
    name: str

    def read(self, like: Tensor, called: str, bring: Bring) -> Tensor:
        """See the protocol."""
        check_is_file(self.file)
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
