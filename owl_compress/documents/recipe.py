"""The recipe: everything `owl-compress run` was asked for, in a YAML file that does it again."""

import logging
import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import (
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)

from owl_compress.arguments import checked
from owl_compress.consent import CONSENT_NAMES
from owl_compress.documents.document import Frozen
from owl_compress.documents.paths import given_path
from owl_compress.documents.protocols import PROTOCOLS, ProtocolName, with_protocol
from owl_compress.documents.provenance import StatisticsSource
from owl_compress.documents.quantities import parsed_bytes, parsed_seconds
from owl_compress.documents.recipe_paths import found_path, written_path
from owl_compress.documents.sensitivity import Measure, PartKind
from owl_compress.documents.strict_json import read_text
from owl_compress.documents.units import Count, Name, PositiveCount, Sublayer, checked_text
from owl_compress.documents.yaml12 import Dumper, load_plain
from owl_compress.errors import RequestError, first_problem

logger = logging.getLogger(__name__)

AVERAGES = ("sparsity", "nm", "prune_ratio", "bits")
"""Budgets that say what is kept on average."""

LIMITS = ("size", "speedup", "latency")
"""Budgets that say what the outcome may cost; the average follows from the model."""

BUDGETS = (*AVERAGES, *LIMITS)
"""The budget options, of which a request names exactly one."""

_OF_TIME = ("cost_table", "phase")
"""What goes with a budget of time alone."""

DEFAULT_SAMPLES = 128
"""Calibration sequences, as in the published tables."""

DEFAULT_MEASURE_SAMPLES = 16
"""Sequences that fix an OWL plan well enough (benchmarks/plan_stability.py), and statistics for trials."""

_ALWAYS_WRITTEN = {
    "model", "allocator", "plan", "backend", "dtype",
    "calib", "samples", "seq_len", "sampling", "seed", "bos",
}  # fmt: skip
"""What shapes the checkpoint is written even at its default, which another version may choose otherwise."""

_THOUSANDS = {"": 1, "k": 1_000, "m": 1_000_000}
_TOKENS = re.compile(r"(\d+(?:\.\d+)?)\s*([km]?)", re.IGNORECASE)

_NM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*:\s*(\d+)\s*")


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


class Recipe(Frozen):
    """The options of `run`, under the names they have on the command line.

    None means that the allocator, the backend or the model decides. Fractions, never percent. Options of
    allocator and backend are in `options`, under the names that these give them; in a file they stand beside
    all others. Here they are taken as they are: who carries them out says whether they can be meant.
    """

    model: Name = _on(Topic.MODEL, ..., "Hub id, checkpoint folder, .gguf file, or 'builtin' (SmolLM2-135M).")
    revision: Name | None = _on(Topic.MACHINE, None, "Branch, tag or commit on the hub.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = _on(
        Topic.MACHINE, "auto", "auto (the checkpoint's), bfloat16, float16, float32."
    )

    sparsity: float | None = _on(Topic.BUDGET, None, "Share of weights removed, 0.7 = 70 %.")
    nm: str | None = _on(Topic.BUDGET, None, "N:M, N weights KEPT on average of every M: 3:8, 2.5:8.")
    prune_ratio: float | None = _on(Topic.BUDGET, None, "Share of block parameters removed (structured).")
    bits: float | None = _on(Topic.BUDGET, None, "Average bits per weight.")
    bit_choices: tuple[int, ...] | None = _on(
        Topic.BUDGET, None, "Widths to mix, for --bits or --size: 2,3,4."
    )

    size: str | None = _on(
        Topic.BUDGET,
        None,
        "With `run`, for bits and widths: most bytes of all weight files: 300MB, 0.3GB, 250MiB, or bytes.",
    )
    speedup: float | None = _on(
        Topic.BUDGET, None, "With `run`, for widths: how many times as fast as dense, by --cost-table."
    )
    latency: str | None = _on(
        Topic.BUDGET, None, "With `run`, for widths: most time, by --cost-table: 0.120 (seconds) or 120ms."
    )
    cost_table: Name | None = _on(
        Topic.BUDGET, None, "With --speedup or --latency: what `eval --latency --cost-table FILE` wrote."
    )
    phase: Literal["prefill", "decode"] | None = _on(
        Topic.BUDGET,
        None,
        "What --speedup and --latency are of: 'prefill' (default), all prompts; 'decode', each token after.",
    )

    allocator: Name | None = _on(Topic.ALLOCATOR, None, "Who divides the budget.")
    plan: Name | None = _on(Topic.PLAN, None, "A plan to carry out, instead of allocating one.")
    candidates: tuple[Name, ...] | None = _on(
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
    set_: dict[str, float] = _on(
        Topic.SHAPE, {}, "NAME=VALUE: pin a block or linear (or a pattern).", alias="set"
    )
    skip: tuple[str, ...] = _on(Topic.SHAPE, (), "Leave a block or linear (or a pattern) alone.")
    no_tie: bool = _on(
        Topic.SHAPE, False, "Let q/k/v and gate/up differ in bits; servers that fuse them refuse that."
    )
    parts: tuple[Sublayer, ...] = _on(
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
        "Inputs seen by the backend: 'sequential' (behind compressed blocks, default) or 'dense' (faster).",
    )
    options: dict[str, JsonValue] = Field(default={}, description="of allocator and backend")
    format_: Name | None = _on(
        Topic.STORAGE, None, "'packed' integers (default of codes) or 'dense' weights.", alias="format"
    )
    export: Name | None = _on(Topic.STORAGE, None, "Write the format of other software: decilm (Llama-like).")

    calib: Name = _on(
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
    profile: Name | None = _on(
        Topic.SENSITIVITY, None, "A profile that `sensitivity` wrote, for an allocator that reads damage."
    )
    part: PartKind | None = _on(
        Topic.SENSITIVITY,
        None,
        "Compressed at a time: block (default for density), sublayer (width), tied (bits), role, linear.",
    )
    levels: tuple[str, ...] | None = _on(
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
    damage_data: Name | None = _on(
        Topic.SENSITIVITY, None, "Text that they are drawn from; default that of --calib."
    )
    positions: PositiveCount | None = _on(
        Topic.SENSITIVITY, None, "Positions in them whose predictions are compared; default 256."
    )
    max_cost: str | None = _on(
        Topic.SENSITIVITY,
        None,
        "Most forward tokens, 60000 or 60k: takes fewer windows, levels and candidates, as far as these are "
        "left open.",
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
    data: Name | None = _on(Topic.EVALUATION, None, "Evaluation text; perplexity before and after.")
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

    tasks: tuple[str, ...] | None = _on(
        Topic.TASKS,
        None,
        "Accuracy on tasks of lm-eval: boolq,rte or 'owl7' (the seven of the OWL paper).",
        min_length=1,
    )
    task_file: tuple[str, ...] = _on(
        Topic.TASKS, (), "Accuracy on samples of your own: .jsonl with question, choices and label."
    )
    task_path: Name | None = _on(
        Topic.TASKS, None, "Task files of lm-eval's kind (.yaml), a folder or one; functions they name run."
    )
    limit: PositiveCount | None = _on(Topic.TASKS, None, "The first N samples of each task only.")
    num_fewshot: Count | None = _on(
        Topic.TASKS, None, "Solved samples before each question; default what the task says, mostly 0."
    )

    batch_size: PositiveCount = _on(Topic.MACHINE, 1, "Sequences per forward pass.")
    device: str = _on(Topic.MACHINE, "auto", "auto, cpu, cuda or cuda:N.")
    partial: bool = _on(
        Topic.MACHINE, False, "Go on where less than half of the weights in the blocks can get a budget."
    )
    strict: bool = _on(Topic.MACHINE, False, "Treat any fallback as an error.")

    @model_validator(mode="before")
    @classmethod
    def _follow_the_protocol(cls, options: Any) -> Any:
        known = isinstance(options, dict) and options.get("protocol") in PROTOCOLS
        return with_protocol(options) if known else options

    @field_validator("model", "plan", "calib", "data", "cost_table", "task_path", mode="before")
    @classmethod
    def _path_is_text(cls, name: Any) -> Any:
        return str(name) if isinstance(name, Path) else name

    @field_validator("sparsity", "prune_ratio")
    @classmethod
    def _is_a_share(cls, share: float | None) -> float | None:
        if share is not None and not 0 <= share < 1:
            raise ValueError("is the share removed, at least 0 and below 1; 0.7 removes 70 %")
        return share

    @field_validator("nm")
    @classmethod
    def _is_n_of_m(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        found = _NM.fullmatch(pattern)
        if not found:
            raise ValueError("is N:M, N weights kept of every M, such as 3:8 or 2.5:8")
        if not 0 < float(found[1]) <= int(found[2]):
            raise ValueError("keeps N of M weights, so N is above 0 and at most M")
        return f"{found[1]}:{found[2]}"

    @field_validator("size", "latency", mode="before")
    @classmethod
    def _number_is_text(cls, quantity: Any) -> Any:
        is_number = isinstance(quantity, int | float) and not isinstance(quantity, bool)
        return str(quantity) if is_number else quantity

    @field_validator("size")
    @classmethod
    def _is_a_size(cls, size: str | None) -> str | None:
        if size is not None:
            parsed_bytes(size)
        return size

    @field_validator("latency")
    @classmethod
    def _is_a_time(cls, latency: str | None) -> str | None:
        if latency is not None:
            parsed_seconds(latency)
        return latency

    @field_validator("speedup")
    @classmethod
    def _is_no_slowdown(cls, speedup: float | None) -> float | None:
        if speedup is not None and speedup < 1:
            raise ValueError("is how many times as fast, at least 1; 1.5 takes two thirds of the time")
        return speedup

    @field_validator("bit_choices", "candidates", "parts", "tasks", mode="before")
    @classmethod
    def _split_at_commas(cls, choices: Any) -> Any:
        return [one.strip() for one in choices.split(",")] if isinstance(choices, str) else choices

    @field_validator("levels", mode="before")
    @classmethod
    def _are_levels(cls, levels: Any) -> Any:
        """Levels of a file may be numbers; what each of them stands for depends on the backend."""
        if isinstance(levels, str | int | float) and not isinstance(levels, bool):
            levels = str(levels).split(",")
        if not isinstance(levels, list | tuple):
            return levels
        return [one if isinstance(one, bool) else str(one).strip() for one in levels]

    @field_validator("max_cost", mode="before")
    @classmethod
    def _is_a_number_of_tokens(cls, cost: Any) -> Any:
        text = str(cost) if isinstance(cost, int | float) and not isinstance(cost, bool) else cost
        if isinstance(text, str) and not n_tokens(text):
            raise ValueError("is a number of forward tokens above 0, such as 60000 or 60k")
        return text

    @field_validator("skip", "task_file", mode="before")
    @classmethod
    def _one_name_is_a_list(cls, names: Any) -> Any:
        names = [names] if isinstance(names, str | Path) else names
        if not isinstance(names, list | tuple):
            return names
        return [str(one) if isinstance(one, Path) else one for one in names]

    @field_validator("set_", mode="before")
    @classmethod
    def _split_pins(cls, pins: Any) -> Any:
        """Accept NAME=VALUE, one or a list of them, as on the command line."""
        pins = [pins] if isinstance(pins, str) else pins
        if not isinstance(pins, list | tuple):
            return pins
        wrong = [pin for pin in pins if not isinstance(pin, str) or "=" not in pin]
        if wrong:
            raise ValueError(f"takes NAME=VALUE, not {wrong[0]!r}")
        split = [(pin.rpartition("=")[0].strip(), pin.rpartition("=")[2].strip()) for pin in pins]
        names = [name for name, _ in split]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"names {twice!r} twice: give it one value")
        return dict(split)

    @field_validator("set_", "skip", "options", "tasks", "task_file")
    @classmethod
    def _are_text(cls, names: Any) -> Any:
        values = names.values() if isinstance(names, dict) else ()
        for text in (*(names or ()), *values):
            if isinstance(text, str):
                checked_text(text)
        return names

    @model_validator(mode="after")
    def _names_one_budget(self) -> Self:
        named = [option_name(budget) for budget in BUDGETS if getattr(self, budget) is not None]
        choices = ", ".join(option_name(budget) for budget in BUDGETS)
        if (self.allocator is None) == (self.plan is None):
            raise ValueError("name an allocator or a plan, one of them")
        if self.plan is not None:
            named += [option_name(name) for name in _OF_TIME if getattr(self, name) is not None]
            if named:
                raise ValueError(f"a plan carries its own budget: drop {named[0]}")
            if self.profile is not None:
                raise ValueError("a plan is made already: drop profile")
            return self
        if len(named) != 1:
            raise ValueError(
                f"name exactly one budget of {choices}; this has {' and '.join(named) or 'none'}"
            )
        self._check_bits()
        self._check_time()
        return self

    @model_validator(mode="after")
    def _says_of_tasks_what_goes_with_them(self) -> Self:
        given = [name for name in ("limit", "num_fewshot") if getattr(self, name) is not None]
        if given and not (self.tasks or self.task_file or self.task_path):
            raise ValueError(
                f"{option_name(given[0])} is of tasks: name some with tasks, task-file or task-path"
            )
        return self

    def _check_bits(self) -> None:
        if self.bits is not None or self.size is not None:
            return
        for name, is_given in (("no-tie", self.no_tie), ("bit-choices", self.bit_choices is not None)):
            if is_given:
                raise ValueError(f"{name} goes with the budget bits: name bits, or drop {name}")

    def _check_time(self) -> None:
        budget = "speedup" if self.speedup is not None else "latency" if self.latency is not None else None
        if budget is not None and self.cost_table is None:
            raise ValueError(
                f"{budget} needs the cost-table of this model, which `owl-compress eval MODEL --latency "
                "--cost-table FILE` measures"
            )
        for name in map(option_name, (one for one in _OF_TIME if getattr(self, one) is not None)):
            if budget is None:
                raise ValueError(
                    f"{name} goes with the budgets speedup and latency: name one, or drop {name}"
                )

    @classmethod
    @checked
    def from_options(cls, options: Mapping[Any, Any], where: str = "recipe") -> Self:
        """Build a recipe from options named as on the command line, with hyphens or underscores.

        Raises:
            RequestError: an option that is given twice, consent to run code, or a bad value. What is no
                option of every recipe is taken for one of its methods, and left for them to refuse.
        """
        known = RECIPE_NAMES
        content: dict[str, Any] = {}
        methods: dict[str, Any] = {}
        for key, value in options.items():
            name = plain_name(key)
            if name in CONSENT_NAMES:
                raise RequestError(
                    f"{where}: {option_name(name)} is no part of a recipe: consent is given beside it, as "
                    f"--{option_name(name)} or Consent({name}=True)"
                )
            if name in content or name in methods:
                raise RequestError(f"{where}: {option_name(name)} is given twice")
            (content if name in known else methods)[name] = value
        content["options"] = methods
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            problem = first_problem(error)
            path, _, message = problem.partition(": ")
            field = path.partition(".")[0]  # what lies below it is how we hold the value
            if field in cls.model_fields:
                problem = f"{option_name(field)}: {message}"
            prefix = "" if where == "options" else f"{where}: "
            raise RequestError(f"{prefix}{problem}") from error

    @checked
    def with_options(self, options: Mapping[str, Any]) -> Self:
        """Return the recipe with some options replaced; a budget replaces the recipe's own budget.

        Raises:
            RequestError: see `from_options`.
        """
        given = {plain_name(key): value for key, value in options.items() if value is not None}
        old = self.model_dump(exclude_unset=True, exclude={"options"})
        old |= {name: value for name, value in self.options.items() if name not in given}
        if given.keys() & set(BUDGETS):
            dropped = set(BUDGETS)
            dropped |= {"bit_choices"} if not {"bits", "size"} & given.keys() else set()
            dropped |= set(_OF_TIME) if not {"speedup", "latency"} & given.keys() else set()
            old = {key: value for key, value in old.items() if key not in dropped}
        kept = {plain_name(name): value for name, value in old.items()}
        return type(self).from_options(kept | given, "options")

    def with_method_options(self, options: Mapping[str, JsonValue]) -> Self:
        """The same recipe with these options of its methods in the place of all that it had."""
        return self.model_copy(update={"options": dict(options)})

    def beside(self, folder: Path) -> Self:
        """The recipe that lies in `folder`, with its files as they are reached from here.

        Paths that begin with "./" or "../" are seen from there, and those of our own files in any case.
        """
        return self._with_paths(
            lambda name: found_path(name, folder), lambda ours: found_path(f"./{ours}", folder)
        )

    def seen_from(self, folder: Path) -> Self:
        """The recipe as it is written into `folder`; its plan, or its profile, is the one there."""
        return self._with_paths(lambda name: written_path(name, folder), lambda ours: ours)

    def _with_paths(self, renamed: Callable[[str], str], renamed_ours: Callable[[str], str]) -> Self:
        names = {
            name: getattr(self, name)
            for name in ("model", "calib", "data", "damage_data", "cost_table", "task_path")
        }
        changed: dict[str, Any] = {name: renamed(value) for name, value in names.items() if value is not None}
        changed = {name: value for name, value in changed.items() if value != names[name]}
        if self.task_file:
            changed["task_file"] = tuple(map(renamed, self.task_file))
        for name in ("plan", "profile"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_absolute():
                changed[name] = renamed_ours(path)
        return self.model_copy(update=changed)

    @classmethod
    @checked
    def read(cls, path: Path | str) -> Self:
        """Read the recipe at `path`; its files are named as they are reached from here, see `beside`.

        Consent to run code, which recipes once held, is left out and said to be.

        Raises:
            RequestError: unreadable, not YAML, or not a recipe.
        """
        path = given_path(path)
        try:
            content = load_plain(read_text(path))
        except (ValueError, yaml.YAMLError) as error:
            raise RequestError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            raise RequestError(f"{path} is not a recipe: expected lines of the form `option: value`")
        recipe = cls.from_options(_without_consent(content, str(path)), str(path))
        return recipe.beside(path.parent)

    @property
    def settings(self) -> dict[str, Any]:
        """What differs from the defaults, and whatever shapes the checkpoint, as users name it."""
        content = self.model_dump(mode="json", exclude_defaults=True, exclude={"options"})
        content |= {name: getattr(self, name) for name in _ALWAYS_WRITTEN}
        order = [field.alias or name for name, field in type(self).model_fields.items()]
        order[order.index("options") : order.index("options") + 1] = sorted(self.options)
        content |= self.options
        return {option_name(name): content[name] for name in order if content.get(name) is not None}

    def to_yaml(self) -> str:
        """The recipe as YAML: its settings."""
        body = yaml.dump(self.settings, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)
        return "# owl-compress run recipe.yaml -o OUT\n" + body


def _without_consent(content: Mapping[Any, Any], where: str) -> dict[Any, Any]:
    """What a file says, without the consent that it cannot give; older versions wrote it down."""
    for key, value in content.items():
        if plain_name(key) in CONSENT_NAMES and value:
            logger.warning(
                "%s: %s is ignored: a file cannot give consent; where the model needs it, add --%s yourself",
                where, key, option_name(plain_name(key)),
            )  # fmt: skip
    return {key: value for key, value in content.items() if plain_name(key) not in CONSENT_NAMES}


RECIPE_NAMES = frozenset(
    field.alias or name for name, field in Recipe.model_fields.items() if name != "options"
)
"""What every recipe has; everything else in one is an option of its methods."""


def plain_name(option: object) -> str:
    """Name of an option with underscores, however it was written."""
    return str(option).removeprefix("--").replace("-", "_").removesuffix("_")


def option_name(field: str) -> str:
    """Name of a field on the command line, without the leading hyphens."""
    return field.strip("_").replace("_", "-")


def n_tokens(text: str) -> int:
    """The number that 60000, 60k or 1.5M stands for; 0 for what is no number."""
    found = _TOKENS.fullmatch(text.strip())
    return round(float(found[1]) * _THOUSANDS[found[2].lower()]) if found else 0


def is_recipe(argument: str) -> bool:
    """Whether the first argument of `run` names a recipe rather than a model."""
    return Path(argument).suffix.lower() in {".yaml", ".yml"}
