"""How the weights of a checkpoint lie in its files, and what its card says of loading them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StoredFormat:
    """What the model card says of a format: a tag, how weights lie in it, how to load it."""

    tag: str
    description: str
    how_to_load: str


LOAD = (
    "```python\n"
    "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
    'folder = "path/to/this/folder"\n'
    "model = AutoModelForCausalLM.from_pretrained(folder)\n"
    "tokenizer = AutoTokenizer.from_pretrained(folder)\n```"
)
"""How a folder is loaded that needs nothing but transformers."""
