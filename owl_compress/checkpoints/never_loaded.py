"""What forms have in common that are recognised here in order to be refused, being for other software."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from owl_compress.checkpoints.reading import CheckpointSource


class NeverLoaded:
    """The part of a form's protocol that follows from its `check_loadable`, which always refuses."""

    def check_loadable(self, source: "CheckpointSource") -> None:
        """Refuse it."""
        raise NotImplementedError

    def load(self, source: "CheckpointSource") -> Any:
        """See `check_loadable`."""
        self.check_loadable(source)

    def suits(self, model: Any, *, wants_codes: bool) -> bool:  # noqa: ARG002 - the protocol's signature
        """Never unasked."""
        return False
