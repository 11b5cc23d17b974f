"""What was probably meant, and what is wrong with a value, each in one line."""

from typing import Literal

import pytest
from pydantic import BaseModel, Field, ValidationError

from owl_compress.errors import RequestError, first_problem, nearest


class Inner(BaseModel):
    size: int = Field(default=1, ge=1)


class Outer(BaseModel, extra="forbid"):
    inner: tuple[Inner, ...] = ()
    kind: Literal["a", "b"] = "a"
    names: tuple[str, ...] = Field(default=("x",), min_length=1)


def problem(**content: object) -> str:
    with pytest.raises(ValidationError) as refused:
        Outer.model_validate(content)
    return first_problem(refused.value)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("wandas", "did you mean 'wanda'?"),
        ("sparsgpt", "did you mean 'sparsegpt'?"),
        ("zzz", "known: rtn, sparsegpt, wanda"),
        ("", "known: rtn, sparsegpt, wanda"),
    ],
)
def test_the_nearest_name_is_offered_or_else_all_of_them(name: str, hint: str) -> None:
    assert nearest(name, iter(["wanda", "sparsegpt", "rtn"])) == hint


def test_of_many_names_the_few_nearest_are_offered() -> None:
    assert nearest("zz1", [f"name-{number}" for number in range(99)]) == (
        "of 99 known names the nearest are name-1, name-91, name-81, name-71, name-61"
    )


def test_of_long_names_too_the_few_nearest_are_offered() -> None:
    hint = nearest("zz1", [f"model.layers.{number}.self_attn.q_proj" for number in range(20)])
    assert hint.startswith("of 20 known names the nearest are ")
    assert len(hint) < 300


def test_nothing_known_is_said_so() -> None:
    assert nearest("wanda", ()) == "known: "


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"inner": [{}, {"size": 0}]}, "inner.1.size: has to be 1 or more (got 0)"),
        ({"kind": "c"}, "kind: has to be 'a' or 'b' (got 'c')"),
        ({"names": []}, "names: has 0 entries, and needs 1 or more"),
        ({"inner": [4]}, "inner.0: has to be a list of names and values (got 4)"),
        ({"surprise": "x"}, "surprise: is not known here (got 'x')"),
        ({"kind": ["a"]}, "kind: has to be 'a' or 'b'"),
        ({"kind": "c", "surprise": 1}, "kind: has to be 'a' or 'b' (got 'c')"),
    ],
)
def test_the_first_problem_has_its_place_and_the_value_where_that_is_short(
    content: dict[str, object], message: str
) -> None:
    assert problem(**content) == message


def test_a_refusal_is_no_kind_of_error_that_other_code_catches() -> None:
    assert not issubclass(RequestError, ValueError | OSError | RuntimeError)
