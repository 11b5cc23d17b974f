"""Everything that a GGUF file says, accounted for: taken over, known to be harmless, told, or refused.

transformers' reader takes over the keys of its own table and drops all others, and all tensors whose name it
does not know, without a word; the model would not be that of the file.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from math import prod
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from owl_compress.checkpoints import gguf_rope
from owl_compress.checkpoints.door import from_config
from owl_compress.checkpoints.gguf_file import GgufFile
from owl_compress.errors import RequestError

_START_ELSEWHERE = "start from the checkpoint that it was converted from"
_EPSILONS = (
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "layernorm_epsilon",
    "norm_eps",
    "norm_epsilon",
)
# Families in which transformers' `sliding_window` holds for every block, as llama.cpp's does.
_SLIDING = ("mistral", "phi3", "starcoder2")

_HARMLESS_ROOMS = ("general", "tokenizer", "quantize", "split", "imatrix")
_HARMLESS = frozenset({
    # Sizes, which the shapes of the tensors prove or refute.
    "vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length",
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "expert_feed_forward_length", "expert_shared_feed_forward_length", "tensor_data_layout",
    *gguf_rope.KEYS,
})  # fmt: skip
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,), "attention.clamp_kqv": (0,), "attention.scale": (0,), "logit_scale": (0, 1),
    "residual_scale": (0, 1), "embedding_scale": (0, 1), "expert_count": (0,), "expert_used_count": (0,),
    "expert_shared_count": (0,), "pooling_type": (0,), "leading_dense_block_count": (0,),
    "expert_weights_scale": (0, 1), "attention.sliding_window": (0,), "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,), "attention.max_alibi_bias": (0,), "nextn_predict_layers": (0,),
}  # fmt: skip
"""Keys that change what the model computes, with the values at which they do not."""


def check_readable(file: GgufFile) -> None:
    """Refuse what is no whole model of one file.

    Raises:
        RequestError: one part of several, an adapter, a projector or a vocabulary, or cut off.
    """
    parts = file.metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise RequestError(
            f"{file.path} is one of {parts} parts of a model: join them with llama-gguf-split --merge and "
            "the name of the first, and name the file that comes of it"
        )
    kind = file.metadata.get("general.type", "model")
    if kind != "model":
        raise RequestError(
            f"{file.path} holds no model but what llama.cpp calls {kind!r}: name the model's file"
        )
    if not file.architecture:
        raise RequestError(f"{file.path} does not say its general.architecture: convert it again")
    if not file.tensors:
        raise RequestError(f"{file.path} holds no tensors: name a file with the weights in it")
    _check_is_whole(file)


def _check_is_whole(file: GgufFile) -> None:
    """Refuse a file that ends before its last tensor does.

    Raises:
        RequestError: see above, or a type of numbers that the package gguf does not know.
    """
    from gguf import GGML_QUANT_SIZES  # noqa: PLC0415 - optional

    sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    length = file.path.stat().st_size
    for name, tensor in file.tensors.items():
        if tensor.ggml_type not in sizes:
            raise RequestError(
                f"{file.path}: tensor {name!r} has the type {tensor.ggml_type}, which the package gguf "
                "does not know: upgrade it"
            )
        per_block, n_bytes = sizes[tensor.ggml_type]
        if file.data_start + tensor.offset + prod(tensor.shape) // per_block * n_bytes > length:
            raise RequestError(f"{file.path} is cut off in tensor {name!r}: fetch it again")


def fit_config_(config: Any, file: GgufFile) -> gguf_rope.Rope | None:
    """Take over into `config` what transformers' reader leaves out of it; the rotary embedding is returned.

    Raises:
        RequestError: what the architecture of transformers cannot express.
    """
    head_dim = _fit_head_dim_(config, file)
    _fit_epsilon_(config, file)
    _fit_window_(config, file)
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if file.value(key) and hasattr(config, key):
            setattr(config, key, float(file.value(key)))
    rope = gguf_rope.rope_of(file, head_dim)
    existing = getattr(config, "rope_parameters", None)
    if rope is None or not isinstance(existing, Mapping):
        return rope  # a model that cannot be scaled is found out once it is there
    if isinstance(existing.get("full_attention"), Mapping):  # Gemma 3 scales this part alone
        full = gguf_rope.merged(existing["full_attention"], rope, head_dim, file)
        config.rope_parameters = {**existing, "full_attention": full}
        base = file.value("rope.freq_base_swa")
        if base:
            config.rope_parameters["sliding_attention"] = {
                **existing["sliding_attention"],
                "rope_theta": base,
            }
    else:
        config.rope_parameters = gguf_rope.merged(existing, rope, head_dim, file)
    return rope


def notes_on_keys(config: Any, file: GgufFile) -> Iterator[str]:
    """One line for each key that nobody takes account of.

    Raises:
        RequestError: one that is known to change what the model computes.
    """
    taken = _taken_by_transformers(file.architecture)
    for key, value in file.metadata.items():
        room, _, name = key.partition(".")
        if room != file.architecture:
            if room not in _HARMLESS_ROOMS:
                yield f"{key} = {value!r} of the GGUF is not read: what it means is not known"
            continue
        if name in _HARMLESS or name in taken or _is_expressed(config, name, value):
            continue
        if name not in _NEUTRAL:
            yield f"{key} = {value!r} of the GGUF is not read: what it means is not known"
        elif value not in _NEUTRAL[name]:
            raise RequestError(
                f"{file.path}: {key} = {value!r} changes what the model computes, and transformers' "
                f"{type(config).__name__} has no place for it: {_START_ELSEWHERE}"
            )


def check_tensors(config: Any, file: GgufFile) -> None:
    """Refuse tensors that transformers' reader would drop because it has no name for them.

    Raises:
        RequestError: see above, naming the first.
    """
    known = known_tensors(config, file.architecture)
    if known is None:
        return
    dropped = sorted(
        name
        for name in file.tensors
        if name not in known and name not in gguf_rope.TENSORS and not name.endswith("attn_rot_embd")
    )
    if dropped:
        raise RequestError(
            f"{file.path}: tensor {dropped[0]!r} ({len(dropped)} such) has no place in transformers' "
            f"{type(config).__name__}, whose model would be another: {_START_ELSEWHERE}"
        )


def _fit_head_dim_(config: Any, file: GgufFile) -> int:
    """Give `config` the size of the file's heads: hidden size / heads, as in llama.cpp, if it says none."""
    heads, hidden = file.value("attention.head_count"), file.value("embedding_length")
    if not isinstance(heads, int) or not isinstance(hidden, int) or not heads:
        return 0  # none at all, or another number in each block
    head_dim = file.value("attention.key_length", hidden // heads)
    if file.value("attention.value_length", head_dim) != head_dim:
        raise RequestError(
            f"{file.path}: its keys are {head_dim} wide and its values "
            f"{file.value('attention.value_length')}, which cannot be loaded: {_START_ELSEWHERE}"
        )
    if hasattr(config, "head_dim"):
        config.head_dim = head_dim
    return int(head_dim)


def _fit_epsilon_(config: Any, file: GgufFile) -> None:
    epsilon = file.value("attention.layer_norm_rms_epsilon", file.value("attention.layer_norm_epsilon"))
    key = next((key for key in _EPSILONS if hasattr(config, key)), None)
    if epsilon is not None and key is not None:
        setattr(config, key, float(epsilon))


def _fit_window_(config: Any, file: GgufFile) -> None:
    window = file.value("attention.sliding_window")
    if window and config.model_type in _SLIDING:
        config.sliding_window = window


def _is_expressed(config: Any, name: str, value: Any) -> bool:
    """Whether the configuration has the value of a key that is taken over above, or needs none."""
    if name in {"attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"}:
        return any(hasattr(config, key) for key in _EPSILONS)
    if name == "attention.sliding_window":
        longest = getattr(config, "max_position_embeddings", 0)
        return getattr(config, "sliding_window", None) == value or bool(value and value >= longest)
    if name == "attention.max_alibi_bias":
        return str(config.model_type) == "bloom"
    return name in {"attn_logit_softcapping", "final_logit_softcapping"} and hasattr(config, name)


def _taken_by_transformers(architecture: str) -> frozenset[str]:
    """The keys of an architecture that transformers' reader takes over; where nothing is known, all."""
    from transformers.integrations import ggml  # noqa: PLC0415 - may be elsewhere in other versions

    table: Mapping[str, Mapping[str, Any]] = getattr(ggml, "GGUF_CONFIG_MAPPING", {})
    plain = architecture.replace("-", "_")
    names = (plain, plain.replace("moe", "_moe"))
    found = next((table[name] for name in names if name in table), {})
    return frozenset(key for key, place in found.items() if place is not None)


def known_tensors(config: Any, architecture: str) -> frozenset[str] | None:
    """The tensors that transformers' reader has a place for; None where it reports the others by itself."""
    names: frozenset[str] | None = None
    with suppress(ImportError):
        from transformers import modeling_gguf_pytorch_utils as reader  # noqa: PLC0415 - of some versions

        if architecture in _self_reporting():
            return None
        with torch.device("meta"):
            model = from_config(AutoModelForCausalLM, config, trust_remote_code=False)
        processor = reader.TENSOR_PROCESSORS.get(architecture, reader.TensorProcessor)(
            config=config.to_dict()
        )
        names = frozenset(reader.get_gguf_hf_weights_map(_NamedTensors(model), processor)) | {"output.weight"}
    return names


class _NamedTensors:
    """A model by the names of its tensors, seen from each of its modules, as if it had no modules in it.

    transformers' reader asks gguf for its table of names anew at each module. Given all names of all modules
    at once it finds the same tensors with a single table.
    """

    def __init__(self, model: Any) -> None:
        self.config = model.config
        self._names = [
            ".".join(parts[start:])
            for parts in (name.split(".") for name in model.state_dict())
            for start in range(len(parts))
        ]

    def state_dict(self) -> Mapping[str, None]:
        """Names without tensors."""
        return dict.fromkeys(self._names)

    def named_children(self) -> tuple[()]:
        """No modules."""
        return ()


def _self_reporting() -> frozenset[str]:
    """Architectures of transformers' newer reader, which says which tensors it has no use for."""
    with suppress(ImportError):
        from transformers.integrations.gguf import GGUF_ARCHS  # noqa: PLC0415 - since 5.24

        return frozenset(GGUF_ARCHS)
    return frozenset()
