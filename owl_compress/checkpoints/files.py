"""The files of a checkpoint as files: there, readable, and whole, before anything is made of them."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from owl_compress.errors import RequestError


def check_is_file(path: Path) -> os.stat_result:
    """What a part of a checkpoint is as a file; it has to be an ordinary one, links are followed.

    Raises:
        RequestError: it is missing, a folder, a pipe or a device, or belongs to somebody else.
    """
    try:
        found = path.stat()
        if stat.S_ISREG(found.st_mode):
            path.open("rb").close()
            return found
    except FileNotFoundError as error:
        raise RequestError(f"{path} is missing: the checkpoint is incomplete, fetch it again") from error
    except OSError as error:
        raise unreadable(path, error) from error
    kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, a socket or a device"
    raise RequestError(f"{path} is {kind}, and a file is expected there: fetch the checkpoint again")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Raises:
        RequestError: the file cannot be read, or is no JSON that can be held: cut off, no object, nested too
            deeply, or with a number of thousands of digits.
    """
    check_is_file(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(path, error) from error
    except RecursionError as error:
        raise RequestError(f"{path} is nested too deeply to be read: fetch it again") from error
    except ValueError as error:
        reason = " ".join(str(error).split(";")[0].split())
        raise RequestError(f"{path} is not whole JSON ({reason}): fetch it again") from error
    if not isinstance(content, dict):
        raise RequestError(f"{path} holds a {type(content).__name__} and no JSON object: fetch it again")
    return content


def unreadable(path: Path | str, error: OSError) -> RequestError:
    """The refusal of a path that the operating system does not give."""
    reason = error.strerror or type(error).__name__
    remedy = "ask its owner, or look at ls -l" if isinstance(error, PermissionError) else "check the path"
    return RequestError(f"{path} cannot be read ({reason.lower()}): {remedy}")
