"""Who may import whom: every room has its place in the house, and some are light."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from owl_compress.backends import BACKENDS

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "owl_compress": "owl_compress",
    "allocators": "owl_compress.allocators",
    "backends": "owl_compress.backends",
}
METHODS = {path.partition(":")[0] for path in BACKENDS.builtin.values()}
HEAVY = ("torch", "transformers", "datasets", "accelerate", "safetensors", "scipy.optimize")

WALK = {"models", "data", "documents"}
COMPRESSION = {"walk", "forms", "models", "data", "documents"}
MAY_IMPORT: dict[str, set[str]] = {
    "root": set(),
    "documents": set(),
    "models": {"documents"},
    "data": {"documents"},
    "exports": {"documents"},
    "pages": {"documents"},
    "allocators": {"documents"},
    "forms": {"models", "documents"},
    "walk": WALK,
    "checkpoints": {"forms", "models", "documents"},
    "compression": COMPRESSION,
    "importance": {"compression", *COMPRESSION},
    "refinement": {"importance", "compression", *COMPRESSION},
    "evaluation": COMPRESSION,
    "recovery": COMPRESSION,
    "backends": {"compression", *COMPRESSION, "checkpoints", "exports"},
    "cli": {"pipeline", "documents", "pages"},
}
"""What each room may import besides itself and the root modules; the pipeline all but the command line."""

EVERYTHING_BUT_CLI = {room for room in MAY_IMPORT if room != "cli"}


def module_name(path: Path) -> str:
    """The name under which a source file is imported."""
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([PACKAGES[folder], *rest]).removesuffix(".__init__")


def imported(path: Path) -> Iterator[str]:
    """Full names of everything that a source file imports, wherever in it; "a.b" for `from a import b`."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def under(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


SOURCES = {module_name(path): path for folder in PACKAGES for path in sorted((ROOT / folder).rglob("*.py"))}
ROOMS = {name.split(".")[1] for name in SOURCES if name.count(".") > 1} | {"allocators", "backends"}


ENTRANCES = {"owl_compress", "owl_compress.__main__"}
"""The public page, which names what the rooms hold, and the command line as `python -m` finds it."""


def room(name: str) -> str:
    """The room that a module, or something in it, belongs to."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "root"


def test_the_sources_are_found() -> None:
    assert "owl_compress.walk.blocks" in SOURCES
    assert "owl_compress.allocators.owl" in SOURCES
    assert SOURCES.keys() >= METHODS
    assert room("owl_compress.walk.blocks.BlockWalk") == "walk"
    assert room("owl_compress.errors.RequestError") == "root"
    found = set(imported(SOURCES["owl_compress.importance.estimator"]))
    assert "owl_compress.models.structure.find_structure" in found


def test_every_room_has_its_place() -> None:
    assert ROOMS - {"pipeline"} <= MAY_IMPORT.keys()


@pytest.mark.parametrize("here", sorted(ROOMS | {"root"}))
def test_a_room_imports_only_what_lies_below_it(here: str) -> None:
    allowed = EVERYTHING_BUT_CLI if here == "pipeline" else MAY_IMPORT[here]
    found = [
        f"{module} imports {name}"
        for module, path in SOURCES.items()
        if room(module) == here and module not in ENTRANCES
        for name in imported(path)
        if under(name, "owl_compress") and room(name) not in {here, "root", *allowed}
    ]
    assert found == []


def test_backends_do_not_know_each_other() -> None:
    # What several methods share (selection, masking, solver) is no method: it is not registered.
    found = [
        f"{module} imports {name}"
        for module, path in SOURCES.items()
        if under(module, "owl_compress.backends")
        for name in imported(path)
        for method in METHODS - {module}
        if under(name, method)
    ]
    assert found == []


def test_nothing_is_imported_from_the_private_parts_of_another_module() -> None:
    found = [
        f"{module} imports {name}"
        for module, path in SOURCES.items()
        for name in imported(path)
        if under(name, "owl_compress") and name.rpartition(".")[2].startswith("_")
    ]
    assert found == []


def heavy_after(*modules: str) -> str:
    """What of the heavy packages a fresh process has loaded after importing these modules."""
    code = f"import sys, {', '.join(modules)}; print(sorted(set({HEAVY!r}) & sys.modules.keys()))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ran.stdout.strip()


@pytest.mark.parametrize("light", ["root", "documents", "exports", "pages", "allocators"])
def test_light_rooms_load_no_torch(light: str) -> None:
    modules = [module for module in SOURCES if room(module) == light]
    if modules:  # a room may be empty yet
        assert heavy_after(*modules) == "[]"


@pytest.mark.parametrize(
    "module", ["owl_compress.cli", "owl_compress.backends", "owl_compress.pipeline.request"]
)
def test_importing_is_light(module: str) -> None:
    assert heavy_after(module) == "[]"


def test_every_folder_with_python_in_it_is_packaged() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {module_name(path / "__init__.py") for path in {path.parent for path in SOURCES.values()}}
    assert set(listed["packages"]) == folders
