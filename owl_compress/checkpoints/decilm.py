"""Narrowed models in the format of DeciLM, for vLLM and llama.cpp.

It was checked against these sources, read in November 2026. llama.cpp itself was run, on a file that was
written by the rules of its conversion (tests/interop); of vLLM only a reconstruction of the blocks by its
formulas was:

- vLLM, vllm/model_executor/models/nemotron_nas.py (class `DeciLMForCausalLM`): query heads are those of the
  whole model, key-value heads `num_attention_heads // attention.n_heads_in_group`, the inner width is
  `ffn.ffn_mult` through `inner_width`. `block_configs` is read by attribute, and vLLM has no configuration
  class of its own for the model type: it needs --trust-remote-code for the one that is written beside it.
- llama.cpp, conversion of `DeciLMForCausalLM` (class `DeciModel`): the same formula; `n_heads_in_group`
  may not be absent and `ffn_mult` must be a float; the head size is hidden size / heads. It takes the
  vocabulary for one of SentencePiece unless it has 128256 tokens, and reads the rotary embedding by its
  older names alone (rope_names.py).
- mlx-lm rounds `ffn_mult` to six digits; TensorRT-LLM has the same formula; SGLang loads no model whose
  blocks differ in key-value heads, which an export of ours never has.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from owl_compress.checkpoints import configuration_decilm
from owl_compress.checkpoints.never_loaded import NeverLoaded
from owl_compress.checkpoints.reading import CheckpointSource
from owl_compress.checkpoints.rope_names import rope_kind
from owl_compress.checkpoints.saving import write_weights
from owl_compress.checkpoints.stored_size import Sizer, sizer_of_weights
from owl_compress.documents.measurements import Verification
from owl_compress.documents.stored_format import VLLM, StoredFormat, running_code
from owl_compress.documents.units import Sublayer, Unit
from owl_compress.errors import RequestError
from owl_compress.forms.codes import CodeFormat
from owl_compress.models.anatomy import BlockAnatomy, find_anatomy
from owl_compress.models.structure import ModelStructure, find_structure

DECILM_STEP = 256
"""DeciLM holds FFN widths that are a multiple of this."""

DECILM_MODEL_TYPE = "nemotron-nas"
_DECILM_FAMILIES = ("llama", "mistral")
_CONFIG_FILE = "configuration_decilm.py"
_DIGITS = 6
_ROPE_OF_LLAMA_CPP = frozenset({"default", "linear", "llama3"})


def inner_width(ffn_mult: float, hidden_size: int) -> int:
    """The channels that readers of DeciLM give a feed-forward, by the formula that all of them share."""
    width = int(2 * ffn_mult * hidden_size / 3)
    return -(-width // DECILM_STEP) * DECILM_STEP


def check_decilm(
    model: Any, structure: ModelStructure, *, is_packed: bool = False, widths_are_final: bool = True
) -> None:
    """Refuse what DeciLM cannot express.

    Inner widths are not looked at if they are not final, because a compression is still to set them.

    Raises:
        RequestError: another family, a sliding window, packed weights, fewer query heads than the
            configuration says, an inner width off the grid of 256, or a sublayer that is gone.
    """
    config = model.config
    family = str(config.model_type)
    if family not in _DECILM_FAMILIES:
        raise _no_decilm(
            f"{family} models are none of {' and '.join(_DECILM_FAMILIES)}, whose block it holds",
            "leave --export away",
        )
    if is_packed:
        raise _no_decilm("it holds plain weights, not packed codes", "use --format dense")
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        raise _no_decilm(f"it has no sliding window, the model one of {window}", "leave --export away")
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head_dim * config.num_attention_heads != config.hidden_size:
        raise _no_decilm(
            f"its head size is hidden size / heads, the model's is {head_dim} with "
            f"{config.num_attention_heads} heads in {config.hidden_size}",
            "leave --export away",
        )
    for anatomy in map(find_anatomy, structure.blocks):
        _check_block(anatomy, config, widths_are_final=widths_are_final)


def _check_block(anatomy: BlockAnatomy, config: Any, *, widths_are_final: bool) -> None:
    attention, mlp = anatomy.attention, anatomy.mlp
    if attention is None or mlp is None:
        reason = "; ".join(anatomy.unrecognised.values())
        raise _no_decilm(f"block {anatomy.block} is not one of its blocks: {reason}", "leave --export away")
    if attention.n_heads != config.num_attention_heads:
        raise _no_decilm(
            f"it keeps all {config.num_attention_heads} query heads, and block {anatomy.block} has "
            f"{attention.n_heads}",
            "compress with --parts mlp",
        )
    width = mlp.n_channels
    if not widths_are_final:
        if width < DECILM_STEP:
            raise _no_decilm(
                f"it holds multiples of {DECILM_STEP} channels, and block {anatomy.block} has only {width}",
                "leave --export away",
            )
        return
    if width == 0:
        raise _no_decilm(
            f"block {anatomy.block} has no feed-forward left, which its readers take differently",
            "compress without --allow-empty",
        )
    if width % DECILM_STEP or inner_width(_ffn_mult(width, config.hidden_size), config.hidden_size) != width:
        raise _no_decilm(
            f"it holds multiples of {DECILM_STEP} channels, and block {anatomy.block} has {width}",
            f"compress with --round-to {DECILM_STEP}",
        )


def describe_decilm(model: Any, folder: Path) -> None:
    """Rewrite the configuration that `save_pretrained` put into `folder`; the tensors keep their names.

    `model` is one that `check_decilm` has passed.
    """
    path = folder / "config.json"
    config, source = json.loads(path.read_text(encoding="utf-8")), model.config
    anatomies = [find_anatomy(site) for site in find_structure(model).blocks]
    for key in ("sliding_window", "per_layer_config", "allow_global_per_layer_attribute_access"):
        config.pop(key, None)
    config |= {
        "architectures": ["DeciLMForCausalLM"],
        "model_type": DECILM_MODEL_TYPE,
        "auto_map": {"AutoConfig": f"{Path(_CONFIG_FILE).stem}.DeciLMConfig"},
        "block_configs": [_block_config(anatomy, source.hidden_size) for anatomy in anatomies],
        "tie_word_embeddings": bool(source.tie_word_embeddings),
        "attention_bias": bool(getattr(source, "attention_bias", False)),
        "mlp_bias": bool(getattr(source, "mlp_bias", False)),
        # No block is built from it; software that plans memory by one width gets the largest.
        "intermediate_size": max(anatomy.mlp.n_channels for anatomy in anatomies if anatomy.mlp),
        **_context_before_scaling(config.get("rope_parameters") or {}),
    }
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    standalone = Path(configuration_decilm.__file__).read_text(encoding="utf-8")
    (folder / _CONFIG_FILE).write_text(standalone, encoding="utf-8")


def _context_before_scaling(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Where llama.cpp's conversion looks for it, which takes 8192 otherwise."""
    name = "original_max_position_embeddings"
    return {name: rope[name]} if name in rope else {}


def _block_config(anatomy: BlockAnatomy, hidden_size: int) -> dict[str, dict[str, Any]]:
    if anatomy.attention is None or anatomy.mlp is None:
        raise _no_decilm(f"block {anatomy.block} is not one of its blocks", "leave --export away")
    return {
        "attention": {
            "n_heads_in_group": anatomy.attention.n_queries_per_group,
            "no_op": False,
            "replace_with_linear": False,
        },
        "ffn": {
            "ffn_mult": _ffn_mult(anatomy.mlp.n_channels, hidden_size),
            "no_op": False,
            "replace_with_linear": False,
        },
    }


def _ffn_mult(width: int, hidden_size: int) -> float:
    """The multiplier that means `width`; as short as those readers have it that round it."""
    return round(3 * width / (2 * hidden_size), _DIGITS)


def _no_decilm(reason: str, remedy: str) -> RequestError:
    return RequestError(f"the model cannot be exported as DeciLM: {reason}: {remedy}")


class DeciLM(NeverLoaded):
    """Blocks with feed-forwards of different widths, for software that reads `block_configs`."""

    name: ClassVar[str] = "decilm"
    option_defaults: ClassVar[Mapping[str, Any]] = {"round_to": DECILM_STEP}
    is_asked_for: ClassVar[bool] = True
    holds_codes: ClassVar[bool] = False

    def recognise(self, source: CheckpointSource) -> bool:
        """By the type of model that its configuration names."""
        return source.described.get("model_type") == DECILM_MODEL_TYPE

    def check_loadable(self, source: CheckpointSource) -> None:
        """Refuse it: transformers has no such model.

        Raises:
            RequestError: always.
        """
        raise RequestError(
            f"{source.named} is a DeciLM checkpoint, for vLLM and llama.cpp; transformers has no class for "
            "it: name the model that it was made from"
        )

    def check_request(self, unit: Unit, parts: Sequence[str], options: Mapping[str, Any]) -> None:
        """Refuse budgets that are no widths, attention among the parts, and channels off its grid."""
        if unit is not Unit.WIDTH:
            raise RequestError(f"--export decilm is for widths, the budget is in {unit}: drop it")
        if Sublayer.ATTENTION in parts:
            raise RequestError(
                "export decilm is for Llama and Mistral and keeps all query heads: add parts mlp"
            )
        round_to = options.get("round_to")
        if round_to is not None and int(round_to) % DECILM_STEP:
            raise RequestError(
                f"export decilm holds multiples of {DECILM_STEP} channels, and round-to is {round_to}: drop "
                "--round-to, or --export where the model is too small for such steps"
            )

    def check_holds(self, model: Any, structure: ModelStructure, code_format: CodeFormat | None) -> None:
        """See `check_decilm`."""
        check_decilm(model, structure, is_packed=code_format is not None, widths_are_final=False)

    def save(self, model: Any, folder: Path, *, max_shard_size: str) -> tuple[str, ...]:
        """Tensors under their own names, those of codes dequantised, and the configuration of DeciLM."""
        check_decilm(model, find_structure(model))
        write_weights(model, folder, max_shard_size=max_shard_size)
        describe_decilm(model, folder)
        kind = rope_kind(getattr(model.config, "rope_parameters", None) or {})
        if kind in _ROPE_OF_LLAMA_CPP:
            return ()
        return (f"llama.cpp's conversion of DeciLM leaves rotary scaling of kind {kind!r} out",)

    def sizer(self, model: Any, names: Sequence[str], code_format: CodeFormat | None) -> Sizer:  # noqa: ARG002
        """All weights as they are, whatever stands for them in memory."""
        return sizer_of_weights(model)

    def describe(self) -> StoredFormat:
        """Who reads it."""
        return StoredFormat(
            tag="decilm",
            description="The blocks differ in width, in the format of `DeciLMForCausalLM`",
            how_to_load="It is in the format of `DeciLMForCausalLM`, for software that reads "
            "`block_configs`, such as vLLM and llama.cpp. transformers has no class for it.",
            vllm=f"{running_code(VLLM)}\n\nThe consent is to the configuration class beside the weights.",
            lm_eval="lm-eval's `--model hf` does not load this form, as transformers does not; its "
            "`--model vllm` was not tried.",
            library=None,
        )

    def verify(self, source: CheckpointSource, pattern: str) -> Verification:  # noqa: ARG002 - the protocol's signature
        """Refuse it, as `check_loadable`."""
        raise RequestError(
            f"{source.where} is a DeciLM checkpoint, which verify does not take apart: verify takes sparse "
            "checkpoints"
        )
