"""The recipe: everything `owl-compress run` was asked for, in a YAML file that does it again."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, field_validator, model_validator

from owl_compress.documents.document import Frozen, first_problem
from owl_compress.documents.units import Sublayer
from owl_compress.documents.yaml12 import Dumper, Loader
from owl_compress.errors import RequestError, nearest

BUDGETS = ("sparsity", "nm", "prune_ratio", "bits")
"""The budget options, of which a request names exactly one."""

_ALWAYS_WRITTEN = {
    "model", "allocator", "plan", "backend", "dtype",
    "calib", "samples", "seq_len", "sampling", "seed", "bos",
}  # fmt: skip
"""What shapes the checkpoint is written even at its default, which another version may choose otherwise."""

Storage = Literal["packed", "dense"]
"""How quantized weights are stored: as integer codes, or dequantised like any other weight."""

Export = Literal["decilm"]
"""A foreign format with a width of its own for every block."""

DECILM_STEP = 256
"""DeciLM holds FFN widths that are a multiple of this."""

_OF_GRADIENTS = ("taylor_variant", "gradient_samples")
_NM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*:\s*(\d+)\s*")


class Recipe(Frozen):
    """The options of `run`, under the names they have on the command line.

    None means that the allocator, the backend or the model decides. Fractions, never percent.
    """

    model: str
    revision: str | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    trust_remote_code: bool = False
    allow_pickle: bool = False

    sparsity: float | None = None
    nm: str | None = Field(default=None, description="N:M, N weights kept on average of every M")
    prune_ratio: float | None = None
    bits: float | None = None
    bit_choices: tuple[int, ...] | None = None

    allocator: str | None = None
    plan: str | None = Field(default=None, description="a plan to carry out, instead of allocating one")
    metric: str | None = None
    lam: float | None = None
    owl_law: Literal["published", "bounded"] | None = None
    solver: Literal["proportional", "optimal"] | None = None
    granularity: Literal["block", "linear"] | None = None
    low: float | None = None
    high: float | None = None
    set_: dict[str, float] = Field(default={}, alias="set", description="budgets pinned by hand")
    skip: tuple[str, ...] = ()
    no_tie: bool = Field(default=False, description="let q/k/v and gate/up differ in bits")
    parts: tuple[Sublayer, ...] = Field(
        default=tuple(Sublayer), min_length=1, description="sublayers that are compressed"
    )
    protect_first: NonNegativeInt = Field(default=0, description="blocks at the start that keep all")
    protect_last: NonNegativeInt = Field(default=0, description="blocks at the end that keep all")

    backend: str
    scope: Literal["row", "linear", "model"] | None = None
    group_size: PositiveInt | Literal["none"] | None = Field(
        default=None, description="inputs that share a scale; none: one scale for each output"
    )
    asymmetric: bool = False
    mse: bool = Field(default=False, description="search the scale of least squared error")
    activation_order: bool = False
    no_group_order: bool = Field(default=False, description="gptq: visit columns as they lie, as published")
    format_: Storage | None = Field(default=None, alias="format")
    importance: Literal["auto", "taylor", "wanda", "magnitude", "random"] | None = Field(
        default=None, description="what ranks the heads and channels of a block"
    )
    taylor_variant: Literal["element", "vector"] | None = None
    gradient_samples: PositiveInt | None = Field(
        default=None, description="calibration sequences that taylor takes gradients on"
    )
    round_to: PositiveInt | None = Field(default=None, description="FFN channels stay a multiple of this")
    repair: bool = Field(default=False, description="refit the output projections by least squares")
    allow_empty: bool = Field(default=False, description="a sublayer may go whole")
    uniform_width: bool = Field(default=False, description="the same widths in every block, stock format")
    export: Export | None = None

    calib: str = "c4"
    text_field: str = "text"
    samples: PositiveInt = 128
    measure_samples: PositiveInt | None = None
    seq_len: PositiveInt | None = None
    sampling: Literal["first", "random"] = "random"
    seed: int = 0
    bos: Literal["auto", "every", "first", "never"] = "auto"
    batch_size: PositiveInt = 1
    device: str = "auto"
    strict: bool = False

    data: str | None = None
    max_windows: PositiveInt | None = None

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

    @field_validator("bit_choices", "parts", mode="before")
    @classmethod
    def _split_at_commas(cls, choices: Any) -> Any:
        return [one.strip() for one in choices.split(",")] if isinstance(choices, str) else choices

    @field_validator("skip", mode="before")
    @classmethod
    def _one_name_is_a_list(cls, names: Any) -> Any:
        return [names] if isinstance(names, str) else names

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
        return {pin.rpartition("=")[0].strip(): pin.rpartition("=")[2].strip() for pin in pins}

    @model_validator(mode="after")
    def _names_one_budget(self) -> Self:
        named = [option_name(budget) for budget in BUDGETS if getattr(self, budget) is not None]
        choices = ", ".join(option_name(budget) for budget in BUDGETS)
        if (self.allocator is None) == (self.plan is None):
            raise ValueError("name an allocator or a plan, one of them")
        if self.plan is not None:
            if named:
                raise ValueError(f"a plan carries its own budget: drop {named[0]}")
            return self
        if len(named) != 1:
            raise ValueError(
                f"name exactly one budget of {choices}; this has {' and '.join(named) or 'none'}"
            )
        self._check_bits()
        return self

    @model_validator(mode="after")
    def _fits_its_export(self) -> Self:
        if self.export != "decilm":
            return self
        if self.plan is None and self.prune_ratio is None:
            raise ValueError("export decilm is for blocks of several widths: give prune-ratio, or drop it")
        if self.plan is None and self.parts != (Sublayer.MLP,):
            raise ValueError(
                "export decilm is for Llama and Mistral and keeps all query heads: add parts mlp"
            )
        if self.round_to is not None and self.round_to % DECILM_STEP:
            raise ValueError(f"export decilm holds multiples of {DECILM_STEP}: round-to is {self.round_to}")
        return self

    @model_validator(mode="after")
    def _fits_its_importance(self) -> Self:
        for option in _OF_GRADIENTS:
            if getattr(self, option) is not None and self.importance not in {"taylor", "auto"}:
                name = option_name(option)
                raise ValueError(f"{name} goes with importance taylor or auto: name one, or drop {name}")
        if self.gradient_samples is not None and self.gradient_samples > self.samples:
            raise ValueError(
                f"gradient-samples {self.gradient_samples} is more than the {self.samples} samples there are"
            )
        return self

    def _check_bits(self) -> None:
        if self.no_tie and self.bits is None:
            raise ValueError("no-tie goes with the budget bits: name bits, or drop no-tie")
        if self.bit_choices is None:
            return
        if self.bits is None:
            raise ValueError("bit-choices goes with the budget bits: name bits, or drop bit-choices")
        if not self.bit_choices or not all(2 <= width <= 8 for width in self.bit_choices):
            raise ValueError(f"bit-choices are whole numbers from 2 to 8, not {list(self.bit_choices)}")
        if not min(self.bit_choices) <= self.bits <= max(self.bit_choices):
            raise ValueError(f"bits {self.bits:g} is outside its bit-choices {list(self.bit_choices)}")

    @property
    def kept_of(self) -> tuple[float, int] | None:
        """`nm` as numbers: weights kept on average, and out of how many."""
        if self.nm is None:
            return None
        kept, _, of = self.nm.partition(":")
        return float(kept), int(of)

    @classmethod
    def from_options(cls, options: Mapping[str, Any], where: str = "recipe") -> Self:
        """Build a recipe from options named as on the command line, with hyphens or underscores.

        Raises:
            RequestError: an unknown option (the nearest is offered), one given twice, or a bad value.
        """
        known = {field.alias or name: name for name, field in cls.model_fields.items()}
        content: dict[str, Any] = {}
        for key, value in options.items():
            name = str(key).removeprefix("--").replace("-", "_").removesuffix("_")
            if name not in known:
                raise RequestError(
                    f"{where}: unknown key {key!r}: {nearest(str(key), map(option_name, known))}"
                )
            if name in content:
                raise RequestError(f"{where}: {option_name(name)} is given twice")
            content[name] = value
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            problem = first_problem(error)
            path, _, message = problem.partition(": ")
            field = path.partition(".")[0]  # what lies below it is how we hold the value
            if field in cls.model_fields:
                problem = f"{option_name(field)}: {message}"
            raise RequestError(f"{where}: {problem}") from error

    def with_options(self, options: Mapping[str, Any]) -> Self:
        """Return the recipe with some options replaced; a budget replaces the recipe's own budget.

        Raises:
            RequestError: see `from_options`.
        """
        given = {str(key).replace("-", "_"): value for key, value in options.items() if value is not None}
        old = self.model_dump(exclude_unset=True)
        if given.keys() & set(BUDGETS):
            dropped = {*BUDGETS, "bit_choices"} if "bits" not in given else set(BUDGETS)
            old = {key: value for key, value in old.items() if key not in dropped}
        return type(self).from_options(old | given, "options")

    def with_importance(self, importance: str) -> Self:
        """The same recipe with this importance, and options of gradients only where it takes them."""
        given = self.model_dump(exclude_unset=True) | {"importance": importance}
        if importance != "taylor":
            given = {key: value for key, value in given.items() if key not in _OF_GRADIENTS}
        return type(self).from_options(given, "options")

    def beside(self, folder: Path) -> Self:
        """The same recipe, with the path of its plan seen from where `folder` is."""
        if self.plan is None or Path(self.plan).is_absolute():
            return self
        return self.model_copy(update={"plan": str(folder / self.plan)})

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read the recipe at `path`.

        Raises:
            RequestError: unreadable, not YAML, or not a recipe.
        """
        try:
            # A SafeLoader with fewer scalar rules: it builds plain values only.
            content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=Loader)  # noqa: S506
        except OSError as error:
            raise RequestError(f"cannot read {path}: {error.strerror}") from error
        except (UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
            raise RequestError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            raise RequestError(f"{path} is not a recipe: expected lines of the form `option: value`")
        return cls.from_options(content, str(path))

    def to_yaml(self) -> str:
        """The recipe as YAML: what differs from the defaults, and whatever shapes the checkpoint."""
        content = self.model_dump(mode="json", exclude_defaults=True)
        content |= {name: getattr(self, name) for name in _ALWAYS_WRITTEN}
        order = [field.alias or name for name, field in type(self).model_fields.items()]
        lines = {option_name(name): content[name] for name in order if content.get(name) is not None}
        body = yaml.dump(lines, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)
        return "# owl-compress run recipe.yaml -o OUT\n" + body


def option_name(field: str) -> str:
    """Name of a field on the command line, without the leading hyphens."""
    return field.strip("_").replace("_", "-")


def is_recipe(argument: str) -> bool:
    """Whether the first argument of `run` names a recipe rather than a model."""
    return Path(argument).suffix.lower() in {".yaml", ".yml"}
