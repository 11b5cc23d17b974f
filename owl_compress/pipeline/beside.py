"""A dense model to hold another against: one that a user names, or the one that a folder was made from."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.consent import CONSENT_NAMES, NO_CONSENT, Consent
from owl_compress.device import DTYPES
from owl_compress.errors import RequestError
from owl_compress.pipeline.original import origin_of
from owl_compress.pipeline.stages import load

Say = Callable[[str], None]

ORIGINAL = "original"
"""Stands for the model that a folder says it was made from; a folder called so is ./original."""


@dataclass(frozen=True)
class Beside:
    """The dense model that --against names.

    Attributes:
        source: as for `owl_compress.load`, or "original".
        consent: what it may run while it loads; for "original" nothing: nobody has named it.
    """

    source: str
    consent: Consent = NO_CONSENT

    @classmethod
    def of(cls, source: str | None, consent: Consent = NO_CONSENT) -> "Beside | None":
        """The model that is named; None if there is none.

        Raises:
            RequestError: consent for a model that nobody names.
        """
        if consent != NO_CONSENT and source in {None, ORIGINAL}:
            raise RequestError(
                "--against-trust-remote-code and --against-allow-pickle are for the model that --against "
                "names: name it, or drop them"
            )
        return None if source is None else cls(source, consent)

    def check(self, model: str) -> None:
        """Refuse a `model` that is held against itself.

        Raises:
            RequestError: see above.
        """
        if is_same(self.source, model):
            raise RequestError(
                f"--against {self.source} is the model itself: name the dense one it was made from"
            )

    def load(self, loaded: LoadedModel, say: Say = lambda _: None) -> LoadedModel:
        """The dense model, in the data type of the model that is `loaded`.

        Raises:
            RequestError: it cannot be loaded, or nothing says what the other was made from.
        """
        dtype = loaded.dtype if loaded.dtype in DTYPES else "auto"
        if self.source == ORIGINAL:
            return _origin(loaded.source, dtype, say)
        say(f"loading {self.source}")
        try:
            return load(self.source, dtype=dtype, **self.consent.as_options)
        except RequestError as error:
            raise RequestError(of_against(error)) from error


def _origin(folder: str, dtype: str, say: Say) -> LoadedModel:
    found = origin_of(Path(folder).expanduser())
    if found is None:
        raise RequestError(
            f"{folder} does not say what it was made from, so that --against original means nothing: name "
            "the dense model"
        )
    say(f"loading {found.source}, which {folder} was made from")
    try:
        return found.load_whole(dtype=dtype)
    except RequestError as error:
        raise RequestError(f"--against original: {of_against(error)}") from error


def check_same_vocabulary(one: LoadedModel, dense: LoadedModel) -> None:
    """Refuse models whose predictions are of different tokens.

    Raises:
        RequestError: a token that only one of them has, or has under another id.
    """
    ours, theirs = one.tokenizer.get_vocab(), dense.tokenizer.get_vocab()
    if ours == theirs:
        return
    differing = {token for token, _ in ours.items() ^ theirs.items()}
    token = min(differing, key=lambda token: (min(ours.get(token, 2**63), theirs.get(token, 2**63)), token))
    raise RequestError(
        f"{one.source} and {dense.source} have different vocabularies (token {token!r} has id "
        f"{ours.get(token, 'none')} in one and {theirs.get(token, 'none')} in the other), so that their "
        "predictions cannot be compared: name the dense model that it was made from"
    )


def is_same(one: str, other: str) -> bool:
    """Whether two names stand for the same model, or the same folder or file."""
    if one == other:
        return True
    with suppress(OSError, RuntimeError, ValueError):  # no path, or none that can be followed
        return Path(one).expanduser().samefile(Path(other).expanduser())
    return False


def of_against(error: RequestError) -> str:
    """What a model beside another was refused for; its consent goes by names of its own."""
    text = str(error)
    for name in CONSENT_NAMES:
        option = name.replace("_", "-")
        text = text.replace(f"--{option}", f"--against-{option}")
    return text
