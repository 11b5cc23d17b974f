"""The rotary embedding in config.json, by the names from before transformers 5 as well.

transformers 5 writes `rope_parameters` and nothing else. Readers that look for `rope_theta` and
`rope_scaling` alone (mlx-lm 0.32's Llama, llama.cpp's conversion of DeciLM, transformers 4) would take a base
of 10000 for every model, and say nothing. transformers 5 reads both, and writes the first.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PLAIN = "default"


def rope_kind(rope: Mapping[str, Any]) -> str:
    """The kind of scaling, "default" for none."""
    return str(rope.get("rope_type", PLAIN))


def older_names(rope: Mapping[str, Any]) -> dict[str, Any]:
    """What `rope_parameters` says, by the older names; nothing where block types differ in it."""
    if "rope_theta" not in rope or any(isinstance(value, Mapping) for value in rope.values()):
        return {}
    names = {"rope_theta": rope["rope_theta"]}
    if "partial_rotary_factor" in rope:
        names["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if rope_kind(rope) != PLAIN:
        names["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    return names


def add_older_names(path: Path) -> None:
    """Write them into the config.json at `path`, where `save_pretrained` put it."""
    config = json.loads(path.read_text(encoding="utf-8"))
    names = older_names(config.get("rope_parameters") or {})
    if names:
        text = json.dumps(names | config, indent=2, sort_keys=True)
        path.write_text(f"{text}\n", encoding="utf-8")
