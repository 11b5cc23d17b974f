"""What a user allows to be run for one model: said each time, never read from a file nor written to one."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from owl_compress.arguments import checked


@checked
@dataclass(frozen=True)
class Consent:
    """What loading one model may run. It holds for the model that it was given for and for no other.

    Attributes:
        trust_remote_code: code from the model's repository or folder.
        allow_pickle: pickled weights, which can run code while they load.
    """

    trust_remote_code: bool = False
    allow_pickle: bool = False

    @property
    def as_options(self) -> dict[str, Any]:
        """The same as options of `owl_compress.load`."""
        return asdict(self)


NO_CONSENT = Consent()
CONSENT_NAMES = tuple(one.name for one in fields(Consent))
