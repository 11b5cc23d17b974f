"""What of the weights in its blocks the account of a model holds, counted from the parameters."""

import re
from collections import Counter, defaultdict

from torch import nn

from owl_compress.documents.coverage import Coverage, LeftOut
from owl_compress.models.structure import ModelStructure

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def coverage_of(structure: ModelStructure) -> Coverage:
    """The share of the weights in the blocks that linears of `structure` hold, and the names of the rest.

    Experts that are fused into one parameter, gates, convolutions, linears that the model does not call: each
    parameter that is a matrix and no linear's weight is left out. One that several blocks share counts once.
    """
    seen = {id(linear.module.get_parameter("weight")) for linear in structure.linears}
    sizes: Counter[str] = Counter()
    blocks: dict[str, set[str]] = defaultdict(set)
    linears: dict[str, list[str]] = defaultdict(list)
    for site in structure.blocks:
        for path, parameter in site.module.named_parameters():
            if id(parameter) in seen or not _is_matrix(path, parameter):
                continue
            seen.add(id(parameter))
            module = path.removesuffix(".weight")
            name = _NUMBER.sub("*", module)
            sizes[name] += parameter.numel()
            blocks[name].add(site.name)
            if (full := f"{site.name}.{module}") in structure.uncalled:
                linears[name].append(full)
    left_out = tuple(
        LeftOut(name=name, n_blocks=len(blocks[name]), n_weights=size, linears=tuple(linears[name]))
        for name, size in sizes.items()
    )
    covered = sum(linear.n_weights for linear in structure.linears)
    return Coverage(n_weights=covered + sizes.total(), left_out=left_out)


def _is_matrix(path: str, parameter: nn.Parameter) -> bool:
    """Whether there is more than one way through it: a bias or a scale may have axes of length one.

    Experts keep one bias each in a parameter of their own; so much is told by the name alone.
    """
    return sum(length > 1 for length in parameter.shape) > 1 and not path.endswith("bias")
