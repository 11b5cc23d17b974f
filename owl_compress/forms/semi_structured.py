"""Linears stored 2:4, as torch's semi-structured tensors, and what weights take however they are stored."""

from torch import Tensor, nn
from torch.sparse import to_sparse_semi_structured

from owl_compress.errors import RequestError
from owl_compress.models.structure import find_structure


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
