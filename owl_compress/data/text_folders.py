"""Documents in folders of data files: shards, hive partitions, and splits as the hub names them."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from owl_compress.data.raw_text import cannot_read, check_regular, content_suffix
from owl_compress.data.records import Conversation, Wanted, n_characters_of, texts_of
from owl_compress.data.text_files import is_of_records, records_in
from owl_compress.errors import RequestError

logger = logging.getLogger(__name__)

_SPLITS: Mapping[str, str] = {"valid": "validation", "val": "validation", "dev": "validation"}
_SPLIT = re.compile(r"(?:^|[/._-])(train|test|validation|valid|val|dev)(?=[/._-]|$)", re.IGNORECASE)
_DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json"}


def read_folder(
    folder: Path, wanted: Wanted, split: str, most_characters: int
) -> tuple[str | Conversation, ...]:
    """The documents in all data files below `folder`, in the order of their paths.

    Files of records are read (.parquet, .jsonl, .csv …), of one kind; others in it are left alone, as are
    hidden ones. Where paths name splits, as on the hub, those of `split` are read. A folder may be of any
    size: reading stops, with a warning, at `most_characters`.

    Raises:
        RequestError: no such files, several kinds, only other splits, or what reading a file refuses.
    """
    files = _of_split(folder, _data_files(folder), split)
    documents: list[str | Conversation] = []
    n_characters = 0
    for path in files:
        check_regular(path)
        for document in texts_of(records_in(path, wanted), str(path), wanted):
            documents.append(document)
            n_characters += n_characters_of(document)
            if n_characters >= most_characters:
                logger.warning(
                    "%s: only its first %d documents (%d characters) are read",
                    folder,
                    len(documents),
                    n_characters,
                )
                return tuple(documents)
    return tuple(documents)


def _data_files(folder: Path) -> list[Path]:
    try:
        below = sorted(path for path in folder.rglob("*") if is_of_records(path))
    except OSError as error:
        raise cannot_read(folder, error) from error
    files = [path for path in below if not _is_aside(path.relative_to(folder)) and not path.is_dir()]
    kinds = sorted({content_suffix(path) for path in files})
    if not files:
        raise RequestError(
            f"{folder} is a folder without .parquet, .jsonl or .csv files: name a text file, or a folder "
            "of such"
        )
    if len(kinds) > 1:
        raise RequestError(f"{folder} holds files of several kinds ({', '.join(kinds)}): name one of them")
    return files


def _is_aside(path: Path) -> bool:
    """Whether a file is no data: hidden, like caches and `_SUCCESS`, or about the data."""
    return path.name in _DESCRIPTIONS or any(part.startswith((".", "_")) for part in path.parts)


def _of_split(folder: Path, files: Sequence[Path], split: str) -> list[Path]:
    """Those of the files whose path below the folder names `split`; all of them where none names any."""
    splits = {path: _split_of(path.relative_to(folder)) for path in files}
    named = sorted({name for name in splits.values() if name is not None})
    if not named:
        return list(files)
    chosen = [path for path, name in splits.items() if name == split]
    if not chosen and len(named) == 1:  # a folder of one split, whatever that is, was meant as a whole
        return list(files)
    if not chosen:
        raise RequestError(
            f"{folder} holds the splits {', '.join(named)}, not {split!r}: name one of its files"
        )
    return chosen


def _split_of(path: Path) -> str | None:
    found = _SPLIT.search(path.as_posix())
    if found is None:
        return None
    name = found[1].lower()
    return _SPLITS.get(name, name)
