"""`eval --against`, `--stride`, `--protocol` and `run --agreement`: the answers, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

import owl_compress as oc
from owl_compress.data.text import Text
from owl_compress.documents.recipe import Recipe

Command = Callable[..., Any]
ON = ("--data", "other.txt", "--seq-len", "32", "--device", "cpu")
EVAL = ("eval", "OUT", *ON)
UNSTRUCTURED = ("--backend", "magnitude", "--allocator", "uniform", "--sparsity", "0.7")
NARROW = ("--backend", "structured", "--allocator", "uniform", "--prune-ratio", "0.4", "--round-to", "8")
PACKED = ("--backend", "rtn", "--allocator", "uniform", "--bits", "3", "--group-size", "16")


@pytest.fixture
def compressed(done: Command, text_options: tuple[str, ...]) -> Command:
    """A function that writes a folder OUT."""

    def make(*options: str) -> Any:
        return done("run", "model", *text_options, "--device", "cpu", "--quiet", *options, "-o", "OUT")

    return make


def by_python(dense: str, other: str) -> dict[str, Any]:
    """The same from Python: the dense model first, then the other."""
    loaded = oc.load(dense)
    windows = oc.hold_out(loaded, "other.txt", seq_len=32)
    predictions = oc.dense_predictions(loaded.model, windows, name=dense)
    found: dict[str, Any] = oc.agreement(oc.load(other).model, predictions).model_dump(mode="json")
    return found


@pytest.mark.parametrize("options", [UNSTRUCTURED, NARROW, PACKED], ids=["zeros", "narrow", "packed"])
def test_a_folder_of_any_kind_is_held_against_its_dense_model(
    compressed: Command, done: Command, options: tuple[str, ...]
) -> None:
    compressed(*options)
    answer = done(*EVAL, "--against", "./model", "--json", "--quiet").json
    plain = done(*EVAL, "--json", "--quiet").json
    assert {key: value for key, value in answer.items() if key not in {"agreement", "dense"}} == plain
    assert answer["agreement"] == by_python("./model", "OUT")
    assert answer["dense"] == done("eval", "model", *ON, "--json", "--quiet").json
    assert answer["agreement"]["positions"] == answer["tokens"]
    assert answer["agreement"]["kl"] > 0


def test_the_original_is_found(compressed: Command, done: Command) -> None:
    compressed(*UNSTRUCTURED)
    outcome = done(*EVAL, "--against", "original", "--json")
    assert "loading model, which OUT was made from" in outcome.err
    found = outcome.json["agreement"]
    assert found["against"] == "model"
    assert found["kl"] == pytest.approx(by_python("./model", "OUT")["kl"])


def test_people_read_it_in_the_table(compressed: Command, done: Command) -> None:
    compressed(*UNSTRUCTURED)
    table = done(*EVAL, "--against", "model").out
    for said in ("of the dense model", "divergence from the dense model", "nats", "likeliest token", "%"):
        assert said in table
    assert "bits per byte" in table


def test_the_dense_model_is_loaded_once_where_it_is_timed_too(compressed: Command, done: Command) -> None:
    compressed(*UNSTRUCTURED)
    timed = ("--latency", "--prompt-len", "8", "--new-tokens", "2")
    outcome = done(*EVAL, "--against", "./model", *timed, "--json")
    assert [row["name"] for row in outcome.json["latency"]] == ["./model", "OUT"]
    assert outcome.json["agreement"]["against"] == "./model"
    assert outcome.err.count("loading ./model") == 1


@pytest.fixture
def other_vocabulary(here: Path) -> Path:
    """`other`: the same model, in whose tokenizer two tokens have changed places."""
    loaded = oc.load("model")
    loaded.model.save_pretrained("other")
    loaded.tokenizer.save_pretrained("other")
    path = here / "other" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(content))
    return here / "other"


def test_another_vocabulary_is_refused_but_timed(
    compressed: Command, done: Command, refused: Command, other_vocabulary: Path
) -> None:
    compressed(*UNSTRUCTURED)
    problem = "OUT and ./other have different vocabularies (token 'a' has id"
    assert problem in refused(*EVAL, "--against", "./other")
    timed = ("--latency", "--prompt-len", "8", "--new-tokens", "2")
    outcome = done(*EVAL, "--against", "./other", *timed, "--json")
    assert "agreement" not in outcome.json
    assert len(outcome.json["latency"]) == 2
    assert f"only timed beside ./other: {problem}" in outcome.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--against", "model"), "--against model is the model itself"),
        (("--against", "./nowhere"), "model path './nowhere' does not exist"),
        (("--against", "original"), "model does not say what it was made from, so that --against original"),
        (("--against-trust-remote-code",), "are for the model that --against names: name it, or drop them"),
        (("--against", "original", "--against-allow-pickle"), "are for the model that --against names"),
        (("--agreement",), "unknown option --agreement: did you mean '--against'?"),
        (("--stride", "32"), "stride 32 is not below the 32 tokens of a window"),
        (("--stride", "0"), "a stride of 0 tokens goes nowhere"),
        (("--protocol", "paper"), "protocol paper stands for --data wikitext2, and data is other.txt: drop"),
        (("--protocol", "papers"), "unknown protocol 'papers': did you mean 'paper'?"),
    ],
)
def test_refused_in_one_line(refused: Command, options: tuple[str, ...], message: str) -> None:
    assert message in refused("eval", "model", *ON, *options)


def test_an_original_that_is_another_by_now_is_refused(
    compressed: Command, refused: Command, edit_json: Callable[..., None]
) -> None:
    compressed(*UNSTRUCTURED)
    edit_json(Path("OUT/result.json"), lambda result: result["totals"].update(n_params_before=50_000))
    assert "--against original: model has 44,448 parameters, and 50,000" in refused(
        *EVAL, "--against", "original"
    )


def test_a_stride_scores_every_byte_once(done: Command) -> None:
    answer = done("eval", "model", *ON, "--stride", "12", "--json", "--quiet").json
    assert (answer["stride"], answer["tokens"], answer["bytes"], answer["characters"]) == (12, 799, 799, 799)
    assert "12 apart" in done("eval", "model", *ON, "--stride", "12").out
    loaded = oc.load("model")
    assert oc.evaluate(loaded, "other.txt", seq_len=32, stride=12).perplexity == answer["perplexity"]


@pytest.fixture
def wikitext(monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast) -> None:
    """The named set, without the hub: 4999 characters, so two windows of 2048 tokens and a rest."""

    def text_of(source: str, *_: Any, **__: Any) -> Text:
        assert source == "wikitext2"
        return Text(source, ("".join(f"{number:04d} " for number in range(1000))[:4999],))

    monkeypatch.setattr("owl_compress.data.windows.load_text", text_of)


def test_the_papers_protocol(
    done: Command, refused: Command, save_llama: Command, wikitext: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "sequence length 2048 is over the model's maximum of 128" in refused(
        "eval", "model", "--protocol", "paper", "--device", "cpu"
    )
    config = json.loads(Path("model/config.json").read_text()) | {"max_position_embeddings": 4096}
    Path("model/config.json").write_text(json.dumps(config))
    paper = ("eval", "model", "--protocol", "paper", "--device", "cpu")
    answer = done(*paper, "--json", "--quiet").json
    assert (answer["protocol"], answer["seq_len"], answer["windows"]) == ("paper", 2048, 2)
    assert (answer["data"], answer["bos"], answer["tokens"]) == ("wikitext2", "first", 2 * 2047)
    spelled = ("--data", "wikitext2", "--seq-len", "2048", "--bos", "first")
    assert done("eval", "model", *spelled, "--device", "cpu", "--json", "--quiet").json == {
        key: value for key, value in answer.items() if key != "protocol"
    }
    assert "protocol paper" in done(*paper).out
    for option, value in (
        ("--seq-len", "512"),
        ("--stride", "9"),
        ("--max-windows", "1"),
        ("--bos", "every"),
    ):
        assert f"protocol paper stands for {'' if option in spelled else 'no '}{option}" in refused(
            *paper, option, value
        )


def test_run_tells_how_nearly_the_model_predicts_what_it_did(
    compressed: Command, done: Command, text_options: tuple[str, ...]
) -> None:
    said = compressed(*UNSTRUCTURED, "--data", "other.txt", "--agreement", "--json").json
    found = said["evaluation"]["agreement"]
    assert found == done(*EVAL, "--against", "model", "--json", "--quiet").json["agreement"]
    assert json.loads(Path("OUT/result.json").read_text())["evaluation"]["agreement"] == found
    card = Path("OUT/README.md").read_text()
    assert f"KL divergence from the dense model's predictions: {found['kl']:.4g} nats a token" in card
    assert f"the likeliest at {found['top1']:.1%} of the places" in card
    assert Recipe.read("OUT/recipe.yaml").agreement


def test_run_measures_no_agreement_unasked(compressed: Command) -> None:
    said = compressed(*UNSTRUCTURED, "--data", "other.txt", "--stride", "20", "--json").json
    assert said["evaluation"].keys() == {"dense", "compressed"}
    assert said["evaluation"]["compressed"]["stride"] == 20


def test_agreement_wants_a_text(refused: Command, text_options: tuple[str, ...]) -> None:
    problem = refused("run", "model", *text_options, *UNSTRUCTURED, "--agreement", "-o", "OUT")
    assert "agreement is measured on the evaluation text: name it with --data, or drop it" in problem
