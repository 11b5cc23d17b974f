"""A method's options: what users may give, as text or typed, and in what words it is refused."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from owl_compress.allocators import ALLOCATORS
from owl_compress.backends import BACKENDS
from owl_compress.cli.options import of_methods
from owl_compress.errors import RequestError
from owl_compress.options import NONE, Option, as_given, build, not_taken, option, options_of
from owl_compress.registry import Registry


class Scope(StrEnum):
    ROW = "row"
    LINEAR = "linear"


@dataclass(frozen=True)
class Method:
    """One field of every kind."""

    group_size: int | None = option(64, "Inputs that share a scale.", stated=True, at_least=1)
    steps: int = option(3, "How many.", at_least=1, at_most=9)
    damping: float = option(0.01, "How much.", above=0, below=1)
    law: Literal["paper", "code"] | None = option(None, "Which law.", name="owl_law")
    order: Literal["up", "down"] = option("up", "Which way.")
    scope: Scope = option(Scope.ROW, "Among which weights.")
    search: bool = option(False, "Search.")
    repair: bool = option(True, "Leave it broken.")
    symmetric: bool = option(True, "With zero points.", name="asymmetric")
    plain: float = 2.5
    plain_switch: bool = False
    tuned: int = field(default=1, metadata={"help": "Of another package.", "name": "tuning", "at_most": 4})

    name: ClassVar[str] = "method"


OPTIONS = {one.field: one for one in options_of(Method)}


def refusal(given: Mapping[str, Any]) -> str:
    with pytest.raises(RequestError) as refused:
        build(Method, "backend 'method'", given)
    message = str(refused.value)
    assert message.startswith("backend 'method'")
    assert "\n" not in message
    return message.removeprefix("backend 'method'").removeprefix(": ")


def test_fields_are_seen_in_their_order_and_class_variables_are_none() -> None:
    assert list(OPTIONS) == [
        "group_size", "steps", "damping", "law", "order", "scope", "search", "repair", "symmetric", "plain",
        "plain_switch", "tuned",
    ]  # fmt: skip


def test_a_field_that_is_not_given_at_birth_is_no_option() -> None:
    @dataclass(frozen=True)
    class Derived:
        size: int = 1
        area: int = field(default=1, init=False)

    assert [one.field for one in options_of(Derived)] == ["size"]


@pytest.mark.parametrize(
    ("of", "name", "shown"),
    [
        ("steps", "steps", "steps"),
        ("group_size", "group_size", "group-size"),
        ("law", "owl_law", "owl-law"),
        ("repair", "no_repair", "no-repair"),
        ("symmetric", "asymmetric", "asymmetric"),
        ("plain_switch", "plain_switch", "plain-switch"),
        ("tuned", "tuning", "tuning"),
    ],
)
def test_an_option_has_the_name_that_users_type(of: str, name: str, shown: str) -> None:
    assert OPTIONS[of].name == name
    assert OPTIONS[of].shown_name == shown


def test_an_option_tells_what_its_field_says_of_itself() -> None:
    assert OPTIONS["group_size"] == Option(
        field="group_size",
        name="group_size",
        help="Inputs that share a scale.",
        default=64,
        annotation=int | None,
        stated=True,
        bounds={"at_least": 1},
    )
    assert OPTIONS["damping"].bounds == {"above": 0, "below": 1}
    assert not OPTIONS["damping"].stated


def test_a_field_without_metadata_is_an_option_without_help_or_range() -> None:
    assert OPTIONS["plain"] == Option("plain", "plain", "", 2.5, float, stated=False, bounds={})
    assert OPTIONS["tuned"].help == "Of another package."
    assert OPTIONS["tuned"].bounds == {"at_most": 4}


def test_choices_are_words_and_nothing_else_has_any() -> None:
    assert {name: one.choices for name, one in OPTIONS.items() if one.choices} == {
        "law": ("paper", "code"),
        "order": ("up", "down"),
        "scope": ("row", "linear"),
    }


def test_switches_are_given_without_a_value_and_some_turn_off() -> None:
    assert [name for name, one in OPTIONS.items() if one.is_switch] == [
        "search", "repair", "symmetric", "plain_switch",
    ]  # fmt: skip
    assert [name for name, one in OPTIONS.items() if one.is_turned] == ["repair", "symmetric"]


@pytest.mark.parametrize(
    ("of", "given", "value"),
    [
        ("group_size", "32", 32),
        ("group_size", 32, 32),
        ("group_size", "none", None),
        ("steps", "1", 1),
        ("steps", 9, 9),
        ("damping", "1e-3", 0.001),
        ("damping", 0.5, 0.5),
        ("law", "paper", "paper"),
        ("law", "none", None),
        ("order", "down", "down"),
        ("scope", "linear", Scope.LINEAR),
        ("scope", Scope.LINEAR, Scope.LINEAR),
        ("search", True, True),
        ("search", "true", True),
        ("search", "false", False),
        ("repair", True, False),
        ("repair", "true", False),
        ("repair", False, True),
        ("repair", "false", True),
        ("symmetric", True, False),
        ("plain", "7", 7.0),
        ("plain", -1, -1.0),
        ("plain_switch", True, True),
        ("tuned", "4", 4),
    ],
)
def test_text_and_typed_values_are_taken_under_the_users_name(of: str, given: object, value: object) -> None:
    parsed = OPTIONS[of].parsed(given)
    assert parsed == value
    assert type(parsed) is type(value)
    assert getattr(build(Method, "it", {OPTIONS[of].name: given}), of) == value


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"group_size": 0}, "group-size 0 must be at least 1"),
        ({"group_size": "0"}, "group-size 0 must be at least 1"),
        ({"steps": 0}, "steps 0 must be at least 1"),
        ({"steps": "10"}, "steps 10 must be at most 9"),
        ({"damping": 0}, "damping 0 must be above 0"),
        ({"damping": "1"}, "damping 1 must be below 1"),
        ({"damping": "nan"}, "damping nan must be above 0"),
        ({"tuning": 5}, "tuning 5 must be at most 4"),
        ({"owl_law": "papr"}, "unknown owl-law 'papr': did you mean 'paper'?"),
        ({"order": "none"}, "unknown order 'none': did you mean 'down'?"),
        ({"scope": "rows"}, "unknown scope 'rows': did you mean 'row'?"),
        ({"scope": 3}, "unknown scope 3: known: linear, row"),
    ],
)
def test_values_out_of_range_are_refused_by_the_users_name(given: dict[str, object], message: str) -> None:
    assert refusal(given) == message


@pytest.mark.parametrize(
    ("given", "start", "end"),
    [
        ({"group_size": "many"}, "group-size: has to be a whole number", "(got 'many')"),
        ({"group_size": 1.5}, "group-size: has to be a whole number", "(got 1.5)"),
        ({"steps": "none"}, "steps: has to be a whole number", "(got 'none')"),
        ({"damping": "low"}, "damping: has to be a number", "(got 'low')"),
        ({"no_repair": "perhaps"}, "no-repair: has to be true or false", "(got 'perhaps')"),
        ({"repair": "perhaps"}, "no-repair: has to be true or false", "(got 'perhaps')"),
        ({"tuning": "x"}, "tuning: has to be a whole number", "(got 'x')"),
        ({"plain": "x"}, "plain: has to be a number", "(got 'x')"),
    ],
)
def test_values_of_another_type_are_refused_by_the_users_name(
    given: dict[str, object], start: str, end: str
) -> None:
    message = refusal(given)
    assert message.startswith(start)
    assert message.endswith(end)


def test_an_option_that_the_method_lacks_is_refused_with_those_that_it_has() -> None:
    assert refusal({"group_sizes": 1}) == (
        " takes no group-sizes; it takes: group-size, steps, damping, owl-law, order, scope, search, "
        "no-repair, asymmetric, plain, plain-switch, tuning"
    )
    assert not_taken("it", "a_b", ()) == "it takes no a-b; it takes no options"


def test_none_counts_as_not_given_and_the_word_as_a_value() -> None:
    assert build(Method, "it", dict.fromkeys((one.name for one in OPTIONS.values()), None)) == Method()
    assert build(Method, "it", {"group_size": NONE}) == Method(group_size=None)


def test_the_name_of_the_field_takes_the_value_of_the_field() -> None:
    given = {"law": "code", "repair": False, "symmetric": False, "tuned": 2}
    assert build(Method, "it", given) == Method(law="code", repair=False, symmetric=False, tuned=2)
    assert build(Method, "it", {"repair": True}) == Method()


def test_what_a_method_refuses_at_birth_is_a_refusal_in_its_own_words() -> None:
    @dataclass(frozen=True)
    class Picky:
        size: int = 1

        def __post_init__(self) -> None:
            if self.size % 2 == 0:
                raise ValueError(f"size {self.size} is even: give an odd one")

    with pytest.raises(RequestError, match=r"^metric 'picky': size 2 is even: give an odd one$"):
        build(Picky, "metric 'picky'", {"size": 2})


def values_of(of: str) -> st.SearchStrategy[Any]:
    return {
        "group_size": st.none() | st.integers(1),
        "steps": st.integers(1, 9),
        "damping": st.floats(0, 1, exclude_min=True, exclude_max=True),
        "law": st.sampled_from(["paper", "code", None]),
        "order": st.sampled_from(["up", "down"]),
        "scope": st.sampled_from(Scope),
        "plain": st.floats(allow_nan=False),
        "tuned": st.integers(max_value=4),
    }.get(of, st.booleans())


@pytest.mark.parametrize("of", OPTIONS)
@for_all(data=st.data())
def test_what_a_user_gives_for_a_value_comes_back_as_that_value(of: str, data: st.DataObject) -> None:
    one, value = OPTIONS[of], data.draw(values_of(of))
    given = one.given_for(value)
    assert type(given) in {int, float, str, bool, type(None)}
    assert getattr(build(Method, "it", {one.name: given}), of) == value
    if given is not None:
        assert one.parsed(given) == value
        assert one.parsed(str(given)) == value


def test_a_switch_left_alone_is_not_given() -> None:
    assert [OPTIONS[of].given_for(value) for of, value in (("search", False), ("search", True))] == [
        None,
        True,
    ]
    assert [OPTIONS[of].given_for(value) for of, value in (("repair", True), ("repair", False))] == [
        None,
        True,
    ]


@pytest.mark.parametrize(
    ("table", "name"),
    [(table, name) for table in (ALLOCATORS, BACKENDS) for name in table.builtin],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
def test_every_method_of_ours_explains_its_options_and_takes_its_own_defaults(
    table: Registry, name: str
) -> None:
    options = options_of(table.load(name))
    assert len({one.name for one in options}) == len(options)
    given = {one.name: one.given_for(one.default) for one in options if one.default is not None}
    assert table.create(name, given) == table.create(name)
    for one in options:
        assert one.help.endswith("."), one.name


def test_an_option_that_is_a_switch_here_and_a_value_there_is_kept_apart() -> None:
    """Methods of two packages may call different things alike: each gets what it takes."""

    @dataclass(frozen=True)
    class Switched:
        repair: bool = option(False, "Mend it.")

    @dataclass(frozen=True)
    class Valued:
        repair: int = option(1, "How often.")

    (switch,), (value,) = options_of(Switched), options_of(Valued)
    for members in ([("a", switch), ("b", value)], [("b", value), ("a", switch)]):
        (parameter,) = of_methods(members)
        assert parameter.annotation.__origin__ == str | None
    assert build(Switched, "a", {"repair": "true"}).repair is True
    assert build(Valued, "b", {"repair": "3"}).repair == 3
    (alone,) = of_methods([("a", switch)])
    assert alone.annotation.__origin__ is bool


@pytest.mark.parametrize("value", [2**128, 10**400, "9" * 400, -(10**40)])
def test_an_integer_that_no_setting_needs_is_refused_in_one_short_line(value: object) -> None:
    (steps,) = (one for one in options_of(Method) if one.name == "steps")
    with pytest.raises(RequestError, match=r"steps .* is too large") as refused:
        steps.parsed(value)
    assert len(str(refused.value)) < 300


def test_what_is_recorded_is_told_under_the_names_that_users_give_it_with() -> None:
    rtn = options_of(BACKENDS.load("rtn"))
    recorded = {"group_size": None, "symmetric": False, "mse": False}
    assert as_given(rtn, recorded) == {"group-size": NONE, "asymmetric": True}
    owl = options_of(ALLOCATORS.load("owl"))
    recorded = {"metric": "lod@5", "lam": 0.1, "law": "bounded", "granularity": "block", "asked_target": 0.5}
    assert as_given(owl, recorded) == {
        "metric": "lod@5",
        "lam": 0.1,
        "owl-law": "bounded",
        "granularity": "block",
        "asked-target": 0.5,
    }
    assert as_given(owl, {"lam": None, "set": {}, "skip": []}) == {}
    assert BACKENDS.as_given("of a package that is gone", {"eye_count": 2}) == {"eye-count": 2}
