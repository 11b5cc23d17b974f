"""The options of a recipe one by one: type, topic and help; see `recipe_values` for what each may be."""

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from owl_compress.documents.document import Frozen
from owl_compress.documents.protocols import ProtocolName
from owl_compress.documents.provenance import StatisticsSource
from owl_compress.documents.recipe_values import (
    Bytes,
    Integers,
    Levels,
    MethodNames,
    MethodOptions,
    Names,
    Pattern,
    Pins,
    PlaceName,
    Seconds,
    Share,
    Speedup,
    Sublayers,
    Tasks,
    Tokens,
)
from owl_compress.documents.sensitivity import Measure, PartKind
from owl_compress.documents.units import Count, Name, PositiveCount, Sublayer

AVERAGES = ("sparsity", "nm", "prune_ratio", "bits")
"""Budgets that say what is kept on average."""

LIMITS = ("size", "speedup", "latency")
"""Budgets that say what the outcome may cost; the average follows from the model."""

OffloadName = Literal["auto", "none", "host", "disk"]
"""Where the weights of a model wait while nobody works on them."""

ActivationsName = Literal["auto", "device", "host", "disk"]
"""Where the hidden states of all sequences wait between two blocks."""

BUDGETS = (*AVERAGES, *LIMITS)
"""The budget options, of which a request names exactly one."""

DEFAULT_SAMPLES = 128
"""Calibration sequences, as in the published tables."""

DEFAULT_MEASURE_SAMPLES = 16
"""Sequences that fix an OWL plan well enough (benchmarks/plan_stability.py), and statistics for trials."""


class Topic(StrEnum):
    """What an option of a recipe is about: help shows them so, and a command takes some of these topics."""

    MODEL = "Model"
    BUDGET = "Budget (exactly one)"
    ALLOCATOR = "Allocator"
    SHAPE = "Which linears, within what bounds"
    PLAN = "Plan"
    BACKEND = "Backend"
    STORAGE = "Storage"
    TEXT = "Calibration text"
    MEASURING = "Measuring"
    SENSITIVITY = "Sensitivity"
    EVALUATION = "Evaluation text"
    TASKS = "Tasks"
    SEED = "Seed"
    MACHINE = "Machine"


def _on(topic: Topic, default: Any, text: str, **more: Any) -> Any:
    """A field of a recipe, with its topic and its help."""
    return Field(default=default, description=text, json_schema_extra={"topic": topic.value}, **more)


class RecipeFields(Frozen):
    """Every option that any method may be run with; what goes together, `Recipe` says.

    None means that the allocator, the backend or the model decides. Fractions, never percent.
    """

    model: PlaceName = _on(
        Topic.MODEL, ..., "Hub id, checkpoint folder, .gguf file, or 'builtin' (SmolLM2-135M)."
    )
    revision: Name | None = _on(Topic.MACHINE, None, "Branch, tag or commit on the hub.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = _on(
        Topic.MACHINE, "auto", "auto (the checkpoint's), bfloat16, float16, float32."
    )

    sparsity: Share | None = _on(Topic.BUDGET, None, "Share of weights removed, 0.7 = 70 %.")
    nm: Pattern | None = _on(Topic.BUDGET, None, "N:M, N weights KEPT on average of every M: 3:8, 2.5:8.")
    prune_ratio: Share | None = _on(Topic.BUDGET, None, "Share of block parameters removed (structured).")
    bits: float | None = _on(Topic.BUDGET, None, "Average bits per weight.")
    bit_choices: Integers | None = _on(Topic.BUDGET, None, "Widths to mix, for --bits or --size: 2,3,4.")

    size: Bytes | None = _on(
        Topic.BUDGET,
        None,
        "With `run`, for bits and widths: most bytes of all weight files: 300MB, 0.3GB, 250MiB, or bytes.",
    )
    speedup: Speedup | None = _on(
        Topic.BUDGET, None, "With `run`, for widths: how many times as fast as dense, by --cost-table."
    )
    latency: Seconds | None = _on(
        Topic.BUDGET, None, "With `run`, for widths: most time, by --cost-table: 0.120 (seconds) or 120ms."
    )
    cost_table: PlaceName | None = _on(
        Topic.BUDGET, None, "With --speedup or --latency: what `eval --latency --cost-table FILE` wrote."
    )
    phase: Literal["prefill", "decode"] | None = _on(
        Topic.BUDGET,
        None,
        "What --speedup and --latency are of: 'prefill' (default), all prompts; 'decode', each token after.",
    )

    allocator: Name | None = _on(Topic.ALLOCATOR, None, "Who divides the budget.")
    plan: PlaceName | None = _on(Topic.PLAN, None, "A plan to carry out, instead of allocating one.")
    candidates: MethodNames | None = _on(
        Topic.ALLOCATOR,
        None,
        "With --allocator auto: whose plans are tried, owl,alpha; uniform and linear-depth always are.",
        min_length=1,
    )
    solver: Literal["proportional", "optimal"] | None = _on(
        Topic.ALLOCATOR, None, "On a grid: 'proportional' (default) or 'optimal'."
    )
    granularity: Literal["block", "linear"] | None = _on(
        Topic.ALLOCATOR, None, "'block' or 'linear': what gets a budget of its own."
    )
    low: float | None = _on(Topic.SHAPE, None, "No budget below this (what is kept).")
    high: float | None = _on(Topic.SHAPE, None, "No budget above this (what is kept).")
    set_: Pins = _on(Topic.SHAPE, {}, "NAME=VALUE: pin a block or linear (or a pattern).", alias="set")
    skip: Names = _on(Topic.SHAPE, (), "Leave a block or linear (or a pattern) alone.")
    no_tie: bool = _on(
        Topic.SHAPE, False, "Let q/k/v and gate/up differ in bits; servers that fuse them refuse that."
    )
    parts: Sublayers = _on(
        Topic.SHAPE,
        tuple(Sublayer),
        "Sublayers that are compressed: attention,mlp or one of them.",
        min_length=1,
    )
    protect_first: Count = _on(Topic.SHAPE, 0, "Leave this many blocks at the start alone.")
    protect_last: Count = _on(Topic.SHAPE, 0, "Leave this many blocks at the end alone.")

    backend: Name = _on(Topic.BACKEND, ..., "Who carries the plan out.")
    statistics: StatisticsSource | None = _on(
        Topic.BACKEND,
        None,
        "Inputs seen by the backend: 'sequential' (behind compressed blocks), 'true-sequential' (behind "
        "compressed linears of the same block, too) or 'dense' (the dense model's, faster); by default what "
        "the backend is known to lose nothing by: 'true-sequential' for gptq, 'dense' for wanda up to 60 %.",
    )
    options: MethodOptions = Field(default={}, description="of allocator and backend")
    format_: Name | None = _on(
        Topic.STORAGE, None, "'packed' integers (default of codes) or 'dense' weights.", alias="format"
    )
    export: Name | None = _on(Topic.STORAGE, None, "Write the format of other software: decilm (Llama-like).")

    calib: PlaceName = _on(
        Topic.TEXT,
        "c4",
        "Calibration text: .txt, .jsonl, .csv, .parquet, a folder of these, 'wikitext2', 'ptb', 'c4', "
        "'builtin', or a hub set.",
    )
    text_field: Name = _on(Topic.TEXT, "text", "Field or column with the text in files of records.")
    chat_template: bool = _on(
        Topic.TEXT, False, "Write conversations (field 'messages') as the tokenizer's chat template does."
    )
    samples: PositiveCount = _on(Topic.TEXT, DEFAULT_SAMPLES, "Calibration sequences.")
    measure_samples: PositiveCount | None = _on(
        Topic.MEASURING, None, "How many of --samples to measure importance on; default 16."
    )
    profile: PlaceName | None = _on(
        Topic.SENSITIVITY, None, "A profile that `sensitivity` wrote, for an allocator that reads damage."
    )
    part: PartKind | None = _on(
        Topic.SENSITIVITY,
        None,
        "Compressed at a time: block (default for density), sublayer (width), tied (bits), role, linear.",
    )
    levels: Levels | None = _on(
        Topic.SENSITIVITY,
        None,
        "What parts are compressed to: shares KEPT 0.2,0.3,0.5, or N:M 2:8,3:8, or bits 2,3,4.",
        min_length=1,
    )
    measure: Measure | None = _on(
        Topic.SENSITIVITY,
        None,
        "What damage is: kl (default) or loss of the output; output-error or fisher of the block, cheaper.",
    )
    damage_samples: PositiveCount | None = _on(
        Topic.SENSITIVITY, None, "Windows that damage is measured on, apart from --samples; default 4."
    )
    damage_len: PositiveCount | None = _on(Topic.SENSITIVITY, None, "Tokens of each of them; default 128.")
    damage_data: PlaceName | None = _on(
        Topic.SENSITIVITY, None, "Text that they are drawn from; default that of --calib."
    )
    positions: PositiveCount | None = _on(
        Topic.SENSITIVITY, None, "Positions in them whose predictions are compared; default 256."
    )
    max_cost: Tokens | None = _on(
        Topic.SENSITIVITY,
        None,
        "Most forward tokens, 60000 or 60k: takes fewer windows, levels, candidates or rounds, as far as "
        "these are left open.",
    )
    seq_len: PositiveCount | None = _on(
        Topic.TEXT, None, "Tokens per sequence; default 2048 or the model's maximum."
    )
    sampling: Literal["first", "random"] = _on(
        Topic.TEXT, "random", "'first' (consecutive) or 'random' windows."
    )
    seed: int = _on(Topic.SEED, 0, "Seed of the sampling, and of methods that draw.", ge=-(2**63), lt=2**63)
    bos: Literal["auto", "every", "first", "never"] = _on(
        Topic.TEXT, "auto", "BOS token: auto, every (window), first (of the text), never."
    )
    data: PlaceName | None = _on(Topic.EVALUATION, None, "Evaluation text; perplexity before and after.")
    max_windows: PositiveCount | None = _on(Topic.EVALUATION, None, "Evaluate on the first K windows only.")
    stride: PositiveCount | None = _on(
        Topic.EVALUATION, None, "Overlapping windows, each so many tokens on; only these are scored in it."
    )
    protocol: ProtocolName | None = _on(
        Topic.EVALUATION, None, "'paper': WikiText-2 (raw, test), 2048 tokens, no overlap, BOS first."
    )
    agreement: bool = _on(
        Topic.EVALUATION, False, "With --data: KL divergence from, and top-1 agreement with, the dense model."
    )

    tasks: Tasks | None = _on(
        Topic.TASKS,
        None,
        "Accuracy on tasks of lm-eval: boolq,rte or 'owl7' (the seven of the OWL paper).",
        min_length=1,
    )
    task_file: Names = _on(
        Topic.TASKS, (), "Accuracy on samples of your own: .jsonl with question, choices and label."
    )
    task_path: PlaceName | None = _on(
        Topic.TASKS, None, "Task files of lm-eval's kind (.yaml), a folder or one; functions they name run."
    )
    limit: PositiveCount | None = _on(Topic.TASKS, None, "The first N samples of each task only.")
    num_fewshot: Count | None = _on(
        Topic.TASKS, None, "Solved samples before each question; default what the task says, mostly 0."
    )

    batch_size: PositiveCount = _on(Topic.MACHINE, 1, "Sequences per forward pass.")
    device: str = _on(Topic.MACHINE, "auto", "auto, cpu, cuda or cuda:N.")
    offload: OffloadName = _on(
        Topic.MACHINE,
        "auto",
        "Where weights wait: 'none' (on the device), 'host' (in memory), 'disk' (in the model's files, read "
        "a block at a time), 'auto' (the first of these with room for them).",
    )
    activations: ActivationsName = _on(
        Topic.MACHINE,
        "auto",
        "Where hidden states wait between blocks: 'device', 'host', 'disk' (a temporary file, in TMPDIR), "
        "'auto' (the first of these with room for them).",
    )
    partial: bool = _on(
        Topic.MACHINE, False, "Go on where less than half of the weights in the blocks can get a budget."
    )
    strict: bool = _on(Topic.MACHINE, False, "Treat any fallback as an error.")

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_flag(cls, value: Any, field: ValidationInfo) -> Any:
        expected = cls.model_fields[field.field_name or ""].annotation
        if isinstance(value, bool) and expected is not bool:
            raise ValueError("is no flag: it takes a value")
        return value
