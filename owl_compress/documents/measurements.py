"""What was measured of a model or counted in a folder, and what was predicted."""

from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, computed_field

from owl_compress.documents.document import Frozen, is_none
from owl_compress.documents.provenance import CalibrationRecord

Kernel = Literal["dense", "semi-structured"]
"""What the linears of a model run in: dense products, or torch's 2:4 semi-structured ones."""


class PerplexityRecord(Frozen):
    """Perplexity of one model on one text; `tokens` counts the predicted ones.

    `characters` and `bytes` (of UTF-8) count the text that exactly these stand for: neither a begin-of-text
    token nor what is cut off behind the last window, nor a token that is context alone, as the first of each
    window is. They are left out where the tokenizer does not tell which text a token stands for.
    """

    perplexity: PositiveFloat
    tokens: int
    windows: int
    seq_len: int
    dtype: str
    data: str
    bos: str
    n_params: int
    stride: int | None = Field(
        default=None,
        exclude_if=is_none,
        description="tokens from window to window, the last of each alone scored; None: no overlap",
    )
    protocol: str | None = Field(
        default=None, exclude_if=is_none, description="what all of this is known as, if it was named so"
    )
    characters: PositiveInt | None = Field(default=None, exclude_if=is_none)
    bytes: PositiveInt | None = Field(default=None, exclude_if=is_none)
    bits_per_character: float | None = Field(
        default=None, exclude_if=is_none, description="loss in bits / characters: compares across tokenizers"
    )
    bits_per_byte: float | None = Field(
        default=None, exclude_if=is_none, description="loss in bits / bytes: compares across tokenizers"
    )


class AgreementRecord(Frozen):
    """How nearly a model predicts what the dense model predicts, on the windows of one text.

    Both see the same tokens; compared are their distributions of the next token at every scored position.
    """

    kl: float = Field(ge=0, description="KL(dense ‖ model) in nats, mean over the positions; 0 is the same")
    top1: float = Field(
        ge=0, le=1, description="share of positions where both find the same token the likeliest"
    )
    positions: PositiveInt = Field(description="that were compared: the tokens scored")
    against: str = Field(description="the dense model: id, folder or file")
    data: str
    windows: PositiveInt
    seq_len: PositiveInt
    bos: str


class Evaluation(Frozen):
    """The same text before and after."""

    dense: PerplexityRecord
    compressed: PerplexityRecord
    agreement: AgreementRecord | None = Field(
        default=None, exclude_if=is_none, description="of the compressed model with the dense one, if asked"
    )


class Footprint(Frozen):
    """Counts of one model as it is now; a block that was cut counts with the widths it has left.

    A multiplication and an addition are two operations (FLOPs), all for one token of one sequence. Norms,
    activations and embeddings are left out: they are small beside the products counted here.
    """

    n_params: int = Field(description="tied or shared ones once")
    kv_cache_bytes_per_token: int | None = Field(
        description="sum over blocks of 2 * kv_heads * head_dim * bytes per value in the model's data type; "
        "None where the heads of a block are not known"
    )
    flops_per_token_blocks: int = Field(description="2 * weights of every linear in the blocks")
    flops_per_token_head: int | None = Field(description="2 * weights of the head; None if there is none")
    flops_per_token_attention: int | None = Field(
        description="sum over blocks of 4 * heads * head_dim * context_len: queries times keys, and their "
        "weights times values; None where the heads of a block are not known"
    )
    context_len: int = Field(description="tokens that each new token attends to, itself among them")


class FootprintChange(Frozen):
    """The same model before and after."""

    before: Footprint
    after: Footprint


class DamageRecord(Frozen):
    """How a plan from a sensitivity profile did: what was predicted, and what it came to.

    Damage is KL(dense ‖ compressed) in nats. `predicted`, the sum of the damages of single parts, is in the
    `measure` of the profile; `ratio` compares it with the damage on the windows of the profile, which tells
    how nearly damages add up. Before the plan was carried out, it was tried beside equal shares on windows of
    neither profile nor statistics, on few windows of statistics: `trial_damage` and `uniform_damage`. The
    plan is carried out where it had less damage by at least the `standard_error` of the difference.
    """

    measure: str
    predicted: float | None = Field(description="None where it is known of no part")
    damage: float = Field(description="of the compressed model, on windows of the profile")
    ratio: float | None = Field(description="predicted / damage; None for measures that are in no nats")
    trial_damage: float | None = Field(description="of the plan of the allocator; None if not tried")
    uniform_damage: float | None = Field(description="of equal shares, likewise")
    standard_error: float | None = Field(
        None, exclude_if=is_none, description="of the difference between the two, over these windows"
    )
    carried_out: Literal["plan", "uniform"] = Field(description="which of the two was chosen")
    windows: CalibrationRecord = Field(description="that `damage` was measured on")


class LatencyShape(Frozen):
    """What is timed: a batch of prompts of one length, then tokens one at a time."""

    batch_size: PositiveInt = 1
    prompt_len: PositiveInt = 128
    new_tokens: PositiveInt = 32


class PartLatency(Frozen):
    """Seconds of a part of the model: in the prefill, and in each decoded token."""

    prefill_seconds: float
    decode_seconds_per_token: float


class Speedup(Frozen):
    """Seconds of the first model divided by those of this one: 2 is twice as fast."""

    prefill: float
    decode: float
    blocks_prefill: float
    blocks_decode: float
    head_prefill: float | None
    head_decode: float | None


class LatencyRecord(Frozen):
    """Medians over `runs`, warm-up left out; tokens per second count the whole batch.

    Prefill is one forward pass over the prompts, with the logits of every position. Decode is each further
    token, greedily chosen, with the key-value cache. `blocks` is the time between the start of the first
    block and the end of the last, `head` that of the output projection (None where the model does not name
    one), both inside the same runs; what is left is embedding, final norm, masks and choosing the token. On a
    CPU that costs four looks at the clock in each pass; see `owl_compress.evaluation.stopwatch` for CUDA.
    Where decode is `compiled`, embedding, masks and final norm are one piece with the blocks and count as
    theirs.

    `peak_device_bytes` holds this model's weights, cache and activations, and of other models nothing (0 on a
    CPU). `weight_bytes` are its parameters and buffers, `peak_host_bytes` is of the whole process since its
    start. `threads` are those of a CPU, `speedup` compares with the first of the models timed in turn.
    """

    name: str
    kernel: Kernel
    compiled: bool = False
    device: str
    threads: int | None
    dtype: str
    shape: LatencyShape
    runs: int
    n_params: int
    prefill_seconds: float
    decode_seconds_per_token: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    blocks: PartLatency
    head: PartLatency | None
    speedup: Speedup | None = None
    weight_bytes: int
    peak_device_bytes: int
    peak_host_bytes: int
    converted_linears: int = 0


class Violation(Frozen):
    """One linear that holds what it may not: in how many groups, and the first of them.

    `row` and `first_input` say where that group begins; without an N:M pattern a group is a whole linear.
    `what` says what is wrong where that is not that too many weights are kept.
    """

    linear: str
    groups: int
    violating: int
    row: int
    first_input: int
    kept: int
    allowed: int
    what: str = ""

    @classmethod
    def of(cls, linear: str, what: str, kept: int, allowed: int) -> Self:
        """A violation by a whole linear."""
        return cls(
            linear=linear, groups=1, violating=1, row=0, first_input=0, kept=kept, allowed=allowed, what=what
        )

    @property
    def words(self) -> str:
        """One clause: what, where, how much."""
        if self.what:
            return f"{self.linear} {self.what}"
        return (
            f"{self.linear}, {self.kept} instead of {self.allowed} from row {self.row}, "
            f"input {self.first_input}"
        )


class Verification(Frozen):
    """What a count of the saved tensors found; `summary` says in words what was counted and what was not."""

    pattern: str
    linears: int
    groups: int
    violations: tuple[Violation, ...]
    skipped: int = 0
    summary: str = ""

    @computed_field  # type: ignore[prop-decorator]  # pydantic's own way of decorating a property
    @property
    def ok(self) -> bool:
        """Whether every group keeps no more than it may."""
        return not self.violations


class StageNeeds(Frozen):
    """What one stage takes at its peak, in bytes: of the host's memory, of the device's, and of the disk.

    The process itself, some 400 MiB with torch and transformers, is not counted. The device is the host's own
    memory where there is no other. `seconds` are what its forward passes may take, where that was probed.
    """

    stage: str
    host_bytes: int
    device_bytes: int
    disk_bytes: int
    seconds: float | None = Field(default=None, exclude_if=is_none)


class Prediction(Frozen):
    """Sizes in bytes; of the walk, or of taking gradients before it, whichever needs more.

    `working_bytes` is needed besides the model itself, on the device; `activation_bytes` are kept from block
    to block.
    """

    checkpoint_bytes: int
    n_weights_kept: int
    working_bytes: int
    activation_bytes: int
