"""What `eval` is told about timing: its options, and what they ask for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from owl_compress.consent import Consent
from owl_compress.documents.measurements import Kernel
from owl_compress.errors import RequestError
from owl_compress.options import build_from, option, options_of

if TYPE_CHECKING:  # help must not wait for torch
    from owl_compress.pipeline.timing import TimingOptions


@dataclass(frozen=True)
class DenseOptions:
    """The dense model that another is held against."""

    against: str | None = option(
        None,
        "Also hold the predictions against those of this dense model: KL divergence and agreement on the "
        "likeliest token. 'original' is what a folder of ours was made from. With --latency it is timed in "
        "turn with MODEL, as is without --against the original of a folder with heads or channels removed.",
    )
    against_trust_remote_code: bool = option(
        False, "As --trust-remote-code, for the model that --against names."
    )
    against_allow_pickle: bool = option(False, "As --allow-pickle, for the model that --against names.")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "DenseOptions":
        """The options among those that the user typed."""
        found: DenseOptions = build_from(cls, "eval", given)
        return found

    @property
    def consent(self) -> Consent:
        """What the model may run while it loads."""
        return Consent(self.against_trust_remote_code, self.against_allow_pickle)


_NOBODY = DenseOptions()


@dataclass(frozen=True)
class LatencyOptions:
    """The options, as a user gives them; all others say how `latency` is measured."""

    latency: bool = option(False, "Also time prefill and decode.")
    kernel: Kernel = option(
        "dense", "With --latency: 'dense' (default), or 'semi-structured' (2:4, CUDA) against dense."
    )
    compiled: bool = option(
        False,
        "With --latency: decode through torch.compile with a static cache, all models alike. The first pass "
        "compiles, a minute or more.",
        name="compile",
    )
    cost_table: str | None = option(
        None,
        "With --latency: also time every part of the blocks at several widths, and write the times here.",
    )
    cost_widths: str | None = option(
        None, "With --cost-table: shares of heads and channels to time besides all; 0.125,0.25,0.5,0.75."
    )
    prompt_len: int = option(128, "With --latency: tokens of each prompt.", at_least=1)
    new_tokens: int = option(32, "With --latency: tokens decoded after it.", at_least=1)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "LatencyOptions":
        """The options among those that the user typed.

        Raises:
            RequestError: a value that cannot be meant, or one of timing where nothing is timed.
        """
        own = {one.name: one for one in options_of(cls) if one.name in given}
        found: LatencyOptions = build_from(cls, "eval", given)
        if own and not found.latency:
            name = next(iter(own.values())).shown_name
            raise RequestError(f"--{name} says how --latency is measured: add --latency, or drop it")
        return found

    @property
    def widths(self) -> tuple[float, ...] | None:
        """The shares that a cost table is to be measured at; None where there is to be none.

        Raises:
            RequestError: words that are no shares, or what a cost table is not measured with.
        """
        if self.cost_table is None:
            if self.cost_widths is not None:
                raise RequestError("--cost-widths goes with --cost-table: name the file to write, or drop it")
            return None
        if self.compiled or self.kernel != "dense":
            raise RequestError(
                "--cost-table is measured as models run by default: drop --compile and --kernel"
            )
        from owl_compress.pipeline.timing import cost_widths

        return cost_widths(self.cost_widths)

    def timing(self, device: str, batch_size: int, against: DenseOptions = _NOBODY) -> "TimingOptions | None":
        """What is to be timed, and in turn with what; None if nothing is.

        Raises:
            RequestError: see `TimingOptions`.
        """
        if not self.latency:
            return None
        from owl_compress.device import resolve_device
        from owl_compress.pipeline.timing import latency_shape, timing_options

        shape = latency_shape(batch_size, self.prompt_len, self.new_tokens)
        return timing_options(
            resolve_device(device),
            shape,
            self.kernel,
            against.against,
            compiled=self.compiled,
            against_consent=against.consent,
        )
