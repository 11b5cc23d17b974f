"""The contract of every stored form, and the table that finds the one for a checkpoint or a model."""

import json
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from owl_compress.checkpoints import stored_forms
from owl_compress.checkpoints.dense import Dense
from owl_compress.checkpoints.reading import CheckpointSource
from owl_compress.checkpoints.saving import save_checkpoint
from owl_compress.checkpoints.stored_forms import (
    STORED_FORMS,
    StoredForm,
    export_named,
    form_named,
    recognised,
    suiting,
)
from owl_compress.errors import RequestError
from owl_compress.forms.codes import coded_modules
from owl_compress.models.structure import find_structure
from owl_compress.registry import Registry

pytest.importorskip("compressed_tensors")

FORMS = tuple(STORED_FORMS.builtin)
STORING = tuple(name for name in FORMS if isinstance(STORED_FORMS.load(name)(), StoredForm))
SAVING = ("decilm", "packed-narrow", "narrow", "packed", "dense")  # gptqmodel is written by its own package
LOADING = ("packed-narrow", "narrow", "packed", "dense")
CODES = ("gptqmodel", "packed-narrow", "packed")
COUNTED = ("narrow", "dense")


@pytest.mark.parametrize("name", FORMS)
def test_names_agree_with_the_table(name: str) -> None:
    assert form_named(name).name == name


def test_a_name_that_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(RequestError, match=r"unknown stored form 'pack': did you mean 'packed'\?"):
        form_named("pack")


def test_all_but_two_store_models_and_one_is_for_other_software() -> None:
    assert set(FORMS) - set(STORING) == {"gguf", "quantized-elsewhere"}
    assert export_named("decilm").name == "decilm"
    with pytest.raises(RequestError, match="unknown export 'dense': known: decilm"):
        export_named("dense")


@pytest.mark.parametrize("name", SAVING)
def test_what_a_form_saves_is_recognised_as_that_form_and_by_none_before_it(
    saved: Callable[[str], Any], name: str
) -> None:
    source = saved(name).source
    assert recognised(source).name == name
    assert next(other for other in FORMS if form_named(other).recognise(source)) == name


@pytest.mark.parametrize("method", ["gptq", "gptqmodel"])
def test_a_checkpoint_of_gptqmodels_is_recognised(gptq_folder: Path, method: str) -> None:
    config = json.loads((gptq_folder / "config.json").read_text())
    config["quantization_config"]["quant_method"] = method
    (gptq_folder / "config.json").write_text(json.dumps(config))
    assert recognised(CheckpointSource.of_folder(gptq_folder)).name == "gptqmodel"


def test_a_gguf_is_recognised_by_its_file_whatever_lies_beside_it(saved: Callable[[str], Any]) -> None:
    folder = str(saved("narrow").folder)
    assert recognised(CheckpointSource("x.gguf", folder, gguf="x.gguf")).name == "gguf"


@pytest.mark.parametrize(
    ("quantization", "name"),
    [
        (None, "dense"),
        ({}, "dense"),
        ("gptq", "dense"),
        (["compressed-tensors"], "dense"),
        ({"quant_method": "fp8"}, "quantized-elsewhere"),
    ],
)
def test_a_description_of_codes_that_nobody_here_reads_is_told_from_none(
    saved: Callable[[str], Any], tmp_path: Path, quantization: object, name: str
) -> None:
    config = json.loads((saved("dense").folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    assert recognised(CheckpointSource.of_folder(tmp_path)).name == name


@pytest.mark.parametrize("name", LOADING)
def test_what_a_form_saves_it_loads_with_identical_logits(
    saved: Callable[[str], Any], logits_of: Callable[[Any], Tensor], name: str
) -> None:
    there, form = saved(name), form_named(name)
    form.check_loadable(there.source)
    again = form.load(there.source).eval()
    assert type(again) is type(there.model)
    assert torch.equal(logits_of(again), logits_of(there.model))
    assert {key: tensor.shape for key, tensor in again.state_dict().items()} == {
        key: tensor.shape for key, tensor in there.model.state_dict().items()
    }


@pytest.mark.parametrize("name", LOADING)
def test_what_is_loaded_saves_in_a_form_that_suits_it_and_loads_alike(
    saved: Callable[[str], Any],
    tokenizer: PreTrainedTokenizerFast,
    logits_of: Callable[[Any], Tensor],
    name: str,
    tmp_path: Path,
) -> None:
    once = form_named(name).load(saved(name).source).eval()
    save_checkpoint(once, tokenizer, tmp_path)
    source = CheckpointSource.of_folder(tmp_path)
    assert recognised(source).name == ("narrow" if "narrow" in name else "dense")
    assert torch.equal(logits_of(recognised(source).load(source).eval()), logits_of(saved(name).model))


@pytest.mark.parametrize("name", SAVING)
def test_saving_leaves_the_model_as_it_was_and_gives_the_same_bytes_again(
    saved: Callable[[str], Any], tokenizer: PreTrainedTokenizerFast, name: str, tmp_path: Path
) -> None:
    model, folder = saved(name).model, saved(name).folder
    before = model.config.to_dict(), type(model), {k: v.clone() for k, v in model.state_dict().items()}
    save_checkpoint(model, tokenizer, tmp_path, form_named(name))
    assert (model.config.to_dict(), type(model)) == before[:2]
    assert all(torch.equal(before[2][key], tensor) for key, tensor in model.state_dict().items())
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        file.name: file.read_bytes() for file in folder.iterdir()
    }


@pytest.mark.parametrize("name", SAVING)
def test_only_forms_of_codes_leave_weights_out_of_their_files(saved: Callable[[str], Any], name: str) -> None:
    in_files = load_file(saved(name).folder / "model.safetensors").keys()
    weights = {f"{site.name}.weight" for site in find_structure(saved(name).model).linears}
    assert weights.isdisjoint(in_files) if name in CODES else weights <= in_files


@pytest.mark.parametrize(
    ("kind", "wants_codes", "form"),
    [
        ("plain", False, "dense"),
        ("quantized", True, "packed"),
        ("quantized", False, "dense"),
        ("narrowed", False, "narrow"),
        ("narrowed and quantized", True, "packed-narrow"),
        ("narrowed and quantized", False, "narrow"),
    ],
)
def test_exactly_one_form_suits_a_model(
    make: Callable[[str], Any], kind: str, *, wants_codes: bool, form: str
) -> None:
    model = make(kind)
    assert [name for name in STORING if form_named(name).suits(model, wants_codes=wants_codes)] == [form]
    assert suiting(model, wants_codes=wants_codes).name == form
    assert not form_named(form).is_asked_for


@pytest.mark.parametrize("name", SAVING)
def test_a_form_does_not_refuse_beforehand_what_it_can_save(saved: Callable[[str], Any], name: str) -> None:
    model = saved(name).model
    codes = next((codes.code_format for _, _, codes in coded_modules(model)), None)
    form_named(name).check_holds(model, find_structure(model), codes)


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("dense", "narrowed", "does not say how wide each block is: save the model as narrow"),
        ("packed", "plain", "nothing to pack, use --format dense"),
        ("packed", "narrowed and quantized", "save the model as packed-narrow"),
        ("narrow", "plain", "no block of this model is narrowed: save it as it is"),
        ("packed-narrow", "narrowed", "nothing to pack, use --format dense"),
        ("packed-narrow", "quantized", "no block of this model is narrowed"),
        ("decilm", "plain", "compress with --round-to 256"),
        ("decilm", "quantized", "compress with --round-to 256"),  # codes are stored dequantised
    ],
)
def test_a_model_that_a_form_cannot_hold_is_refused_and_nothing_written(
    make: Callable[[str], Any],
    tokenizer: PreTrainedTokenizerFast,
    name: str,
    kind: str,
    reason: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(RequestError, match=reason):
        save_checkpoint(make(kind), tokenizer, tmp_path, form_named(name))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", STORING)
def test_every_form_says_how_it_lies_on_disk_and_how_it_is_loaded(name: str) -> None:
    described = form_named(name).describe()
    assert described.how_to_load.strip()
    assert described.description.strip()
    # What transformers loads by itself needs no tag to be found by; a tag is one word.
    assert len(described.tag.split()) == (0 if name in COUNTED else 1)
    assert ("trust_remote_code=True" in described.how_to_load) == ("narrow" in name)
    assert ("compressed-tensors" in described.how_to_load) == ("packed" in name)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("decilm", "is a DeciLM checkpoint, for vLLM and llama.cpp; transformers has no class for it: "),
        ("gptqmodel", "holds codes in the format of GPTQModel, which that package loads: "),
    ],
)
def test_what_only_other_software_loads_is_refused_with_what_to_do(
    saved: Callable[[str], Any], gptq_folder: Path, name: str, says: str
) -> None:
    folder = gptq_folder if name == "gptqmodel" else saved(name).folder
    form, source = form_named(name), CheckpointSource.of_folder(folder)
    for attempt in (form.check_loadable, form.load):
        with pytest.raises(RequestError) as refused:
            attempt(source)
        assert str(refused.value) == f"{folder} {says}name the model that it was made from"


def test_the_format_of_gptqmodel_is_never_written_here(make: Callable[[str], Any], tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="only the package gptqmodel writes"):
        form_named("gptqmodel").save(make("quantized"), tmp_path, max_shard_size="50GB")
    assert list(tmp_path.iterdir()) == []


class Nest:
    """A readable form of another package, which knows every checkpoint."""

    name: ClassVar[str] = "nest"

    def recognise(self, source: CheckpointSource) -> bool:
        return True

    def check_loadable(self, source: CheckpointSource) -> None:
        """Nothing to refuse."""

    def load(self, source: CheckpointSource) -> Any:
        return source.from_pretrained()


class Burrow(Dense):
    """A stored form of another package, which suits every model."""

    name: ClassVar[str] = "burrow"

    def recognise(self, source: CheckpointSource) -> bool:
        return source.described.get("model_type") == "mole"

    def suits(self, model: Any, *, wants_codes: bool) -> bool:
        return True


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package with these two forms is installed."""
    kinds = {"nest": Nest, "burrow": Burrow}

    class Point(EntryPoint):
        def load(self) -> Any:
            return kinds.get(self.name) or super().load()

    points = [EntryPoint(name, f"{name}:Form", "owl_compress.stored_forms") for name in kinds]
    monkeypatch.setattr("owl_compress.registry.entry_points", lambda group: points)
    monkeypatch.setattr("owl_compress.registry.EntryPoint", Point)
    table = Registry(STORED_FORMS.kind, STORED_FORMS.group, STORED_FORMS.builtin)
    monkeypatch.setattr(stored_forms, "STORED_FORMS", table)


@pytest.mark.usefixtures("others")
def test_forms_of_other_packages_are_asked_first(
    saved: Callable[[str], Any], make: Callable[[str], Any]
) -> None:
    assert recognised(saved("packed").source).name == "nest"
    assert suiting(make("narrowed"), wants_codes=False).name == "burrow"
    assert export_named("decilm").name == "decilm"
    with pytest.raises(RequestError, match="unknown export 'dense': known: decilm"):
        export_named("dense")
