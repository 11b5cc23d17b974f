"""What a backend or the estimator wants to know about the inputs of a linear, summed over all tokens."""

from abc import abstractmethod
from typing import Protocol, Self

import torch
from torch import Tensor

_STRIP, _NARROW_STRIP, _WIDE = 256, 128, 1024
"""Rows of a Gram matrix that are computed together on the host, the second number if it has fewer than the
third: in strips of fewer rows the product itself gets slower."""
_FEW = 32
"""Squares that are summed in float32, a third of the time of float64: exact to 6e-8 of the sum."""
_ALIGNED = 16
"""Widths that divide by this are multiplied to the same bits in strips as in one piece."""


class Statistic(Protocol):
    """Accumulates inputs of one linear (or of several that read the same input)."""

    n_tokens: int

    @classmethod
    @abstractmethod
    def empty(cls, n_inputs: int, device: torch.device) -> Self:
        """The statistic of no tokens, for inputs of `n_inputs` features."""

    @abstractmethod
    def add(self, inputs: Tensor) -> None:
        """Add `inputs`, shape [tokens, in]."""

    @property
    @abstractmethod
    def second_moments(self) -> Tensor:
        """Sum of x_j^2 over all tokens, shape [in], float64."""

    @property
    @abstractmethod
    def sums(self) -> tuple[Tensor, ...]:
        """What is summed over tokens, as it lies in memory: processes that saw other tokens add theirs."""


class SecondMoments:
    """Sums of squares of each input feature: what Wanda and LOD need."""

    def __init__(self, sums: Tensor) -> None:
        self._sums = sums
        self.n_tokens = 0

    @classmethod
    def empty(cls, n_inputs: int, device: torch.device) -> Self:
        """The statistic of no tokens."""
        return cls(torch.zeros(n_inputs, dtype=torch.float64, device=device))

    def add(self, inputs: Tensor) -> None:
        """Add `inputs`, shape [tokens, in]: squares and sums of a few in float32, their sum in float64."""
        squares = inputs.float().square()
        n_tokens, n_inputs = squares.shape
        n_few = n_tokens // _FEW * _FEW
        few = squares[:n_few].reshape(-1, _FEW, n_inputs).sum(dim=1)  # [tokens, in] -> [tokens / 32, in]
        self._sums += few.sum(dim=0, dtype=torch.float64)
        self._sums += squares[n_few:].sum(dim=0, dtype=torch.float64)
        self.n_tokens += inputs.shape[0]

    @classmethod
    def of(cls, statistic: Statistic, device: torch.device) -> Self:
        """What `statistic` tells of them, on `device`; no copy of what is there already."""
        moments = cls(statistic.second_moments.to(device))
        moments.n_tokens = statistic.n_tokens
        return moments

    @property
    def second_moments(self) -> Tensor:
        """Sum of x_j^2 over all tokens, shape [in], float64."""
        return self._sums

    @property
    def sums(self) -> tuple[Tensor, ...]:
        """The sums of squares."""
        return (self._sums,)


class Gram:
    """X^T X of the inputs: the Hessian of the layer-wise output error, up to a factor of two.

    On the host the part above the diagonal is computed, in strips, and mirrored when somebody reads it: up to
    four tenths less work, and the bits of the whole product (MKL adds the same terms in the same order).
    """

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix
        self._is_mirrored = False
        self.n_tokens = 0

    @classmethod
    def empty(cls, n_inputs: int, device: torch.device) -> Self:
        """The statistic of no tokens."""
        return cls(torch.zeros(n_inputs, n_inputs, dtype=torch.float32, device=device))

    def add(self, inputs: Tensor) -> None:
        """Add `inputs`, shape [tokens, in], in float32."""
        inputs = inputs.float()
        for rows in self._strips():
            self._matrix[rows, rows.start :].addmm_(inputs[:, rows].t(), inputs[:, rows.start :])
        self._is_mirrored = False
        self.n_tokens += inputs.shape[0]

    @property
    def matrix(self) -> Tensor:
        """The sum over all tokens, shape [in, in], symmetric."""
        if not self._is_mirrored:
            for rows in self._strips():
                self._matrix[rows.stop :, rows] = self._matrix[rows, rows.stop :].t()
            self._is_mirrored = True
        return self._matrix

    def output_energy(self, weight_t: Tensor) -> Tensor:
        """What a linear with the transposed weight [in, out] gives, squared and summed over all tokens.

        Returns:
            w^T X^T X w of each output, shape [out], float64; what is above the diagonal counts twice.
        """
        energy = torch.zeros(weight_t.shape[1], dtype=torch.float64, device=weight_t.device)
        for rows in self._strips():
            products = self._matrix[rows, rows] @ weight_t[rows]
            products.addmm_(self._matrix[rows, rows.stop :], weight_t[rows.stop :], alpha=2.0)
            energy += products.mul_(weight_t[rows]).sum(dim=0, dtype=torch.float64)
        return energy

    def _strips(self) -> list[slice]:
        """Rows that are computed together."""
        width = len(self._matrix)
        if self._matrix.device.type != "cpu" or width % _ALIGNED:
            return [slice(0, width)]
        strip = _STRIP if width >= _WIDE else _NARROW_STRIP
        return [slice(first, min(first + strip, width)) for first in range(0, width, strip)]

    @property
    def second_moments(self) -> Tensor:
        """Sum of x_j^2 over all tokens, shape [in], float64."""
        return self._matrix.diagonal().double()

    @property
    def sums(self) -> tuple[Tensor, ...]:
        """The matrix, of which the part below the diagonal may be left out: nobody has read it yet."""
        return (self._matrix,)


class MomentsAndGram:
    """Both of the above: whoever reads second moments gets the same digits with a Gram matrix as without."""

    def __init__(self, moments: SecondMoments, gram: Gram) -> None:
        self._moments = moments
        self.gram = gram
        self.n_tokens = 0

    @classmethod
    def empty(cls, n_inputs: int, device: torch.device) -> Self:
        """The statistic of no tokens."""
        return cls(SecondMoments.empty(n_inputs, device), Gram.empty(n_inputs, device))

    def add(self, inputs: Tensor) -> None:
        """Add `inputs`, shape [tokens, in]."""
        self._moments.add(inputs)
        self.gram.add(inputs)
        self.n_tokens += inputs.shape[0]

    @property
    def second_moments(self) -> Tensor:
        """Sum of x_j^2 over all tokens, shape [in], float64."""
        return self._moments.second_moments

    @property
    def sums(self) -> tuple[Tensor, ...]:
        """Those of both."""
        return (*self._moments.sums, *self.gram.sums)
