"""Who may import whom. Only the command line and the pipeline know both allocators and backends."""

import ast
import subprocess
import sys
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
HEAVY = ("torch", "transformers", "datasets", "accelerate", "safetensors")


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


def offences(part: str, *forbidden: str) -> list[str]:
    """Imports of `forbidden` packages by modules of the package `part`."""
    return [
        f"{module} imports {name}"
        for module, path in SOURCES.items()
        if under(module, part)
        for name in imported(path)
        if under(name, *forbidden)
    ]


def test_the_sources_are_found() -> None:
    assert "owl_compress.walk.blocks" in SOURCES
    assert "owl_compress.allocators.owl" in SOURCES
    assert SOURCES.keys() >= METHODS
    assert "owl_compress.models.structure.find_structure" in set(
        imported(SOURCES["owl_compress.importance.estimator"])
    )


def test_allocators_know_no_tensors_and_no_backend() -> None:
    heavy_parts = [
        module
        for module, path in SOURCES.items()
        if not under(module, "owl_compress.allocators")
        and any(under(name, *HEAVY) for name in imported(path))
    ]
    assert "owl_compress.walk.blocks" in heavy_parts
    assert offences("owl_compress.allocators", *HEAVY, *heavy_parts, "owl_compress.backends") == []


def test_backends_know_no_allocator() -> None:
    assert offences("owl_compress.backends", "owl_compress.allocators") == []


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


def test_only_command_line_and_pipeline_know_allocators_or_backends() -> None:
    found = [
        offence
        for part in ("allocators", "backends")
        for offence in offences("owl_compress", f"owl_compress.{part}")
        if not under(
            offence.partition(" ")[0], "owl_compress.cli", "owl_compress.pipeline", f"owl_compress.{part}"
        )
    ]
    assert found == []


def test_nobody_below_knows_the_command_line() -> None:
    found = offences("owl_compress", "owl_compress.cli")
    allowed = ("owl_compress.cli", "owl_compress.__main__")
    assert [offence for offence in found if not under(offence.partition(" ")[0], *allowed)] == []


def test_nothing_is_imported_from_the_private_parts_of_another_module() -> None:
    found = [
        f"{module} imports {name}"
        for module, path in SOURCES.items()
        for name in imported(path)
        if under(name, "owl_compress") and name.rpartition(".")[2].startswith("_")
    ]
    assert found == []


@pytest.mark.parametrize(
    "module", ["owl_compress", "owl_compress.allocators", "owl_compress.documents.plan", "owl_compress.cli"]
)
def test_importing_is_light(module: str) -> None:
    code = f"import sys, {module}; print(sorted(set({HEAVY!r}) & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
