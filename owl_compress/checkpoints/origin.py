"""Where a model descends from: its parent on the hub and its licence, from model cards, never guessed."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not in a list

from owl_compress.checkpoints.hub import quiet_transformers
from owl_compress.checkpoints.loading import BUILTIN, BUILTIN_BASE_MODEL, BUILTIN_LICENSE, LoadedModel
from owl_compress.documents.provenance import Origin
from owl_compress.documents.strict_json import has_surrogates
from owl_compress.reach import hub_within_reach

_FENCE = "---"


def origin_of(loaded: LoadedModel) -> Origin:
    """What can be said about the origin of `loaded`, from its own card or the hub's; never guessed.

    A local folder states its licence in its README.md; its base model is taken from there only if the folder
    is one of ours, since a foreign card names the parent of the model that is compressed here.
    """
    if loaded.source == BUILTIN:
        return Origin(base_model=BUILTIN_BASE_MODEL, license=BUILTIN_LICENSE)
    if loaded.hub_id:
        card = _hub_card(loaded.hub_id, loaded.revision)
        files = f"https://huggingface.co/{loaded.hub_id}/blob/{loaded.revision or 'main'}"
        return _origin(card, base_model=loaded.hub_id, files=files)
    folder = Path(loaded.source).expanduser()
    card = _front_matter(folder / "README.md")
    ours = (folder / "result.json").is_file()
    return _origin(card, base_model=_hub_id(card.get("base_model")) if ours else None)


def _origin(card: dict[str, Any], *, base_model: str | None, files: str | None = None) -> Origin:
    """The licence of a card, beside a parent; `files` is where a link to a file of the repository leads."""
    link = _text(card.get("license_link"))
    if link and not link.startswith(("https://", "http://")):
        link = f"{files}/{link}" if files else None
    return Origin(
        base_model=base_model,
        license=_text(card.get("license")),
        license_name=_text(card.get("license_name")),
        license_link=link,
    )


def _hub_id(value: object) -> str | None:
    """What may be the id of a model on the hub, which takes no card with anything else for a parent."""
    text = _text(value)
    try:
        validate_repo_id(text or "")
    except HFValidationError:
        return None
    return text


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value and not has_surrogates(value) else None


def _hub_card(hub_id: str, revision: str | None) -> dict[str, Any]:
    """Front matter of the hub's card, empty where it cannot be had: a card is no reason to fail."""
    try:
        with quiet_transformers(), hub_within_reach():
            return _front_matter(Path(hf_hub_download(hub_id, "README.md", revision=revision)))
    except (OSError, HfHubHTTPError, HFValidationError):
        return {}


def _front_matter(path: Path) -> dict[str, Any]:
    """The YAML between the first two lines of three hyphens; empty where there are none, or it is no YAML.

    A card is written for people, and by anybody: whatever is wrong with it is no reason to fail.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        if not lines or lines[0].rstrip() != _FENCE:
            return {}
        end = next((i for i, line in enumerate(lines[1:], 1) if line.rstrip() == _FENCE), None)
        content = yaml.safe_load("\n".join(lines[1:end])) if end is not None else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}
