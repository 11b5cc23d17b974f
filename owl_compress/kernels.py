"""What the linears of a model run in: dense products, or torch's 2:4 semi-structured ones."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured

from owl_compress.documents.measurements import Kernel
from owl_compress.errors import RequestError
from owl_compress.models.structure import find_structure
from owl_compress.verification import verify

KERNELS: tuple[Kernel, ...] = ("dense", "semi-structured")


def check_kernel(name: str, device: torch.device) -> Kernel:
    """The kernel called `name`; one that does not exist, or not on `device`, is refused.

    Raises:
        RequestError: see above.
    """
    kernel = next((kernel for kernel in KERNELS if kernel == name), None)
    if kernel is None:
        raise RequestError(f"unknown kernel {name!r}: it is one of {', '.join(KERNELS)}")
    if kernel == "semi-structured" and device.type != "cuda":
        raise RequestError(
            f"kernel 'semi-structured' needs a CUDA device and this is the {device.type}: use --kernel dense"
        )
    return kernel


def check_two_of_four(folder: Path) -> None:
    """Refuse a checkpoint that keeps more than 2 of 4 weights anywhere, counted from its tensors.

    Raises:
        RequestError: no folder, or the first linear that breaks the pattern.
    """
    found = verify(folder, "2:4")
    if not found.ok:
        first = found.violations[0]
        raise RequestError(
            f"kernel 'semi-structured' needs 2 of every 4 weights at most, and {first.linear} in {folder} "
            f"keeps more in {first.violating} of {first.groups} groups ({len(found.violations)} such "
            "linears): make it with --nm 2:4 --allocator uniform"
        )


def is_semi_structured(module: nn.Module) -> bool:
    """Whether the module's weight is stored 2:4."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and _is_semi_structured(weight)


def to_semi_structured_(model: nn.Module) -> int:
    """Store the linears of all blocks 2:4, in place, as torch's semi-structured tensors (CUDA only).

    The values stay what they are; the model cannot be saved or compressed any more. Returns their number.

    Raises:
        RequestError: torch refuses a linear's shape or data type, naming it; or one is no torch.nn.Linear.
    """
    converted = 0
    for site in find_structure(model).linears:
        if not isinstance(site.module, nn.Linear):
            raise RequestError(
                f"{site.name} is a {type(site.module).__name__}, and only torch.nn.Linear has this kernel: "
                "use --kernel dense"
            )
        try:
            sparse = to_sparse_semi_structured(site.module.weight.detach())
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise RequestError(
                f"{site.name} cannot be stored semi-structured ({reason}): use --dtype bfloat16 or --kernel "
                "dense"
            ) from error
        site.module.weight = nn.Parameter(sparse, requires_grad=False)
        converted += 1
    return converted


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers as they are stored; tied or shared ones count once."""
    return sum(_stored_bytes(tensor) for tensor in (*model.parameters(), *model.buffers()))


def _stored_bytes(tensor: Tensor) -> int:
    if not _is_semi_structured(tensor):
        return tensor.nbytes
    parts, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]  # torch's protocol of such tensors
    return sum(getattr(tensor, part).nbytes for part in parts)


def _is_semi_structured(tensor: Tensor) -> bool:
    return type(tensor.data).__name__.startswith("SparseSemiStructured")
