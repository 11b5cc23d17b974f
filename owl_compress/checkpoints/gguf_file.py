"""The head of a GGUF file: its metadata and what it says of its tensors, read without the package gguf.

The format is described in ggml's docs/gguf.md: a magic, a version, typed keys, a table of tensors, and their
data from the next multiple of the alignment on.
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from owl_compress.errors import RequestError

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_FLOAT32, _FLOAT16 = 0, 1
_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_ALIGNMENT = 32


@dataclass(frozen=True)
class GgufTensor:
    """One row of the table: shape as torch has it, ggml's number of the type, bytes from the data's start."""

    shape: tuple[int, ...]
    ggml_type: int
    offset: int


@dataclass(frozen=True)
class GgufFile:
    """Metadata and table of tensors. Of an array of strings `metadata` holds the length alone."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    data_start: int

    @property
    def architecture(self) -> str:
        """What llama.cpp calls the kind of model, and begins the keys of its metadata with."""
        return str(self.metadata.get("general.architecture", ""))

    def value(self, key: str, default: Any = None) -> Any:
        """The value of a key of the architecture, such as "block_count"."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def vector(self, name: str) -> np.ndarray | None:
        """The small tensor of floats called so, in float64; None where there is none.

        Raises:
            RequestError: it is stored as something else than plain floats.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            return None
        if tensor.ggml_type not in {_FLOAT32, _FLOAT16}:
            raise RequestError(f"{self.path}: tensor {name!r} is no plain float: convert the file again")
        dtype = np.dtype("<f4" if tensor.ggml_type == _FLOAT32 else "<f2")
        size = prod(tensor.shape)
        with self.path.open("rb") as file:
            file.seek(self.data_start + tensor.offset)
            content = file.read(size * dtype.itemsize)
        if len(content) < size * dtype.itemsize:
            raise _cut_off(self.path)
        return np.frombuffer(content, dtype).astype(np.float64)


def read_gguf(path: Path) -> GgufFile:
    """The head of the file at `path`.

    Raises:
        RequestError: it is cut off, or of another version of the format.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        reader = _Reader(content, 0)
        try:
            return _read(reader, path)
        except (struct.error, UnicodeDecodeError, OverflowError) as error:
            raise _cut_off(path) from error


def _read(reader: "_Reader", path: Path) -> GgufFile:
    magic, version = reader.take("4s")[0], reader.take("I")[0]
    if magic != _MAGIC or version not in _VERSIONS:
        raise RequestError(
            f"{path} is not a GGUF of version 2 or 3, in little-endian order (it says {version}): convert it "
            "again"
        )
    n_tensors, n_keys = reader.take("QQ")
    metadata: dict[str, Any] = {}
    for _ in range(n_keys):
        key = reader.string()
        if key in metadata:
            raise RequestError(f"{path} has the key {key!r} twice: convert it again")
        metadata[key] = reader.value(reader.take("I")[0])
    tensors = {}
    for _ in range(n_tensors):
        name = reader.string()
        (n_dimensions,) = reader.take("I")
        shape = tuple(reversed(reader.take(f"{n_dimensions}Q")))
        tensors[name] = GgufTensor(shape, *reader.take("IQ"))
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0:
        raise RequestError(f"{path} says that its data is aligned to {alignment!r}: convert it again")
    return GgufFile(path, metadata, tensors, -(-reader.position // alignment) * alignment)


@dataclass
class _Reader:
    """A place in the file; whatever it is asked for beyond the end is a `struct.error`."""

    content: mmap.mmap
    position: int

    def take(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack_from(f"<{layout}", self.content, self._advance(struct.calcsize(f"<{layout}")))

    def string(self) -> str:
        (length,) = self.take("Q")
        start = self._advance(length)
        return self.content[start : start + length].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self.take(_NUMBERS[kind])[0]
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise struct.error(f"no value of type {kind}")
        inner, count = self.take("IQ")
        if inner in _NUMBERS:
            return list(self.take(f"{count}{_NUMBERS[inner]}"))
        if inner != _STRING:
            raise struct.error(f"no array of type {inner}")
        for _ in range(count):
            self._advance(self.take("Q")[0])
        return count

    def _advance(self, size: int) -> int:
        """Where the next `size` bytes begin, which there must be."""
        start = self.position
        if start + size > len(self.content):
            raise struct.error("the file ends here")
        self.position = start + size
        return start


def _cut_off(path: Path) -> RequestError:
    return RequestError(f"{path} is corrupt or cut off: fetch it again")
