"""The recipe: everything `owl-compress run` was asked for, in a YAML file that does it again."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import JsonValue, ValidationError, model_validator

from owl_compress.arguments import checked
from owl_compress.consent import CONSENT_NAMES
from owl_compress.documents.option_names import option_name, plain_name
from owl_compress.documents.paths import given_path
from owl_compress.documents.protocols import PROTOCOLS, with_protocol
from owl_compress.documents.recipe_fields import BUDGETS, RecipeFields
from owl_compress.documents.recipe_paths import found_path, written_path
from owl_compress.documents.strict_json import read_text
from owl_compress.documents.yaml12 import Dumper, load_plain
from owl_compress.errors import RequestError, first_problem

logger = logging.getLogger(__name__)

_OF_TIME = ("cost_table", "phase")
"""What goes with a budget of time alone."""

_ALWAYS_WRITTEN = {
    "model", "allocator", "plan", "backend", "dtype",
    "calib", "samples", "seq_len", "sampling", "seed", "bos",
}  # fmt: skip
"""What shapes the checkpoint is written even at its default, which another version may choose otherwise."""


class Recipe(RecipeFields):
    """The options of `run`, under the names they have on the command line.

    None means that the allocator, the backend or the model decides. Fractions, never percent. Options of
    allocator and backend are in `options`, under the names that these give them; in a file they stand beside
    all others. Here they are taken as they are: who carries them out says whether they can be meant.
    """

    @model_validator(mode="before")
    @classmethod
    def _follow_the_protocol(cls, options: Any) -> Any:
        known = isinstance(options, dict) and options.get("protocol") in PROTOCOLS
        return with_protocol(options) if known else options

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
        except ValueError as error:
            raise RequestError(f"{path} is not YAML: {error}") from error
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


def is_recipe(argument: str) -> bool:
    """Whether the first argument of `run` names a recipe rather than a model."""
    return Path(argument).suffix.lower() in {".yaml", ".yml"}
