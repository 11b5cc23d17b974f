"""The methods there are: allocators, backends and recoveries, and who is meant where nobody says."""

from owl_compress.allocators import ALLOCATORS, DEFAULT_ALLOCATOR, DEFAULT_FROM_PROFILE, default_for
from owl_compress.backends import BACKENDS, DEFAULT_BACKEND
from owl_compress.recovery.methods import DEFAULT_METHOD as DEFAULT_RECOVERY
from owl_compress.recovery.methods import METHODS as RECOVERIES

__all__ = [
    "ALLOCATORS",
    "AUTO",
    "BACKENDS",
    "DEFAULT_ALLOCATOR",
    "DEFAULT_BACKEND",
    "DEFAULT_FROM_PROFILE",
    "DEFAULT_RECOVERY",
    "RECOVERIES",
    "default_for",
]

AUTO = "auto"
"""Who tries what several allocators make of a budget: none itself, for it carries plans out."""
