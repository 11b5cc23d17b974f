"""The table of docs/elsewhere.md and the tests that it speaks of are the same."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "elsewhere.md").read_text(encoding="utf-8")


def rows() -> list[tuple[str, ...]]:
    """Output, consumer, how it was proven, with which versions."""
    table = PAGE.partition("|---|---|---|---|\n")[2].partition("\n\n")[0]
    return [tuple(line.strip("| ").split(" | ")) for line in table.splitlines()]


def proofs() -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """What the marked tests say of themselves: output, consumer, how, packages."""
    for path in sorted(HERE.glob("test_*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            node.targets[0].id: node.value
            for node in module.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for test in (node for node in module.body if isinstance(node, ast.FunctionDef)):
            calls = [mark for mark in test.decorator_list if isinstance(mark, ast.Call)]
            marks = {ast.unparse(call.func): call.args for call in calls}
            if "pytest.mark.proves" in marks:
                consumer, *packages = (ast.literal_eval(one) for one in marks["pytest.mark.proves"])
                how = " ".join((ast.get_docstring(test) or "").split())
                for output in _values(marks["pytest.mark.parametrize"][1], names):
                    yield output, consumer, how, tuple(packages)


def _values(node: ast.expr, names: dict[str, ast.expr]) -> list[str]:
    """A list of texts as it stands in a decorator, with names of the module in it."""
    if isinstance(node, ast.Name):
        return _values(names[node.id], names)
    if isinstance(node, ast.Starred):
        return _values(node.value, names)
    if isinstance(node, ast.List | ast.Tuple):
        return [text for one in node.elts for text in _values(one, names)]
    return [ast.literal_eval(node)]


def test_every_row_is_a_test_and_every_test_a_row() -> None:
    proven = list(proofs())
    assert {row[:3] for row in rows()} == {proof[:3] for proof in proven}
    assert len(rows()) == len(proven) == len({row[:2] for row in rows()})


def test_every_row_names_the_packages_that_it_was_proven_with() -> None:
    packages = {proof[:2]: proof[3] for proof in proofs()}
    for output, consumer, _, versions in rows():
        named = re.findall(r"([\w-]+) \d[\w.+]*", versions)
        assert tuple(named) == packages[output, consumer]


def test_every_output_is_loaded_by_somebody() -> None:
    from_conftest = ast.parse((HERE / "conftest.py").read_text(encoding="utf-8"))
    (outputs,) = (
        [ast.literal_eval(key) for key in node.value.keys if key is not None]
        for node in from_conftest.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.value, ast.Dict)
        and ast.unparse(node.target) == "OUTPUTS"
    )
    loaded = {row[0] for row in rows() if row[1] not in {"the hub's card", "gguf"}}
    assert loaded == set(outputs)
