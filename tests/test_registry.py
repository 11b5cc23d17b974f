"""A registry knows its own and other packages' methods by name, and imports only what is asked for."""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import pytest

from owl_compress.allocators import ALLOCATORS
from owl_compress.backends import BACKENDS
from owl_compress.checkpoints.stored_forms import STORED_FORMS
from owl_compress.errors import RequestError
from owl_compress.importance.metrics import METRICS
from owl_compress.options import option
from owl_compress.registry import Registry

GROUP = "owl_compress.birds"
HERE = "birds_of_this_test"


@dataclass(frozen=True)
class Owl:
    """A method with one of each kind of name."""

    name: ClassVar[str] = "owl"

    size: int = option(3, "How large.", at_least=1)
    eye_count: int = option(2, "How many eyes.", name="eyes")
    sleeps: bool = option(True, "Stay awake.")

    def __post_init__(self) -> None:
        if self.size == 13:
            raise ValueError("size 13 brings bad luck: give another")


@dataclass(frozen=True)
class Tit:
    """A method without options."""

    name: ClassVar[str] = "tit"


@pytest.fixture(autouse=True)
def birds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes above, importable under a name of their own."""
    module = type(sys)(HERE)
    vars(module).update(Owl=Owl, Tit=Tit)
    monkeypatch.setitem(sys.modules, HERE, module)


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that has other packages offer entry points, given by name, in the group of the tests."""

    def offer(**values: str) -> None:
        def found(group: str) -> list[EntryPoint]:
            points = [EntryPoint(name.replace("_", "-"), value, GROUP) for name, value in values.items()]
            return points if group == GROUP else []

        monkeypatch.setattr("owl_compress.registry.entry_points", found)

    return offer


def registry(**builtin: str) -> Registry:
    return Registry(kind="bird", group=GROUP, builtin=builtin)


OURS = {"owl": f"{HERE}:Owl", "tit": f"{HERE}:Tit"}


def test_names_are_sorted_whoever_they_are_from(offer: Callable[..., None]) -> None:
    offer(raven="nowhere:Raven", auk="nowhere:Auk")
    assert registry(tit=OURS["tit"], owl=OURS["owl"]).names() == ("auk", "owl", "raven", "tit")


@pytest.mark.parametrize("table", [ALLOCATORS, BACKENDS, METRICS, STORED_FORMS], ids=lambda table: table.kind)
def test_every_built_in_name_can_be_imported_and_names_are_sorted(table: Registry) -> None:
    assert list(table.names()) == sorted(table.names())
    assert set(table.names()) >= table.builtin.keys()
    for name in table.builtin:
        assert table.load(name) is not None


def test_knowing_the_names_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "explosive.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    table = registry(owl=OURS["owl"], bomb="explosive:Bomb")
    assert table.names() == ("bomb", "owl")
    assert table.load("owl") is Owl
    with pytest.raises(AssertionError, match="imported"):
        table.load("bomb")


def test_what_another_package_offers_is_loaded_by_its_name(offer: Callable[..., None]) -> None:
    offer(tit=OURS["tit"])
    table = registry(owl=OURS["owl"])
    assert table.load("tit") is Tit
    assert table.create("tit") == Tit()


def test_entry_points_of_other_groups_are_not_looked_at(offer: Callable[..., None]) -> None:
    offer(tit=OURS["tit"])
    assert Registry("bird", "owl_compress.others", {"owl": OURS["owl"]}).names() == ("owl",)


def test_a_built_in_name_cannot_be_replaced(offer: Callable[..., None]) -> None:
    offer(owl=OURS["tit"])
    table = registry(owl=OURS["owl"])
    assert table.names() == ("owl",)
    assert table.load("owl") is Owl


@pytest.mark.parametrize("use", [Registry.load, Registry.create], ids=["load", "create"])
def test_an_unknown_name_offers_the_near_one(
    offer: Callable[..., None], use: Callable[[Registry, str], object]
) -> None:
    offer(great_tit=OURS["tit"])
    table = registry(owl=OURS["owl"])
    with pytest.raises(RequestError, match=r"^unknown bird 'great-tits': did you mean 'great-tit'\?$"):
        use(table, "great-tits")
    with pytest.raises(RequestError, match=r"^unknown bird 'zzz': known: great-tit, owl$"):
        use(table, "zzz")


def test_creating_passes_the_options_on() -> None:
    table = registry(**OURS)
    assert table.create("owl") == table.create("owl", {}) == Owl()
    assert table.create("owl", {"size": "7", "eyes": 1, "no_sleeps": True}) == Owl(7, 1, sleeps=False)
    assert table.create("owl", {"eye_count": 1, "sleeps": False}) == Owl(3, 1, sleeps=False)
    assert table.create("owl", {"size": None}) == Owl()


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("owl", {"wing_span": 1}, "bird 'owl' takes no wing-span; it takes: size, eyes, no-sleeps"),
        ("tit", {"size": 1}, "bird 'tit' takes no size; it takes no options"),
        ("owl", {"size": 0}, "bird 'owl': size 0 must be at least 1"),
        ("owl", {"eyes": "two"}, "bird 'owl': eyes: has to be a whole number"),
        ("owl", {"size": 13}, "bird 'owl': size 13 brings bad luck: give another"),
    ],
)
def test_creating_refuses_what_a_method_does_not_take(
    name: str, given: dict[str, object], message: str
) -> None:
    with pytest.raises(RequestError) as refused:
        registry(**OURS).create(name, given)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no_such_package_at_all:Raven", "No module named 'no_such_package_at_all'"),
        (f"{HERE}:Raven", "no attribute 'Raven'"),
        ("explosive:Bomb", "it went off"),
    ],
)
def test_what_another_package_cannot_import_is_left_out_and_told(
    offer: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    value: str,
    reason: str,
) -> None:
    (tmp_path / "explosive.py").write_text("raise RuntimeError('it went off')\n")
    monkeypatch.syspath_prepend(tmp_path)
    offer(raven=value, tit=OURS["tit"])
    table = registry(owl=OURS["owl"])
    with caplog.at_level(logging.INFO, "owl_compress.registry"):
        assert list(table.loadable()) == [("owl", Owl), ("tit", Tit)]
    (record,) = caplog.records
    assert record.getMessage().startswith("bird 'raven' cannot be imported (")
    assert reason in record.getMessage()
    assert "raven" in table.names()


@pytest.mark.parametrize("use", [Registry.load, Registry.create], ids=["load", "create"])
def test_asking_for_what_another_package_cannot_import_is_refused_in_one_line(
    offer: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    use: Callable[[Registry, str], object],
) -> None:
    (tmp_path / "explosive.py").write_text("raise RuntimeError('it went\\noff')\n")
    monkeypatch.syspath_prepend(tmp_path)
    offer(raven="explosive:Bomb")
    with pytest.raises(RequestError) as refused:
        use(registry(**OURS), "raven")
    assert str(refused.value) == (
        "bird 'raven' cannot be imported (it went off): repair or remove the package that brings it"
    )


def test_a_built_in_that_cannot_be_imported_is_a_defect_and_not_left_out() -> None:
    with pytest.raises(ModuleNotFoundError):
        list(registry(owl=OURS["owl"], raven="no_such_package_at_all:Raven").loadable())
