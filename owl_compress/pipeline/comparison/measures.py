"""What is measured of every cell of a comparison, said once for all of them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from owl_compress.documents.measurements import LatencyShape
from owl_compress.documents.recipe_paths import found_path
from owl_compress.errors import RequestError, shown
from owl_compress.options import build, option, options_of


@dataclass(frozen=True)
class MeasureOptions:
    """What a grid says of measuring besides its texts."""

    timing: bool = option(False, "Also time prefill and decode.")
    prompt_len: int = option(128, "With timing: tokens of each prompt.", at_least=1)
    new_tokens: int = option(32, "With timing: tokens decoded after it.", at_least=1)
    baseline: str = option("uniform", "Allocator that the others are compared with, over equal seeds.")


@dataclass(frozen=True)
class Measures:
    """Texts by the names that rows have for them, each with where it lies; and the options."""

    texts: Mapping[str, str]
    options: MeasureOptions

    @classmethod
    def of(cls, settings: Mapping[str, Any], folder: Path, where: str) -> "Measures":
        """What the settings of a grid in `folder` ask for.

        Raises:
            RequestError: a text named twice, or a value that cannot be meant.
        """
        own = {one.name for one in options_of(MeasureOptions)}
        texts = _texts(settings.get("data"), folder, where)
        given = {name: value for name, value in settings.items() if name in own}
        try:
            options: MeasureOptions = build(MeasureOptions, "compare", given)
        except RequestError as error:
            raise RequestError(f"{where}: {error}") from error
        return cls(texts, options)

    @property
    def latency(self) -> LatencyShape | None:
        """What is timed; None where nothing is."""
        if not self.options.timing:
            return None
        return LatencyShape(prompt_len=self.options.prompt_len, new_tokens=self.options.new_tokens)

    @property
    def content(self) -> dict[str, Any]:
        """What of it makes a row another one; the baseline only decides how rows are read."""
        return {name: value for name, value in asdict(self.options).items() if name != "baseline"}


SETTINGS = ("data", *(one.name for one in fields(MeasureOptions)))
"""What a grid says once for all cells."""


def _texts(given: Any, folder: Path, where: str) -> dict[str, str]:
    if given is None:
        return {}
    names = list(given) if isinstance(given, list | tuple) else [given]
    wrong = [name for name in names if not isinstance(name, str) or not name]
    if wrong:
        raise RequestError(f"{where}: data names texts, one or a list of them, not {shown(wrong[0])}")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RequestError(f"{where}: data has {twice!r} twice: drop one")
    return {name: found_path(name, folder) for name in names}
