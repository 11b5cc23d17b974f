"""What of a model can be packed so that transformers reads it: tried without weights, before any work.

The model that a reader would build is built on the meta device and given tensors of the shapes that would
be written. Three things are found that way: linears whose weight the model class reads while it is built,
where a packed one has none; tensors that are merged as they are read (fused experts), which is not done
beside packed ones; and whatever else a class of models, or a newer transformers, stumbles over.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from owl_compress.checkpoints.door import pretrained
from owl_compress.checkpoints.hub import quiet_bars, quiet_transformers
from owl_compress.checkpoints.narrow_config import reader_of
from owl_compress.checkpoints.packed_description import describe_packed
from owl_compress.checkpoints.packed_package import package_in_this_process, quiet_package
from owl_compress.errors import RequestError
from owl_compress.forms.codes import CodeFormat
from owl_compress.models.structure import in_rows

USE_DENSE = "use --format dense, which stores the dequantised weights"
_BITS = 8  # of the trial: which widths there will be makes no difference to what is read
_WORD_BITS = 32
_INDEX = re.compile(r"(?<=\.)\d+(?=\.)")
_REASON_LENGTH = 160


@dataclass(frozen=True)
class Fit:
    """How a model is packed so that transformers reads it.

    Attributes:
        packed: linears whose codes are stored.
        unpacked: linears whose weights have to be stored as they are.
        original_names: whether tensors go by the names that published checkpoints have, or by its own.
    """

    packed: tuple[str, ...]
    unpacked: tuple[str, ...]
    original_names: bool

    @property
    def notes(self) -> tuple[str, ...]:
        """One line for the result, where linears are not packed."""
        if not self.unpacked:
            return ()
        return (
            f"{len(self.unpacked)} of {len(self.packed) + len(self.unpacked)} linears are stored dequantised "
            "and not as codes, because transformers reads their weights while it builds the model, or they "
            f"are no torch.nn.Linear; the first is {self.unpacked[0]}",
        )


def find_fit(model: nn.Module, names: Sequence[str], code_format: CodeFormat) -> Fit:
    """How the linears `names` of `model`, quantized or yet to be, are packed.

    Raises:
        RequestError: less than half of their weights can be, or transformers reads no such checkpoint.
    """
    packed = [name for name in names if type(model.get_submodule(name)) is nn.Linear]
    reason = "" if len(packed) == len(names) else _other_kind(model, set(names) - set(packed), names)
    while _is_most(model, packed, names):
        for original_names in (True, False):
            read, failure = _tried(model, packed, code_format, original_names=original_names)
            if failure is None:
                return Fit(tuple(packed), tuple(n for n in names if n not in set(packed)), original_names)
            if read is not None:
                break
        if read is None:
            raise _unreadable(f"transformers does not read it then ({failure})")
        reason = f"transformers reads the weight of {read} while it builds the model"
        packed = [name for name in packed if _alike(name) != _alike(read)]
    raise _unreadable(reason)


def _tried(
    model: nn.Module, packed: Collection[str], code_format: CodeFormat, *, original_names: bool
) -> tuple[str | None, str | None]:
    """The linear whose weight is missed, if it is that, and what went wrong; nothing if all went well."""
    kind, config = reader_of(model)
    # A group for each linear, so that one that is stumbled over tells its name.
    widths = dict.fromkeys(packed, (_BITS, code_format.group_size))
    config.quantization_config = describe_packed(model, widths, apart=True)
    tensors = _tensors(model, packed, code_format)
    if original_names:
        tensors = revert_weight_conversion(model, tensors)
    try:
        with (
            quiet_transformers(),
            quiet_bars(),
            quiet_package(),
            package_in_this_process(),
            torch.random.fork_rng(devices=[]),
        ):
            _, info = pretrained(
                kind,
                None,
                trust_remote_code=False,
                config=config,
                state_dict=tensors,
                device_map="meta",
                output_loading_info=True,
            )
    except Exception as error:  # noqa: BLE001 - whatever it is: the reader would meet it too
        return _name_of(getattr(error, "obj", None)), _short(error)
    mismatched = [name for name, *_ in info["mismatched_keys"]]
    lost = sorted([*info["missing_keys"], *info["unexpected_keys"], *mismatched])
    return None, f"{lost[0]} does not find its place" if lost else None


def _tensors(model: nn.Module, packed: Collection[str], code_format: CodeFormat) -> dict[str, Tensor]:
    """What would be written, without memory: shapes and types alone."""
    tensors = {name: tensor.to("meta") for name, tensor in model.state_dict().items()}
    for name in packed:
        weight = in_rows(model.get_submodule(name), tensors.pop(f"{name}.weight"))
        rows, columns = weight.shape
        words, groups = -(-columns * _BITS // _WORD_BITS), code_format.n_groups(columns)
        tensors |= {
            f"{name}.weight_packed": torch.empty(rows, words, dtype=torch.int32, device="meta"),
            f"{name}.weight_scale": torch.empty(rows, groups, dtype=weight.dtype, device="meta"),
            f"{name}.weight_shape": torch.empty(2, dtype=torch.int64, device="meta"),
        }
    return tensors


def _name_of(module: object) -> str | None:
    """The linear that a module of the reader's model is, by the group that was made for it alone."""
    targets = getattr(getattr(module, "quantization_scheme", None), "targets", None)
    return str(targets[0]) if targets else None


def _alike(name: str) -> str:
    """The name without the numbers of blocks and experts: what is true of one is true of all."""
    return _INDEX.sub("*", name)


def _is_most(model: nn.Module, packed: Collection[str], names: Collection[str]) -> bool:
    """Whether at least half of the weights of `names`, and not nothing, are in `packed`."""

    def n_weights(those: Collection[str]) -> int:
        return sum(model.get_submodule(name).get_parameter("weight").numel() for name in those)

    return bool(packed) and 2 * n_weights(packed) >= n_weights(names)


def _other_kind(model: nn.Module, others: Collection[str], names: Sequence[str]) -> str:
    first = next(name for name in names if name in others)
    return f"{first} is a {type(model.get_submodule(first)).__name__}, and only torch.nn.Linear can be packed"


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _REASON_LENGTH else text[:_REASON_LENGTH] + "…"


def _unreadable(reason: str) -> RequestError:
    return RequestError(f"the model cannot be stored packed: {reason}: {USE_DENSE}")
