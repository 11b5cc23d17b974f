"""How much memory the tensors take that were made inside a context and are still in use."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context in which the tensors that operations make are counted, on whatever device they are.

    What operations are handed from outside, such as weights, is none of them, nor are views of it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._outside: set[int] = set()
        self._made: dict[int, tuple[Any, int]] = {}  # a weak reference, and bytes

    def __torch_dispatch__(
        self,
        function: Any,
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation and note what it makes."""
        named = named or {}
        self._outside |= {_key(tensor) for tensor in _tensors((arguments, named))} - self._made.keys()
        outputs = function(*arguments, **named)
        for tensor in _tensors(outputs):
            if _key(tensor) not in self._outside:
                storage = tensor.untyped_storage()
                weak: Any = StorageWeakRef  # torch has no types for it
                self._made[_key(tensor)] = weak(storage), storage.nbytes()
        return outputs

    def count(self) -> int:
        """Bytes of those that are still in use."""
        return sum(n_bytes for storage, n_bytes in self._made.values() if not storage.expired())


def _tensors(values: Any) -> list[Tensor]:
    """The plain ones: what others hold is theirs to tell."""
    return [leaf for leaf in tree_leaves(values) if type(leaf) in (Tensor, nn.Parameter)]


def _key(tensor: Tensor) -> int:
    """What tells the memory behind a tensor, of which there may be views, from all other that is in use."""
    key: int = tensor.untyped_storage()._cdata  # noqa: SLF001 - there is no other way to tell
    return key
