"""The versions that a file's provenance names."""

import platform
from importlib.metadata import version


def versions() -> dict[str, str]:
    """Versions of everything that shapes a result."""
    packages = {name: version(name) for name in ("owl-compress", "torch", "transformers")}
    return {"python": platform.python_version(), **packages}
