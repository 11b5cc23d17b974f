"""Options that several commands share, each written once."""

from pathlib import Path
from typing import Annotated

import typer

_BUDGET, _ALLOCATOR, _TEXT, _MACHINE = "Budget (exactly one)", "Allocator", "Text", "Machine"
_QUANTIZATION, _STRUCTURE, _LATENCY = "Quantization", "Structured removal", "Latency"

Model = Annotated[
    str, typer.Argument(help="Hub id, checkpoint folder, .gguf file, or 'builtin' (SmolLM2-135M).")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write; must be new or empty.")]
OptionalOut = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder to write; must be new or empty.")
]
OptionalOutFile = Annotated[Path | None, typer.Option("--out", "-o", help="File to write.")]
OutFile = Annotated[Path, typer.Option("--out", "-o", help="File to write.")]

Sparsity = Annotated[
    float | None, typer.Option(help="Share of weights removed, 0.7 = 70 %.", rich_help_panel=_BUDGET)
]
Nm = Annotated[
    str | None,
    typer.Option(help="N:M, N weights KEPT on average of every M: 3:8, 2.5:8.", rich_help_panel=_BUDGET),
]
PruneRatio = Annotated[
    float | None,
    typer.Option(help="Share of block parameters removed (structured).", rich_help_panel=_BUDGET),
]
Bits = Annotated[float | None, typer.Option(help="Average bits per weight.", rich_help_panel=_BUDGET)]
BitChoices = Annotated[
    str | None, typer.Option(help="Widths to mix, for --bits: 2,3,4.", rich_help_panel=_BUDGET)
]

AllocatorName = Annotated[
    str,
    typer.Option(
        "--allocator",
        help="Who divides the budget: uniform, owl, owl-inverse, linear-depth, er, er-plus, global, random, "
        "weight-l1, dlp.",
        rich_help_panel=_ALLOCATOR,
    ),
]
Metric = Annotated[
    str | None,
    typer.Option(help="Metric the allocator ranks by, such as lod@5.", rich_help_panel=_ALLOCATOR),
]
Lam = Annotated[
    float | None,
    typer.Option(
        help="How far budgets may move from the average; owl's default is 0.08.", rich_help_panel=_ALLOCATOR
    ),
]
OwlLaw = Annotated[
    str | None,
    typer.Option(help="'published' (range 2 lam) or 'bounded' (within lam).", rich_help_panel=_ALLOCATOR),
]
Granularity = Annotated[
    str | None,
    typer.Option(help="'block' or 'linear': what gets a budget of its own.", rich_help_panel=_ALLOCATOR),
]
SolverName = Annotated[
    str | None,
    typer.Option("--solver", help="On a grid: 'proportional' or 'optimal'.", rich_help_panel=_ALLOCATOR),
]
Low = Annotated[
    float | None, typer.Option(help="No budget below this (what is kept).", rich_help_panel=_ALLOCATOR)
]
High = Annotated[
    float | None, typer.Option(help="No budget above this (what is kept).", rich_help_panel=_ALLOCATOR)
]
Pins = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="NAME=VALUE: pin a block or linear (or a pattern).", rich_help_panel=_ALLOCATOR
    ),
]
Skips = Annotated[
    list[str] | None,
    typer.Option("--skip", help="Leave a block or linear (or a pattern) alone.", rich_help_panel=_ALLOCATOR),
]

NoTie = Annotated[
    bool,
    typer.Option(
        "--no-tie",
        help="Let q/k/v and gate/up differ in bits; servers that fuse them refuse that.",
        rich_help_panel=_ALLOCATOR,
    ),
]

BackendName = Annotated[
    str,
    typer.Option(
        "--backend",
        help="Who carries the plan out: magnitude, wanda, sparsegpt; for widths structured; for bits rtn, "
        "gptq, gptqmodel.",
    ),
]
Scope = Annotated[
    str | None, typer.Option(help="Comparison group of the pruning scores: row, linear or model.")
]

GroupSize = Annotated[
    str | None,
    typer.Option(
        help="Inputs that share a scale: 64, 128, or none (one scale per output).",
        rich_help_panel=_QUANTIZATION,
    ),
]
Asymmetric = Annotated[
    bool, typer.Option("--asymmetric", help="Scales with a zero point.", rich_help_panel=_QUANTIZATION)
]
Mse = Annotated[
    bool,
    typer.Option("--mse", help="Search scales of least squared error.", rich_help_panel=_QUANTIZATION),
]
ActivationOrder = Annotated[
    bool,
    typer.Option("--activation-order", help="gptq: largest inputs first.", rich_help_panel=_QUANTIZATION),
]
NoGroupOrder = Annotated[
    bool,
    typer.Option(
        "--no-group-order",
        help="gptq: visit columns as they lie, as published, not the groups that matter most first.",
        rich_help_panel=_QUANTIZATION,
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="'packed' integers (default) or 'dense' dequantised weights.",
        rich_help_panel=_QUANTIZATION,
    ),
]

Parts = Annotated[
    str,
    typer.Option(
        help="Sublayers that are compressed: attention,mlp or one of them.", rich_help_panel=_ALLOCATOR
    ),
]
ProtectFirst = Annotated[
    int, typer.Option(help="Leave this many blocks at the start alone.", rich_help_panel=_ALLOCATOR)
]
ProtectLast = Annotated[
    int, typer.Option(help="Leave this many blocks at the end alone.", rich_help_panel=_ALLOCATOR)
]

Importance = Annotated[
    str | None,
    typer.Option(
        help="What ranks heads and channels: wanda (default, better than taylor in most pairs measured), "
        "taylor, magnitude, random; auto is taylor where memory holds its gradients, else wanda.",
        rich_help_panel=_STRUCTURE,
    ),
]
TaylorVariant = Annotated[
    str | None,
    typer.Option(help="With taylor: 'element' (default) or 'vector'.", rich_help_panel=_STRUCTURE),
]
GradientSamples = Annotated[
    int | None,
    typer.Option(
        help="With taylor: calibration sequences to take gradients on; default 16.",
        rich_help_panel=_STRUCTURE,
    ),
]
RoundTo = Annotated[
    int | None,
    typer.Option(help="FFN channels stay a multiple of this; default 64.", rich_help_panel=_STRUCTURE),
]
Repair = Annotated[
    bool,
    typer.Option("--repair", help="Refit output projections by least squares.", rich_help_panel=_STRUCTURE),
]
AllowEmpty = Annotated[
    bool, typer.Option("--allow-empty", help="Let a sublayer go whole.", rich_help_panel=_STRUCTURE)
]
UniformWidth = Annotated[
    bool,
    typer.Option(
        "--uniform-width",
        help="Same widths in every block, saved as a stock checkpoint.",
        rich_help_panel=_STRUCTURE,
    ),
]
Export = Annotated[
    str | None,
    typer.Option(help="Write another format: decilm (Llama-like).", rich_help_panel=_STRUCTURE),
]

Latency = Annotated[
    bool, typer.Option("--latency", help="Also time prefill and decode.", rich_help_panel=_LATENCY)
]
Kernel = Annotated[
    str | None,
    typer.Option(
        help="With --latency: 'dense' (default), or 'semi-structured' (2:4, CUDA) against dense.",
        rich_help_panel=_LATENCY,
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="With --latency: decode through torch.compile with a static cache, all models alike. The first "
        "pass compiles, a minute or more.",
        rich_help_panel=_LATENCY,
    ),
]
PromptLen = Annotated[
    int, typer.Option(min=1, help="With --latency: tokens of each prompt.", rich_help_panel=_LATENCY)
]
NewTokens = Annotated[
    int, typer.Option(min=1, help="With --latency: tokens decoded after it.", rich_help_panel=_LATENCY)
]

Calib = Annotated[
    str,
    typer.Option(
        help="Calibration text: .txt, .jsonl, .parquet, 'wikitext2', 'ptb', 'c4', 'builtin', or a hub set.",
        rich_help_panel=_TEXT,
    ),
]
Data = Annotated[str, typer.Option(help="Evaluation text, named like --calib.", rich_help_panel=_TEXT)]
OptionalData = Annotated[
    str | None,
    typer.Option("--data", help="Evaluation text; perplexity before and after.", rich_help_panel=_TEXT),
]
TextField = Annotated[
    str, typer.Option(help="Field with the text in .jsonl, .json and .parquet.", rich_help_panel=_TEXT)
]
Samples = Annotated[int, typer.Option(help="Calibration sequences.", rich_help_panel=_TEXT)]
MeasureSamples = Annotated[
    int | None,
    typer.Option(help="How many of --samples to measure importance on; default 16.", rich_help_panel=_TEXT),
]
SeqLen = Annotated[
    int | None,
    typer.Option(help="Tokens per sequence; default 2048 or the model's maximum.", rich_help_panel=_TEXT),
]
Sampling = Annotated[
    str, typer.Option(help="'first' (consecutive) or 'random' windows.", rich_help_panel=_TEXT)
]
Seed = Annotated[
    int, typer.Option(help="Seed of the sampling, and of the allocator random.", rich_help_panel=_TEXT)
]
Bos = Annotated[
    str,
    typer.Option(help="BOS token: auto, every (window), first (of the text), never.", rich_help_panel=_TEXT),
]
MaxWindows = Annotated[
    int | None, typer.Option(help="Evaluate on the first K windows only.", rich_help_panel=_TEXT)
]

BatchSize = Annotated[int, typer.Option(help="Sequences per forward pass.", rich_help_panel=_MACHINE)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=_MACHINE)]
Dtype = Annotated[
    str,
    typer.Option(help="auto (the checkpoint's), bfloat16, float16, float32.", rich_help_panel=_MACHINE),
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit on the hub.", rich_help_panel=_MACHINE)
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Run code from the model's repository.", rich_help_panel=_MACHINE
    ),
]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle", help="Load pickled weights, which can run code.", rich_help_panel=_MACHINE
    ),
]

AsJson = Annotated[bool, typer.Option("--json", help="The answer as JSON, alone on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no tables.")]
Strict = Annotated[bool, typer.Option("--strict", help="Treat any fallback as an error.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show budgets, predicted size and memory; write nothing.")
]
DryRunOfPlan = Annotated[bool, typer.Option("--dry-run", help="Show the budgets; write nothing.")]
