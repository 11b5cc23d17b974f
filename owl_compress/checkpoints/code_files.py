"""Code of a model's author: what configurations say of it holds only where its files lie beside them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CONFIGS = ("config.json", "tokenizer_config.json")
_KEY = "auto_map"


def drop_missing_code(folder: Path) -> tuple[str, ...]:
    """Take out of the configurations in `folder` what names code that is not there.

    transformers copies the code that a model was built by. Where it was not run, the model in memory is one
    of its own classes, and the name of a file elsewhere would keep readers from loading it. Code that is
    named in another repository stays named.

    Returns:
        A note for the result, if anything was taken out.
    """
    dropped: list[str] = []
    for name in _CONFIGS:
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        named = content.get(_KEY)
        if not isinstance(named, Mapping):
            continue
        kept = {kind: value for kind, value in named.items() if _is_there(folder, value)}
        if len(kept) == len(named):
            continue
        dropped += (str(named[kind]) for kind in named if kind not in kept)
        content = {key: value for key, value in content.items() if key != _KEY} | (
            {_KEY: kept} if kept else {}
        )
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
    if not dropped:
        return ()
    return (
        f"code that the input names and that was not run is not named in the output: {', '.join(dropped)}",
    )


def _is_there(folder: Path, value: Any) -> bool:
    """Whether the file of "file.Class", or of any in a list of such, is in `folder` or another repository."""
    names = [
        name for name in (value if isinstance(value, list | tuple) else [value]) if isinstance(name, str)
    ]
    return any("--" in name or (folder / f"{name.rpartition('.')[0]}.py").is_file() for name in names)
