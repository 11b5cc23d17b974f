"""A recipe finds its files from any folder: from its own, from where it was made, and from elsewhere."""

import logging
from pathlib import Path

import pytest

from owl_compress.data.text import BUILTIN
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.recipe_paths import WORDS, found_path, written_path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model, a text and an output folder."""
    for name in ("model", "sub/OUT"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "text.txt").write_text("words")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("model", "../../model"), ("./model", "../../model"), ("text.txt", "../../text.txt"),
        ("sub/OUT", "./."), ("owner/name", "owner/name"), ("gone.txt", "gone.txt"), ("c4", "c4"),
        ("~/model", "~/model"), ("x\0y", "x\0y"), ("n" * 300, "n" * 300),
    ],
)  # fmt: skip
def test_what_is_there_is_seen_from_the_folder_and_all_else_stays(
    place: Path, name: str, written: str
) -> None:
    (place / "c4").mkdir()  # the word means the text all the same
    assert written_path(name, Path("sub/OUT")) == written


def test_an_absolute_path_stays(place: Path) -> None:
    assert written_path(str(place / "model"), Path("sub/OUT")) == str(place / "model")


@pytest.mark.parametrize("name", ["model", "text.txt"])
@pytest.mark.parametrize("start", [".", "sub", "sub/OUT", "model", ".."])
def test_a_written_path_is_found_from_anywhere(
    place: Path, monkeypatch: pytest.MonkeyPatch, name: str, start: str
) -> None:
    written = written_path(name, Path("sub/OUT"))
    monkeypatch.chdir(start)
    folder = Path("sub/OUT") if start == "." else place / "sub" / "OUT"
    found = found_path(written, folder)
    assert Path(found).samefile(place / name)
    assert start != "." or found == name


def test_links_on_the_way_are_followed_and_a_file_keeps_its_name(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "deep" / "er").mkdir(parents=True)
    (place / "link").symlink_to("deep/er")
    (place / "words.txt").symlink_to("text.txt")
    written = written_path("words.txt", Path("link/OUT"))
    assert written == "../../../words.txt"
    monkeypatch.chdir("model")
    assert Path(found_path(written, place / "link" / "OUT")).name == "words.txt"


def test_names_without_dots_are_seen_from_the_working_folder(place: Path) -> None:
    assert found_path("model", Path("sub/OUT")) == "model"
    assert found_path("owner/name", Path("sub/OUT")) == "owner/name"


def test_what_is_not_beside_the_recipe_but_here_is_taken_and_told(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert found_path("./model", Path("sub/OUT")) == "./model"
    assert "taken from the working folder" in caplog.text
    assert found_path("./gone", Path("sub/OUT")) == str(Path("sub/OUT/gone"))


def test_a_recipe_names_its_files_for_whoever_reads_it(place: Path) -> None:
    recipe = Recipe(
        model="model", allocator="owl", backend="wanda", sparsity=0.5, calib="text.txt", data="builtin"
    )
    written = recipe.seen_from(Path("sub/OUT"))
    assert (written.model, written.calib, written.data) == ("../../model", "../../text.txt", "builtin")
    Path("sub/OUT/recipe.yaml").write_text(written.to_yaml())
    assert Recipe.read("sub/OUT/recipe.yaml").to_yaml() == recipe.to_yaml()


def test_words_are_those_that_texts_go_by() -> None:
    from owl_compress.data import text

    named = getattr(text, "NAMED", None) or vars(text)["_NAMED"]
    assert {BUILTIN, *named} == WORDS


def test_task_files_are_found_like_texts(place: Path) -> None:
    (place / "tasks").mkdir()
    options = {"sparsity": 0.5, "allocator": "owl", "backend": "wanda", "model": "model"}
    tasks = {"tasks": "boolq, rte", "task-file": ["text.txt", "gone.jsonl"], "task-path": "tasks"}
    recipe = Recipe.from_options(options | tasks)
    assert recipe.tasks == ("boolq", "rte")
    written = recipe.seen_from(Path("sub/OUT"))
    assert written.task_file == ("../../text.txt", "gone.jsonl")
    assert written.task_path == "../../tasks"
    assert written.beside(Path("sub/OUT")) == recipe
