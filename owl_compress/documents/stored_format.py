"""How the weights of a checkpoint lie in its files, and what its card says of loading them."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class StoredFormat:
    """What the model card says of a format: a tag, how weights lie in it, how to load it."""

    tag: str
    description: str
    how_to_load: str


_LOAD = (
    "```python\n"
    "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
    'folder = "path/to/this/folder"\n'
    "model = AutoModelForCausalLM.from_pretrained(folder)\n"
    "tokenizer = AutoTokenizer.from_pretrained(folder)\n```"
)
DENSE = StoredFormat(
    tag="",
    description="They are stored dequantised, like any other weight: the files are no smaller than before, "
    "and the bits per weight above are those of the codes, scales and all other tensors",
    how_to_load=_LOAD,
)
PACKED = StoredFormat(
    tag="compressed-tensors",
    description="They are stored as packed integers, in the format `pack-quantized` of compressed-tensors",
    how_to_load=f"It takes `pip install transformers compressed-tensors`.\n\n{_LOAD}",
)
_LOAD_NARROW = (
    _LOAD.replace("(folder)\n", "(folder, trust_remote_code=True)\n", 1)
    + "\n\n`trust_remote_code=True` runs `modeling_narrow.py` from this folder: stock model classes have one "
    "width for all blocks. With owl-compress installed, `owl_compress.load(folder)` runs no code from here."
)
NARROW = StoredFormat(
    tag="",
    description="The blocks differ in width, which `modeling_narrow.py` beside the weights builds",
    how_to_load=_LOAD_NARROW,
)
PACKED_NARROW = replace(PACKED, how_to_load=PACKED.how_to_load.replace(_LOAD, _LOAD_NARROW))
DECILM = StoredFormat(
    tag="decilm",
    description="The blocks differ in width, in the format of `DeciLMForCausalLM`",
    how_to_load="It is in the format of `DeciLMForCausalLM`, for software that reads `block_configs`, "
    "such as vLLM (with `--trust-remote-code`, for the configuration class beside the weights). Loading it "
    "there was not tried.",
)
