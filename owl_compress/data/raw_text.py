"""From a file on disk to a string: regular files only, decompressed by what they begin with, decoded."""

import bz2
import codecs
import gzip
import importlib.util
import io
import lzma
import stat
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from owl_compress.errors import RequestError

MAX_BYTES = 2 * 2**30
"""No file is read beyond this, compressed or not: a small archive may hold any amount."""

COMPRESSED_SUFFIXES = (".gz", ".gzip", ".bz2", ".xz", ".zst", ".zstd")

_Opener = Callable[[Path], Any]


def _open_zstd(path: Path) -> Any:
    """A zstd file: Python itself reads it from 3.14 on, before that a package does."""
    if sys.version_info >= (3, 14):
        from compression import zstd  # noqa: PLC0415 - there from this version on

        return zstd.open(path, "rb")
    if importlib.util.find_spec("zstandard") is None:
        raise RequestError(
            f"{path} is compressed with zstd, which needs the package zstandard: "
            "pip install 'owl-compress[zstd]', or decompress it first"
        )
    with path.open("rb") as file:
        return io.BytesIO(_zstd_content(file))


def _zstd_content(file: IO[bytes]) -> bytes:
    """All frames of a zstd file; the package's own reader takes a file that is cut short for a whole one."""
    import zstandard  # noqa: PLC0415 - optional

    content, frame = bytearray(), zstandard.ZstdDecompressor().decompressobj()
    try:
        while len(content) <= MAX_BYTES and (piece := file.read(2**20)):
            while piece:
                if frame.eof:
                    frame = zstandard.ZstdDecompressor().decompressobj()
                content += frame.decompress(piece)
                piece = frame.unused_data if frame.eof else b""
    except zstandard.ZstdError as error:
        raise OSError(str(error)) from error
    if len(content) <= MAX_BYTES and not frame.eof:
        raise EOFError("it ends too early")
    return bytes(content)


# What a file begins with tells, not what it is called.
_OPENERS: Mapping[bytes, tuple[str, _Opener]] = {
    b"\x1f\x8b": ("gzip", gzip.open),
    b"\xfd7zXZ\0": ("xz", lzma.open),
    b"\x28\xb5\x2f\xfd": ("zstd", _open_zstd),
    **{f"BZh{level}1AY&SY".encode(): ("bzip2", bz2.open) for level in range(1, 10)},
}
# The mark of UTF-32 begins with that of UTF-16, so it comes first.
_MARKS: Mapping[bytes, str] = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_BROKEN_ARCHIVE = (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError)


def content_suffix(path: Path) -> str:
    """The suffix of what a file holds, in lower case: `.jsonl` for a.jsonl and for a.JSONL.gz."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSED_SUFFIXES else suffix


def check_regular(path: Path) -> None:
    """Refuse what would hang or cannot be read: a pipe, a device, a file of somebody else.

    Raises:
        RequestError: see above.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise cannot_read(path, error) from error
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return
    kinds = {stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    kind = next((name for is_kind, name in kinds.items() if is_kind(mode)), "a device")
    raise RequestError(f"{path} is {kind}, not a file: write the text to a file first")


def cannot_read(path: Path, error: OSError) -> RequestError:
    """What the operating system said of `path`, with the remedy where it is one of rights."""
    remedy = ": ask its owner for the right to read it" if isinstance(error, PermissionError) else ""
    return RequestError(f"cannot read {path}: {error.strerror or error}{remedy}")


def read_string(path: Path) -> str:
    """The text in a file: UTF-8, or UTF-16 or UTF-32 with a byte-order mark, possibly compressed.

    Verbatim, without newline translation; the mark is dropped.

    Raises:
        RequestError: unreadable, too large, a broken archive, or not text.
    """
    content = _read_bytes(path)
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    if encoding in {"utf-8", "utf-8-sig"} and b"\0" in content:
        raise RequestError(
            f"{path} is not a text file (it holds NUL bytes): give UTF-8 text, .jsonl, .csv or .parquet"
        )
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        raise RequestError(
            f"{path} is not a {name} text file (byte {error.start}: {error.reason}): "
            "convert it to UTF-8 first"
        ) from error


def _read_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(max(map(len, _OPENERS)))
            found = next((how for magic, how in _OPENERS.items() if head.startswith(magic)), None)
            if found is None:
                content = head + file.read(MAX_BYTES)
    except OSError as error:
        raise cannot_read(path, error) from error
    if found is not None:
        content = _decompressed(path, *found)
    elif path.suffix.lower() in COMPRESSED_SUFFIXES:
        raise RequestError(f"{path} is not compressed, whatever its name says: drop the {path.suffix}")
    if len(content) > MAX_BYTES:
        raise RequestError(f"{path} holds more than {MAX_BYTES >> 30} GiB of text: give an excerpt of it")
    return content


def _decompressed(path: Path, kind: str, opener: _Opener) -> bytes:
    try:
        with opener(path) as file:
            content: bytes = file.read(MAX_BYTES + 1)
    except _BROKEN_ARCHIVE as error:
        raise RequestError(f"{path} is not a whole {kind} file ({error}): fetch it again") from error
    return content
