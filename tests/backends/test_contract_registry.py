"""What can be seen of every registered backend without running it, those of checkpoints included."""

from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import Any

import pytest

from owl_compress.backends import BACKENDS
from owl_compress.compression.contract import CheckpointBackend
from owl_compress.documents.stored_format import StoredFormat
from owl_compress.documents.units import Unit
from owl_compress.options import options_of


@pytest.fixture(params=BACKENDS.names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def method(name: str) -> Any:
    return BACKENDS.load(name)


def test_a_backend_is_called_what_it_is_registered_as(name: str, method: Any) -> None:
    assert method.name == name
    assert BACKENDS.create(name).name == name


def test_a_backend_that_runs_on_models_has_a_case(name: str, method: Any, all_cases: tuple[Any, ...]) -> None:
    if hasattr(method, "compress_checkpoint"):
        pytest.skip("works on checkpoint folders")
    assert name in {case.name for case in all_cases}, (
        f"backend {name!r} counts in {method.unit}, for which no plan is tried: add one to KINDS, and to "
        "OPTIONS what makes it fit the tiny models, in tests/backends/conftest.py"
    )


def test_every_unit_has_a_backend_with_a_case(all_cases: tuple[Any, ...]) -> None:
    assert {case.unit for case in all_cases} == set(Unit)


def test_a_backend_is_frozen_and_says_what_it_does(name: str, method: Any) -> None:
    backend = BACKENDS.create(name)
    assert is_dataclass(method)
    assert backend == method()
    for field in fields(method):
        with pytest.raises(FrozenInstanceError):
            setattr(backend, field.name, getattr(backend, field.name))
    assert method.unit in Unit
    assert backend.statistic is None or callable(backend.statistic.empty)
    assert backend.error_measure
    assert "\n" not in backend.error_measure
    if isinstance(backend, CheckpointBackend):
        assert isinstance(backend.stored_format, StoredFormat)
    else:
        assert callable(backend.compress_block_)
        assert backend.survey is None or callable(backend.survey.redistribute)


def test_every_option_tells_users_what_it_does(name: str, method: Any) -> None:
    options = options_of(method)
    assert len({option.name for option in options}) == len(options)
    for option in options:
        assert option.help.endswith("."), f"option {option.shown_name} of {name}"
        assert option.help[0].isupper(), f"option {option.shown_name} of {name}"
        assert "\n" not in option.help
