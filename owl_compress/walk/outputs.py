"""What a model predicts: the distribution of the next token at some positions, held against another's."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import torch
from torch import Tensor, nn

from owl_compress.data.windows import TokenWindows
from owl_compress.errors import RequestError
from owl_compress.models.state import evaluation_mode
from owl_compress.models.structure import BlockSite, ModelStructure
from owl_compress.progress import SILENT, Progress
from owl_compress.walk.blocks import BlockWalk
from owl_compress.walk.capture import Tail

States = Sequence[Tensor]
"""Hidden states behind the last block by batch, each of shape [batch, seq_len, hidden]."""

_OfOther = Callable[[Tensor], Tensor]
"""Log-probabilities [positions, vocabulary] -> what is taken of them, [positions]."""

_Comparison = Callable[[Tensor, Tensor], _OfOther]
"""Of a log-distribution [positions, vocabulary] and the next tokens [positions]: what is taken of others."""

_HOST = torch.device("cpu")
_LOGITS_AT_ONCE = 2**23
"""Logits of one model that are held at a time: 32 MiB in float32."""

_COMPARED_AT_ONCE = 2**18
"""Of these, that the host compares at a time: what it works out along the way stays in its cache."""
_PROBED = 16
_TOLERANCE = 1e-2
"""Of the largest logit or logarithm: rounding, on whatever device."""
NAN_PREDICTED = (
    "the predictions hold NaN: the model's weights are broken, or overflow its data type; check the "
    "checkpoint, or use --dtype float32"
)
"""What is said of them."""


def final_states(
    model: nn.Module,
    structure: ModelStructure,
    batches: Sequence[Tensor],
    device: torch.device,
    progress: Progress = SILENT,
) -> list[Tensor]:
    """Hidden states behind the last block for each of the `batches` of token ids, on the host."""
    walk = BlockWalk(model, structure, batches, device=device, keep_on=_HOST)
    states: list[Tensor] = []
    with closing(walk.visits(progress, "running blocks")) as visits:
        for visit in visits:
            visit.advance()
            states = list(walk.hidden)
    return states


def spread_positions(seq_len: int, count: int) -> Tensor:
    """`count` positions of a window at equal distances, int64, all of which have a next token in it.

    The first eighth is left out: what a model predicts from a handful of tokens says little of it.

    Raises:
        RequestError: windows of a single token.
    """
    if seq_len < 2:
        raise RequestError("windows of 1 token hold no prediction to compare: take longer ones")
    first, last = seq_len // 8, seq_len - 2
    count = min(count, last - first + 1)
    return torch.linspace(first, last, count).round().long()


def positions_of(windows: TokenWindows, count: int) -> Tensor:
    """Positions of each window, about `count` over all of them; see `spread_positions`."""
    return spread_positions(windows.record.seq_len, max(1, count // len(windows)))


def n_compared(windows: TokenWindows, count: int) -> int:
    """How many these are over all windows: none of them has more than it has predictions."""
    return len(windows) * len(positions_of(windows, count))


def are_alike(found: Tensor, expected: Tensor) -> bool:
    """Whether two sets of predictions are the same but for rounding; minus infinity may be among both."""
    scale = float(expected[expected.isfinite()].abs().amax())
    return torch.allclose(found, expected, rtol=0.0, atol=_TOLERANCE * max(scale, 1.0))


def divergence(own: Tensor, other: Tensor) -> Tensor:
    """KL(own ‖ other) in nats at each position: log-probabilities [positions, vocabulary] -> [positions]."""
    return divergence_from(own)(other)


def divergence_from(own: Tensor) -> _OfOther:
    """The same as a function of `other`, for several of them; half of the work is done for all at once.

    The sum over tokens is of p (log p - log q) + q - p. The last two add up to nothing, but for the rounding
    of both normalisations: that shifts all logarithms of a position alike, which the first term alone would
    take for divergence, 1e-7 of it in float32.
    """
    share = own.exp()
    ruled_out = share == 0
    # A token without a share has none in the sum, though logarithms of zero may meet there.
    is_any_out = bool(ruled_out.any())

    def of(other: Tensor) -> Tensor:
        difference = own - other
        if is_any_out:
            difference.masked_fill_(ruled_out, 0.0)
        return difference.mul_(share).add_(other.exp().sub_(share)).sum(dim=1)

    return of


class Head:
    """What a model makes of hidden states behind its last block, position by position.

    Logits are computed in pieces, of which the caller holds no more than `chunk_size` positions at a time:
    `_LOGITS_AT_ONCE` logits. Embeddings, final norm and head are the model's as they are when asked.

    Args:
        model: the whole model.
        blocks: its blocks.
        token_ids: any, of shape [1, seq_len].
        states: what the last block returns for a window, [seq_len, hidden].
        remedy: what a refusal advises.

    Raises:
        RequestError: what the model does behind its last block looks at more than one position, or overflows.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[BlockSite],
        token_ids: Tensor,
        states: Tensor,
        remedy: str,
    ) -> None:
        inside = {id(parameter) for site in blocks for parameter in site.module.parameters()}
        self._beside = next(one for one in model.parameters() if id(one) not in inside)
        self._ids = token_ids
        with evaluation_mode(model), torch.no_grad():
            self._tail = Tail(model, blocks, token_ids.to(self._beside.device))
            self._check_positions_stand_alone(states, remedy)
            self.vocabulary = self.logits(states[:1]).shape[-1]

    @property
    def device(self) -> torch.device:
        """Where logits are computed."""
        return self._beside.device

    @property
    def chunk_size(self) -> int:
        """Positions to ask for at once."""
        return int(max(1, min(_LOGITS_AT_ONCE // self.vocabulary, self._ids.shape[1])))

    def log_probabilities(self, states: Tensor) -> Tensor:
        """[positions, hidden] -> [positions, vocabulary], float32; the caller sees to `evaluation_mode`."""
        return torch.log_softmax(self.logits(states).float(), dim=-1)

    def logits(self, states: Tensor) -> Tensor:
        """[positions, hidden] -> [positions, vocabulary]: as one window, whatever its tokens."""
        ids = self._ids[:, : len(states)]
        return self._tail.logits(ids, states[None].to(self._beside.device))[0]

    def _check_positions_stand_alone(self, states: Tensor, remedy: str) -> None:
        """Refuse a model whose logits change with the order in which positions are asked for."""
        probe = states[-min(_PROBED, len(states)) :]
        forth, back = self.logits(probe).float(), self.logits(probe.flip(0)).flip(0).float()
        if bool(forth.log_softmax(dim=-1).isnan().any()):  # so it is where a logit is infinite
            raise RequestError(NAN_PREDICTED)
        if not are_alike(back, forth):
            raise RequestError(
                "what this model does behind its last block looks at more than one position at a time: "
                f"{remedy}"
            )


class OutputDistribution:
    """The next-token distribution of a model at some positions of some windows, to hold others against.

    It is kept as the hidden states that it follows from, and recomputed in pieces, unless it is small: at no
    time are there more logits than `_LOGITS_AT_ONCE` of each of two models. Embeddings, final norm and head
    are the model's as they are when asked: these must stay.

    Args:
        model: the whole model; what is compared shares everything behind its last block.
        structure: its blocks.
        windows: token windows, shape [windows, seq_len].
        states: what the model's last block returns for them.
        positions: of each window, int64 [positions]; every one has a next token in the window.

    Raises:
        RequestError: what the model does behind its last block looks at more than one position.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: ModelStructure,
        windows: TokenWindows,
        states: States,
        positions: Tensor,
    ) -> None:
        self._model = model
        self._positions = positions
        self._states = self._at_positions(states)  # [windows * positions, hidden]
        self._targets = windows.ids[:, positions + 1].flatten()  # [windows * positions]
        token_ids = windows.ids.flatten()[: windows.record.seq_len][None]  # [1, seq_len]
        remedy = "damage to its output cannot be measured; use --measure output-error"
        self._head = Head(model, structure.blocks, token_ids, states[0][0], remedy)
        self._kept: dict[tuple[_Comparison, torch.device, int], list[_OfOther]] = {}

    @property
    def n_positions(self) -> int:
        """Positions that are compared, over all windows."""
        return len(self._targets)

    def divergences(self, others: Sequence[States]) -> list[float]:
        """KL(this ‖ other) in nats, mean over the positions, for each of the `others`."""
        return self._means(others, _of_both)

    def divergences_by_window(self, other: States) -> list[float]:
        """KL(this ‖ other) in nats, mean over the positions of each window."""
        (compared,) = self._compared([other], _of_both)
        return [float(one) for one in compared.reshape(-1, len(self._positions)).mean(dim=1)]

    def losses(self, others: Sequence[States]) -> list[float]:
        """Negative log-likelihood of the next token beyond this model's, mean over the positions."""
        return self._means(others, _loss_beyond)

    def _means(self, others: Sequence[States], of: _Comparison) -> list[float]:
        return [float(compared.sum()) / self.n_positions for compared in self._compared(others, of)]

    def _compared(self, others: Sequence[States], of: _Comparison) -> list[Tensor]:
        """What is taken of this and each of the `others`, float64 [windows * positions]."""
        found: list[list[Tensor]] = [[] for _ in others]
        selected = [self._at_positions(states) for states in others]
        size = self._head.chunk_size
        with evaluation_mode(self._model), torch.no_grad():
            for start in range(0, self.n_positions, size):
                chosen = slice(start, start + size)
                comparisons = self._comparisons(of, chosen)
                for pieces, states in zip(found, selected, strict=True):
                    theirs = self._log_probabilities(states[chosen])
                    for compare, other in zip(comparisons, theirs, strict=True):
                        pieces.append(compare(other).to(_HOST, torch.float64))
        return [torch.cat(pieces) for pieces in found]

    def _comparisons(self, of: _Comparison, chosen: slice) -> list[_OfOther]:
        """What others are held against at the positions `chosen`; kept where logits of all of them may be."""
        key = of, self._head.device, chosen.start
        if (known := self._kept.get(key)) is not None:
            return known
        own = list(self._log_probabilities(self._states[chosen]))
        targets = torch.split(self._targets[chosen].to(own[0].device), len(own[0]))
        made = list(map(of, own, targets))
        if self.n_positions * self._head.vocabulary <= _LOGITS_AT_ONCE:
            self._kept[key] = made
        return made

    def _at_positions(self, states: States) -> Tensor:
        """The states [windows, seq_len, hidden] at the positions, [windows * positions, hidden]."""
        return torch.cat([batch[:, self._positions.to(batch.device)].flatten(0, 1) for batch in states])

    def _log_probabilities(self, states: Tensor) -> Iterator[Tensor]:
        """[positions, hidden] -> [some positions, vocabulary], float32, until all positions are through."""
        logits = self._head.logits(states)
        some = max(1, _COMPARED_AT_ONCE // self._head.vocabulary) if logits.device == _HOST else len(logits)
        return (torch.log_softmax(piece.float(), dim=-1) for piece in torch.split(logits, some))


def _of_both(own: Tensor, _targets: Tensor) -> _OfOther:
    return divergence_from(own)


def _loss_beyond(own: Tensor, targets: Tensor) -> _OfOther:
    return lambda other: (own - other).gather(1, targets[:, None])[:, 0]
