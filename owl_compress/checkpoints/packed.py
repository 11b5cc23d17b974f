"""Packed checkpoints: integer codes in the compressed-tensors format `pack-quantized`, written and read back.

Transformers loads them with the package compressed-tensors at hand, vLLM serves them. One config group for
each width names its linears exactly; symmetric grids only, no activation order (it leaves no trace in ours),
everything else in `ignore`, and never a `sparsity_config`, which servers refuse.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from owl_compress.checkpoints.door import from_config
from owl_compress.checkpoints.narrow_config import refuse_narrowed
from owl_compress.checkpoints.packed_description import (
    METHOD,
    describe_packed,
    is_packed,
    quantizes_activations,
)
from owl_compress.checkpoints.packed_loading import load_packed, stream_packed
from owl_compress.checkpoints.packed_package import require_current_package, require_package
from owl_compress.checkpoints.packed_size import packed_sizer
from owl_compress.checkpoints.packed_trial import USE_DENSE, Fit, find_fit
from owl_compress.checkpoints.quantized_elsewhere import refuse_quantized
from owl_compress.checkpoints.reading import CheckpointSource
from owl_compress.checkpoints.saving import PackedCheckpoint, write_weights
from owl_compress.checkpoints.stored_size import Sizer, sizer_of_weights
from owl_compress.checkpoints.streaming import streamed_model
from owl_compress.checkpoints.tensors import saved_dtypes, tensor_from_checkpoint
from owl_compress.checkpoints.verification import compare_bits
from owl_compress.documents.measurements import Verification
from owl_compress.documents.stored_format import LM_EVAL, LOAD, VLLM_OF_CODES, StoredFormat
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError
from owl_compress.forms.codes import CodeFormat, QuantizedWeight, coded_modules
from owl_compress.forms.narrowing import has_narrowed_blocks
from owl_compress.models.structure import LinearSite, ModelStructure

logger = logging.getLogger(__name__)

_WORD_BITS = 32


def check_packable(model: nn.Module, names: Sequence[str], code_format: CodeFormat) -> Fit:
    """Refuse, before any work is done, what the packed format cannot hold.

    Args:
        model: the model, quantized or yet to be.
        names: the linears that are to be packed.
        code_format: how their codes are grouped.

    Returns:
        Which of them are packed, and how.

    Raises:
        RequestError: asymmetric codes, compressed-tensors missing, or see `find_fit`.
    """
    if not code_format.symmetric:
        # The format has them packed; transformers 5.23 expects them unpacked and takes them for broken.
        raise RequestError(f"asymmetric codes cannot be packed so that transformers loads them: {USE_DENSE}")
    require_package()
    return find_fit(model, names, code_format)


def packed_checkpoint(model: nn.Module) -> PackedCheckpoint:
    """The tensors of `model` with codes in place of the weights of its quantized linears.

    Raises:
        RequestError: see `check_packable`; nothing is quantized; or a weight was changed since it was.
    """
    coded = {name: (module, codes) for name, module, codes in coded_modules(model)}
    if not coded:
        raise RequestError("no linear of this model is quantized: nothing to pack, use --format dense")
    formats = {codes.code_format for _, codes in coded.values()}
    fits = [check_packable(model, list(coded), code_format) for code_format in formats]
    packed = {name: coded[name][1] for name in fits[0].packed}  # these are looked at when codes replace them
    for name in coded.keys() - packed.keys():
        module, codes = coded[name]
        _check_unchanged(name, module.get_parameter("weight").data, codes)
    widths = {name: (codes.bits, codes.group_size) for name, codes in packed.items()}
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_meta}
    return PackedCheckpoint(
        _with_codes(tensors, packed),
        describe_packed(model, widths),
        fits[0].original_names,
        fits[0].notes,
        partial(_with_codes, packed=packed),
    )


def _check_unchanged(name: str, weight: Tensor, codes: QuantizedWeight) -> None:
    """Refuse a weight that is not what its codes stand for; of one that is elsewhere nothing is known yet."""
    if not weight.is_meta and not torch.equal(weight.cpu(), codes.dequantised()):
        raise RequestError(f"{name} was changed after it was quantized: {USE_DENSE}")


def _with_codes(tensors: Mapping[str, Tensor], packed: Mapping[str, QuantizedWeight]) -> dict[str, Tensor]:
    """`tensors` with codes in the place of those weights among them that are `packed`."""
    found = dict(tensors)
    for name, codes in packed.items():
        weight = found.pop(f"{name}.weight", None)
        if weight is not None:
            _check_unchanged(name, weight, codes)
            found |= {f"{name}.{part}": tensor for part, tensor in _packed(codes).items()}
    return found


def _packed(codes: QuantizedWeight) -> dict[str, Tensor]:
    """The tensors of one linear: codes [out, in] become words of 32 bits, [out, in * bits / 32]."""
    from compressed_tensors.compressors.pack_quantized import pack_to_int32  # noqa: PLC0415 - optional

    return {
        "weight_packed": pack_to_int32(codes.codes, codes.bits),
        "weight_scale": codes.scales.contiguous(),
        "weight_shape": torch.tensor(codes.shape),
    }


def check_saved_codes(folder: Path | str) -> None:
    """Refuse a packed checkpoint whose codes were saved as floating-point numbers.

    They would load, each rounded to what such a number holds of 32 bits, and the model would be another.

    Raises:
        RequestError: see above, naming the tensor.
    """
    for name, dtype in saved_dtypes(folder, ".weight_packed").items():
        if dtype.startswith(("F", "BF")):
            raise RequestError(
                f"tensor {name!r} in {folder} holds packed codes as {dtype}, which keeps not all their bits: "
                "something took them for weights and converted them; fetch the checkpoint again"
            )


def check_packed_source(source: CheckpointSource) -> None:
    """Refuse packed weights that cannot be read, or that would become another model.

    Raises:
        RequestError: compressed-tensors is missing or too old, activations are quantized too, or the codes
            in a folder are no integers.
    """
    if quantizes_activations(source.described):
        raise refuse_quantized(source.named, f"{METHOD}, with activations quantized too")
    require_current_package()
    if source.is_local:
        check_saved_codes(source.where)


def compare_packed(source: CheckpointSource, model: nn.Module, pattern: str) -> Verification:
    """Compare packed codes with the plan: the bits that the configuration states, and the words stored.

    Raises:
        RequestError: see `verification.verify`.
    """
    folder = Path(source.where)
    check_saved_codes(folder)
    names = saved_dtypes(folder, ".weight_packed")
    stated = _stated_bits(source)

    def bits_of(linear: LinearSite) -> int | None:
        if f"{linear.name}.weight_packed" not in names:
            return None
        words = tensor_from_checkpoint(folder, f"{linear.name}.weight_packed")  # [out, words of an output]
        bits = stated.get(linear.name, 0)
        fits = bits and words.shape == (linear.shape[0], -(-linear.shape[1] // (_WORD_BITS // bits)))
        return bits if fits else int(words.numel()) * _WORD_BITS // linear.n_weights

    return compare_bits(folder, model, pattern, bits_of)


def _stated_bits(source: CheckpointSource) -> dict[str, int]:
    """Bits by the linears that a configuration names, or by the patterns that other tools write.

    Raises:
        RequestError: there are none, or they are no numbers of bits.
    """
    try:
        groups = source.described["quantization_config"]["config_groups"].values()
        bits = {name: int(group["weights"]["num_bits"]) for group in groups for name in group["targets"]}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        bits, reason = {}, f" ({type(error).__name__}: {error})"
    else:
        reason = ""
    if not bits or not all(0 < width <= _WORD_BITS for width in bits.values()):
        raise RequestError(
            f"{source.where}/config.json does not say how many bits the packed codes have{reason}: fetch it "
            "again"
        )
    return bits


class Packed:
    """Codes in the place of quantized weights, everything else as it is in memory."""

    name: ClassVar[str] = "packed"
    option_defaults: ClassVar[Mapping[str, Any]] = {}
    is_asked_for: ClassVar[bool] = False
    holds_codes: ClassVar[bool] = True

    def recognise(self, source: CheckpointSource) -> bool:
        """By the method that its configuration names."""
        return is_packed(source.described)

    def check_loadable(self, source: CheckpointSource) -> None:
        """See `check_packed_source`."""
        check_packed_source(source)

    def load(self, source: CheckpointSource) -> Any:
        """The model with ordinary linears, which hold what the codes stand for."""
        return load_packed(source, source.from_pretrained)

    def load_streamed(self, source: CheckpointSource) -> Any:
        """The same with blocks that stay in its files.

        Raises:
            RequestError: see `streaming.streamed_model`.
        """
        return stream_packed(source, partial(streamed_model, source, None))

    def suits(self, model: Any, *, wants_codes: bool) -> bool:
        """Where codes are to be kept, and blocks are as wide as they were."""
        return wants_codes and not has_narrowed_blocks(model)

    def check_request(self, unit: Unit, parts: Sequence[str], options: Mapping[str, Any]) -> None:
        """It holds all that makes codes."""

    def check_holds(self, model: Any, structure: ModelStructure, code_format: CodeFormat | None) -> None:
        """See `check_packable`."""
        if code_format is not None:
            fit = check_packable(model, [linear.name for linear in structure.linears], code_format)
            for note in fit.notes:
                logger.warning(note)

    def save(self, model: Any, folder: Path, *, max_shard_size: str) -> tuple[str, ...]:
        """The tensors of `packed_checkpoint`.

        Raises:
            RequestError: see there; or blocks whose widths would be lost.
        """
        refuse_narrowed(model, "packed-narrow")
        packed = packed_checkpoint(model)
        write_weights(
            model, folder, packed=packed, original_names=packed.original_names, max_shard_size=max_shard_size
        )
        return packed.notes

    def sizer(self, model: Any, names: Sequence[str], code_format: CodeFormat | None) -> Sizer:
        """By the bits of the linears that are packed.

        Raises:
            RequestError: see `check_packable`.
        """
        if code_format is None:
            return sizer_of_weights(model)
        return packed_sizer(model, check_packable(model, names, code_format), code_format)

    def describe(self) -> StoredFormat:
        """Tag, and what it takes to load."""
        return StoredFormat(
            tag="compressed-tensors",
            description="They are stored as packed integers, in the format `pack-quantized` of "
            "compressed-tensors",
            how_to_load=f"It takes `pip install transformers compressed-tensors`.\n\n{LOAD}",
            vllm=f"{VLLM_OF_CODES} For widths other than 4 and 8 bits its kernels are those of the package "
            "`humming`, for GPUs of NVIDIA.",
            lm_eval=LM_EVAL,
        )

    def verify(self, source: CheckpointSource, pattern: str) -> Verification:
        """Compare the bits of the stored codes with the plan."""
        with torch.device("meta"):
            model = from_config(AutoModelForCausalLM, source.config, trust_remote_code=source.trusts_code)
        return compare_packed(source, model, pattern)
