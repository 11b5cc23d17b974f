"""Evaluation protocols under which perplexities are published: a name for every option that matters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from owl_compress.errors import nearest

ProtocolName = Literal["paper"]

_OPEN: Mapping[str, Any] = {
    "data": None,
    "seq_len": None,
    "bos": "auto",
    "stride": None,
    "max_windows": None,
    "text_field": "text",
    "chat_template": False,
}
"""The options that a protocol decides, and what they are where nobody has decided."""


@dataclass(frozen=True)
class EvaluationProtocol:
    """Options that go together, under their names in a recipe; those it does not name stay undecided."""

    decided: Mapping[str, Any]
    text: str


PROTOCOLS: Mapping[ProtocolName, EvaluationProtocol] = {
    "paper": EvaluationProtocol(
        {"data": "wikitext2", "seq_len": 2048, "bos": "first"},
        "WikiText-2 (raw, test split), its rows joined with two line breaks and tokenised once, with the "
        "special tokens that the tokenizer adds by itself; windows of 2048 tokens that do not overlap, the "
        "incomplete last one dropped. So do the published scripts of GPTQ, SparseGPT, Wanda and OWL.",
    )
}


def with_protocol(options: Mapping[str, Any]) -> dict[str, Any]:
    """The `options`, with all that the protocol among them decides; without one they come back as they are.

    Raises:
        ValueError: an unknown protocol, or an option that asks for something else than the protocol does.
    """
    settled = dict(options)
    name = options.get("protocol")
    if name is None:
        return settled
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}: {nearest(str(name), PROTOCOLS)}")
    decided = PROTOCOLS[name].decided
    for option, undecided in _OPEN.items():
        wanted = decided.get(option, undecided)
        given = options.get(option, undecided)
        if given not in (undecided, wanted):
            shown = option.replace("_", "-")
            stands = f"--{shown} {wanted}" if option in decided else f"no --{shown}"
            raise ValueError(
                f"protocol {name} stands for {stands}, and {shown} is {given}: drop it, or the protocol"
            )
        if option in decided:
            settled[option] = wanted
    return settled
