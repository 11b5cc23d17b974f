"""The line from Python: a folder with a tiny saved model and texts, and recipes for it."""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor, nn

from owl_compress.checkpoints.stored_forms import STORED_FORMS
from owl_compress.documents.recipe import Recipe
from owl_compress.pipeline.methods import ALLOCATORS, BACKENDS

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(scope="session")
def recipe() -> MakeRecipe:
    """A function that makes a recipe for `model` in `here`: four sequences of 32 tokens, on the CPU.

    The allocator is owl unless one, or a plan, is named.
    """

    def make(backend: str, **options: Any) -> Recipe:
        usual = {"model": "model", "calib": "text.txt", "samples": 4, "seq_len": 32, "device": "cpu"}
        divided = {} if "plan" in options else {"allocator": "owl"}
        return Recipe.from_options({**usual, **divided, "backend": backend, **options})

    return make


@pytest.fixture(scope="session")
def listing() -> Callable[[Path], dict[str, str]]:
    """A function that lists all below a folder, hidden ones too, with the sha256 of what files hold."""

    def found(folder: Path) -> dict[str, str]:
        return {
            str(path.relative_to(folder)): _sha256(path.read_bytes()) if path.is_file() else ""
            for path in sorted(folder.rglob("*"))
        }

    return found


@pytest.fixture(scope="session")
def state_bytes() -> Callable[[nn.Module], dict[str, str]]:
    """A function that says what the parameters of a model hold, as a sha256 of each."""

    def found(model: nn.Module) -> dict[str, str]:
        return {name: _sha256(tensor.numpy().tobytes()) for name, tensor in model.state_dict().items()}

    return found


@pytest.fixture(scope="session")
def saved_linears() -> Callable[[Path | str], dict[str, Tensor]]:
    """A function that reads the weights of all linears of the blocks from a folder."""

    def read(folder: Path | str) -> dict[str, Tensor]:
        tensors = load_file(Path(folder) / "model.safetensors").items()
        return {
            name.removesuffix(".weight"): tensor
            for name, tensor in tensors
            if ".layers." in name and tensor.ndim == 2
        }

    return read


@pytest.fixture
def count_calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], list[Any]]:
    """A function that has the calls of another counted, under every name that a module has for it."""
    for registry in (ALLOCATORS, BACKENDS, STORED_FORMS):
        list(registry.loadable())

    def count(function: Callable[..., Any]) -> list[Any]:
        calls: list[Any] = []

        def counted(*positional: Any, **named: Any) -> Any:
            calls.append(positional)
            return function(*positional, **named)

        for module in [module for name, module in sys.modules.items() if name.startswith("owl_compress")]:
            for name, value in list(vars(module).items()):
                if value is function:
                    monkeypatch.setattr(module, name, counted)
        return calls

    return count


@pytest.fixture
def count_made(monkeypatch: pytest.MonkeyPatch) -> Callable[[type], list[Any]]:
    """A function that has the instances of a class counted."""

    def count(kind: type) -> list[Any]:
        made: list[Any] = []
        original: Callable[..., None] = vars(kind)["__init__"]

        def counted(self: Any, *positional: Any, **named: Any) -> None:
            made.append(named)
            original(self, *positional, **named)

        monkeypatch.setattr(kind, "__init__", counted)
        return made

    return count


@pytest.fixture(scope="session")
def edit_json() -> Callable[[Path, Callable[[Any], None]], None]:
    """A function that changes a JSON file by hand."""

    def edit(path: Path, change: Callable[[Any], None]) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return edit


@pytest.fixture(scope="session")
def write_result() -> Callable[..., None]:
    """A function that writes by hand a result.json of one linear, with the steps before it."""

    def write(
        folder: Path,
        model: str,
        unit: str,
        *,
        revision: str | None = None,
        n_params: int = 44_448,
        earlier: tuple[Mapping[str, Any], ...] = (),
    ) -> None:
        budget = {"name": "model.layers.0.mlp.up_proj", "block": "model.layers.0", "unit": unit}
        numbers = {"asked": 0.5, "achieved": 0.5, "n_weights": 2048, "relative_error": 0.1, "seconds": 0.1}
        totals = {"asked": 0.5, "achieved": 0.5, "n_weights": 2048, "bits_per_weight": 32.0}
        sizes = {"bytes_on_disk": 1000, "n_params_before": n_params, "n_params_after": n_params // 2}
        content = {
            "schema": "owl-compress/result/1",
            "model": {"id": model, "revision": revision, "family": "llama", "dtype": "float32"},
            "backend": {"name": "structured", "parameters": {}},
            "error_measure": "-",
            "totals": totals | sizes,
            "earlier": list(earlier),
            "calibration": None,
            "seed": 0,
            "wall_seconds": 1.0,
            "peak_device_bytes": 0,
            "peak_host_bytes": 0,
            "versions": {},
            "report": "-",
            "plan": "-",
            "budgets": [budget | numbers],
        }
        folder.mkdir(exist_ok=True)
        (folder / "result.json").write_text(json.dumps(content))

    return write


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
