"""The one door to the Auto classes of transformers, which run code of a repository if they are let.

Asked without a word about consent, those classes put the question to whoever sits at the terminal, and run
the code on "y". Whoever comes through here has to say whether it may run: nobody is asked.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from owl_compress.errors import RequestError

_KERNELS = (
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
)
"""Keys of a config.json that may name a repository whose compiled code transformers fetches and runs."""


def pretrained(kind: Any, where: str | None, *, trust_remote_code: bool, **options: Any) -> Any:
    """What `kind.from_pretrained` makes of `where`: a configuration, a tokenizer, a model.

    `where` is None for a model whose tensors are among the `options`.
    """
    return kind.from_pretrained(where, trust_remote_code=trust_remote_code, **options)


def from_config(kind: Any, config: Any, *, trust_remote_code: bool) -> Any:
    """The model that `kind` builds for a configuration, with fresh weights."""
    return kind.from_config(config, trust_remote_code=trust_remote_code)


def with_adapter(model: Any, folder: Path) -> Any:
    """`model` with the adapter in `folder` woven in: numbers alone, which hold no code and no pickle.

    Raises:
        RequestError: its weights are not safetensors.
    """
    from peft import PeftModel  # noqa: PLC0415 - optional

    if not (folder / "adapter_model.safetensors").is_file():
        raise RequestError(f"{folder} has no adapter_model.safetensors: write it again, or remove the folder")
    return PeftModel.from_pretrained(model, folder)


def check_kernels(described: Mapping[str, Any], named: str) -> None:
    """Refuse a config.json that has code fetched from another repository; `named` is the model, for messages.

    Raises:
        RequestError: it names such a repository.
    """
    for key, value in _entries(described):
        if key in _KERNELS and isinstance(value, str) and "/" in value:
            raise RequestError(
                f"model {named!r}: its config.json has the code of {value!r} fetched and run ({key}): read "
                "that code, then pass --trust-remote-code if you trust it, or drop the key"
            )


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """All keys and values of a JSON object, those of objects inside it too."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield str(key), value
            yield from _entries(value)
