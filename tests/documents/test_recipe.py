"""Recipes: the same names as the command line, and the same request after a round trip."""

from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from owl_compress.documents.recipe import Recipe, is_recipe
from owl_compress.errors import RequestError

BASE = {"model": "builtin", "allocator": "owl", "backend": "wanda"}


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path, text: str) -> str:
    with pytest.raises(RequestError) as caught:
        Recipe.read(written(path, text))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "recipe.yaml"


def yaml_of(**options: object) -> str:
    return yaml.safe_dump(BASE | options)


def test_recipe_survives_a_round_trip(file: Path) -> None:
    recipe = Recipe.from_options(
        BASE | {
            "sparsity": 0.7, "metric": "lod@10", "lam": 1e-05, "owl-law": "bounded", "granularity": "linear",
            "low": 0.1, "high": 0.9, "set": {"model.layers.0": 0.5}, "skip": ["model.layers.3.mlp.up_proj"],
            "calib": "data/no", "seq-len": 512, "samples": 12, "sampling": "first", "seed": 7, "bos": "never",
            "device": "cpu", "dtype": "float32", "scope": "row", "data": "wikitext2", "max-windows": 20,
        }
    )  # fmt: skip
    written(file, recipe.to_yaml())
    assert Recipe.read(file) == recipe
    assert Recipe.read(file).to_yaml() == recipe.to_yaml()


def test_defaults_are_left_out_except_what_shapes_the_checkpoint() -> None:
    text = Recipe.from_options(BASE | {"sparsity": 0.7}).to_yaml()
    assert text == (
        "# owl-compress run recipe.yaml -o OUT\n"
        "model: builtin\ndtype: auto\nsparsity: 0.7\nallocator: owl\nbackend: wanda\n"
        "calib: c4\nsamples: 128\nsampling: random\nseed: 0\nbos: auto\n"
    )


@pytest.mark.parametrize("pattern", ["3:8", "2.5:8", "2:4", "16:32", "1:59"])
@pytest.mark.parametrize("quote", ["", '"', "'"])
def test_nm_is_text_and_never_a_sexagesimal_number(file: Path, pattern: str, quote: str) -> None:
    recipe = Recipe.read(written(file, f"nm: {quote}{pattern}{quote}\n{yaml.safe_dump(BASE)}"))
    assert recipe.nm == pattern
    assert Recipe.read(written(file, recipe.to_yaml())) == recipe
    assert yaml.safe_load(recipe.to_yaml())["nm"] == pattern, "other readers of YAML must see text too"


@given(text=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1))
def test_any_path_survives_as_text(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    # What begins so is seen from the recipe's folder, and has tests of its own.
    assume(not text.startswith(("./", "../")))
    recipe = Recipe.from_options(BASE | {"sparsity": 0.5, "calib": text})
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    file.write_text(recipe.to_yaml(), encoding="utf-8", newline="")
    assert Recipe.read(file).calib == text


@given(lam=st.floats(0, 1, exclude_max=True))
def test_numbers_survive_exactly(lam: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    recipe = Recipe.from_options(BASE | {"sparsity": lam, "lam": lam})
    file = written(tmp_path_factory.mktemp("recipe") / "recipe.yaml", recipe.to_yaml())
    assert Recipe.read(file) == recipe


def test_keys_take_hyphens_and_underscores(file: Path) -> None:
    for key in ("seq-len", "seq_len", "--seq-len"):
        assert Recipe.read(written(file, yaml_of(sparsity=0.5, **{key: 64}))).seq_len == 64
    assert "seq-len is given twice" in refusal(file, yaml_of(sparsity=0.5, **{"seq-len": 64, "seq_len": 65}))


def test_lists_may_be_written_as_on_the_command_line(file: Path) -> None:
    recipe = Recipe.read(
        written(file, yaml_of(bits=3, bit_choices="2,3,4", set=["a.b=4", "c=2"], skip="lm_head"))
    )
    assert recipe.bit_choices == (2, 3, 4)
    assert recipe.set_ == {"a.b": 4, "c": 2}
    assert recipe.skip == ("lm_head",)
    assert Recipe.read(written(file, recipe.to_yaml())) == recipe


def test_options_replace_those_of_the_recipe() -> None:
    recipe = Recipe.from_options(BASE | {"bits": 3, "bit-choices": [2, 3, 4], "seed": 1})
    assert recipe.with_options({"seed": 2, "lam": None}).seed == 2
    assert recipe.with_options({"bits": 4}).bit_choices == (2, 3, 4)
    changed = recipe.with_options({"sparsity": 0.5})
    assert (changed.sparsity, changed.bits, changed.bit_choices, changed.seed) == (0.5, None, None, 1)
    assert recipe.with_options({"set": ["a=3"], "skip": ["b"]}).set_ == {"a": 3}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sparsity": 1.2}, "sparsity: is the share removed, at least 0 and below 1"),
        ({"sparsity": 1}, "below 1"),
        ({"sparsity": "much"}, "sparsity"),
        ({"sparsity": float("nan")}, "sparsity"),
        ({"prune_ratio": -0.1}, "prune-ratio: is the share"),
        ({"nm": "9:8"}, "at most M"),
        ({"nm": "0:8"}, "above 0"),
        ({"nm": "3/8"}, "such as 3:8"),
        ({"nm": 188}, "nm"),
        (
            {},
            "budget of sparsity, nm, prune-ratio, bits, size, speedup, latency; this has none",
        ),
        ({"sparsity": 0.5, "bits": 3}, "this has sparsity and bits"),
        ({"nm": "2:4", "no_tie": True}, "no-tie goes with the budget bits"),
        ({"prune_ratio": 0.5, "parts": "heads"}, "recipe.yaml: parts: has to be 'attention' or 'mlp'"),
        ({"sparsity": 0.5, "bit_choices": [2, 4]}, "goes with the budget bits"),
        ({"sparsity": 0.5, "samples": 0}, "samples"),
        ({"sparsity": 0.5, "seed": True}, "seed: is no flag"),
        ({"sparsity": True}, "sparsity: is no flag"),
        ({"sparsity": 0.5, "sampling": "last"}, "sampling"),
        ({"sparsity": 0.5, "set": ["a"]}, "takes NAME=VALUE"),
        ({"sparsity": 0.5, "model": None}, "model"),
    ],
)
def test_bad_recipes_are_refused_in_one_line(file: Path, options: dict[str, object], reason: str) -> None:
    assert reason in refusal(file, yaml_of(**options))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a recipe"),
        ("- a\n- b", "not a recipe"),
        ("model: [", "not YAML: line 1, column 9: while parsing a flow"),
        ("model: \x00", "not YAML: character 8: special characters are not allowed"),
        ("seed: 1\nseed: 2", "key 'seed' is given twice"),
        ("model: !!python/object:os.system x", "not YAML"),
    ],
)
def test_what_is_no_recipe_is_refused(file: Path, text: str, reason: str) -> None:
    assert reason in refusal(file, text)


def test_an_unreadable_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot read"):
        Recipe.read(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match="not YAML"):
        Recipe.read(tmp_path / "binary.yaml")


def test_recipes_are_told_from_models_by_their_suffix() -> None:
    assert is_recipe("recipe.yaml")
    assert is_recipe("a/b.YML")
    assert not is_recipe("HuggingFaceTB/SmolLM2-135M")


def test_parts_are_listed_with_commas_or_as_a_list(file: Path) -> None:
    assert Recipe.from_options(BASE | {"prune-ratio": 0.2, "parts": "mlp, attention"}).parts == (
        "mlp",
        "attention",
    )
    assert Recipe.read(written(file, yaml_of(prune_ratio=0.2, parts=["mlp"]))).parts == ("mlp",)
    assert "parts" in refusal(file, yaml_of(prune_ratio=0.2, parts="heads"))
    assert "protect-first" in refusal(file, yaml_of(prune_ratio=0.2, protect_first=-1))


@pytest.mark.parametrize("key", ["trust-remote-code", "trust_remote_code", "allow-pickle"])
def test_a_file_cannot_give_consent(file: Path, caplog: pytest.LogCaptureFixture, key: str) -> None:
    """Recipes that older versions wrote say it: they still load, and are told to be without it."""
    consenting = Recipe.read(written(file, yaml_of(sparsity=0.5, **{key: True})))
    assert consenting == Recipe.read(written(file, yaml_of(sparsity=0.5, **{key: False})))
    assert [record.getMessage() for record in caplog.records] == [
        f"{file}: {key} is ignored: a file cannot give consent; where the model needs it, add "
        f"--{key.replace('_', '-')} yourself"
    ]
    assert key not in consenting.to_yaml()


def test_consent_is_no_option_of_a_recipe() -> None:
    with pytest.raises(RequestError, match="given beside it, as --allow-pickle or Consent"):
        Recipe.from_options(BASE | {"sparsity": 0.5, "allow_pickle": True})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &x 1\nb: *x", "line 2 refers to another place by \\*x: write it out"),
        ("a: &x [1]\nb: &y [*x, *x, *x]\nc: [*y, *y, *y]", "refers to another place"),
        ("model: !!binary aGVsbG8=", "line 1 has the tag .*binary"),
        ("set: !!set {a, b}", "line 1 has the tag .*set"),
        ("model: " + "[" * 5000, "nested deeper than 20 levels|not YAML"),
        ("a: " + "{a: " * 5000, "nested deeper than 20 levels"),
        ("seed: " + "1" * 5000, "a number of 5000 digits"),
        ("seed: " + "1" * 400, "a number of 400 digits"),
        ("lam: 1e999", "line 1 has a number that is too large, 1e999"),
        ('calib: "\\ud800"', "half a surrogate pair"),
        ("a: 1\n---\nb: 2", "single document"),
        ("? [a]\n: b", "not YAML"),
    ],
)
def test_yaml_that_no_recipe_needs_is_refused_at_once(file: Path, text: str, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as refused:
        Recipe.read(written(file, text))
    assert "\n" not in str(refused.value)


def test_a_long_number_in_quotes_is_text(file: Path) -> None:
    digits = "1" * 400
    assert Recipe.read(written(file, f'{yaml_of(sparsity=0.5)}\ncalib: "{digits}"\n')).calib == digits


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1, 10**400])
def test_a_seed_that_no_generator_takes_is_refused(seed: int) -> None:
    with pytest.raises(RequestError, match="seed: has to be"):
        Recipe.from_options(BASE | {"sparsity": 0.5, "seed": seed})


@pytest.mark.parametrize("pins", [["a=1", "a=0.5"], ["a=1", "a=1"], ["a =1", "b=2", "a=1"]])
def test_one_name_has_one_value(pins: list[str]) -> None:
    with pytest.raises(RequestError, match="set: names 'a' twice: give it one value"):
        Recipe.from_options(BASE | {"sparsity": 0.5, "set": pins})


@pytest.mark.parametrize(
    "options",
    [{"calib": "caf\udce9.txt"}, {"model": "m\udcff"}, {"skip": ["a\ud800"]}, {"set": ["a\ud800=1"]},
     {"set": {"a\ud800": 1}}, {"metric": "lod\ud800"}],
)  # fmt: skip
def test_a_name_that_is_no_utf8_is_refused_before_it_is_written_down(options: dict[str, object]) -> None:
    with pytest.raises(RequestError, match="is no UTF-8 text: rename the file") as refused:
        Recipe.from_options(BASE | {"sparsity": 0.5} | options)
    str(refused.value).encode()
