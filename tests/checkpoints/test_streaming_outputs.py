"""What we wrote is read block by block too: codes and narrowed blocks, with the same numbers."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import owl_compress as oc
from owl_compress.checkpoints.loading import load_model
from owl_compress.checkpoints.saving import save_checkpoint
from owl_compress.checkpoints.stored_forms import form_named
from owl_compress.errors import RequestError
from owl_compress.forms.narrowing import KeptUnits, has_narrowed_blocks, keep_units_
from owl_compress.importance.estimator import outline
from owl_compress.models.anatomy import find_anatomy
from owl_compress.models.residence import is_streamed
from owl_compress.models.structure import find_structure

pytest.importorskip("compressed_tensors")

FORMS = ("packed", "narrow", "packed-narrow")


def blocks_are_empty(model: Any) -> bool:
    return all(one.is_meta for site in find_structure(model).blocks for one in site.module.parameters())


def narrow_(model: Any) -> None:
    """Take heads and channels from the first block, and all of them from the second."""
    first, second = find_structure(model).blocks[:2]
    anatomy, nothing = find_anatomy(first), torch.arange(0)
    assert anatomy.attention is not None
    assert anatomy.mlp is not None
    per_group = anatomy.attention.n_heads // anatomy.attention.n_kv_heads
    heads, groups = torch.arange(anatomy.attention.n_heads), anatomy.attention.n_kv_heads
    kept = (heads[per_group:], torch.arange(1, groups)) if groups > 1 else (heads[1:], torch.arange(1))
    keep_units_(first, anatomy, KeptUnits(torch.arange(5, anatomy.mlp.n_channels), *kept))
    keep_units_(second, find_anatomy(second), KeptUnits(nothing, nothing, nothing))


def quantize_(model: Any) -> None:
    oc.compress_(model, oc.allocate(outline(model), "uniform", bits=4, bit_choices=[4]), "rtn", group_size=16)


@pytest.mark.parametrize("name", FORMS)
def test_logits_are_those_of_the_model_in_memory(
    saved: Callable[[str], Any], logits_of: Callable[[Any], Tensor], name: str
) -> None:
    folder = str(saved(name).folder)
    streamed, whole = load_model(folder, offload="disk").model, load_model(folder).model
    assert is_streamed(streamed)
    assert blocks_are_empty(streamed)
    assert torch.equal(logits_of(streamed), logits_of(whole))
    assert blocks_are_empty(streamed)
    assert type(streamed) is type(whole)
    assert streamed.config.to_dict() == whole.config.to_dict()
    assert has_narrowed_blocks(streamed) is has_narrowed_blocks(whole)


@pytest.mark.parametrize("name", FORMS)
def test_perplexity_goes_block_by_block(saved: Callable[[str], Any], tmp_path: Path, name: str) -> None:
    (tmp_path / "text.txt").write_text(" ".join(f"owl{number:04d}" for number in range(60)))
    folder = saved(name).folder
    in_memory, from_disk = (
        oc.evaluate(oc.load(folder, offload=where), tmp_path / "text.txt", seq_len=32)
        for where in ("host", "disk")
    )
    assert from_disk == in_memory


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("gemma3", "packed"),
        ("gpt_neox", "packed"),
        ("opt", "packed"),
        ("gpt_neox", "narrow"),
        ("bloom", "narrow"),
        ("falcon_alibi", "narrow"),
    ],
)
def test_other_families_are_too(
    make_model: Callable[[str], Any],
    logits_of: Callable[[Any], Tensor],
    tokenizer: Any,
    tmp_path: Path,
    name: str,
    form: str,
) -> None:
    model = make_model(name)
    (quantize_ if form == "packed" else narrow_)(model)
    save_checkpoint(model, tokenizer, tmp_path, form_named(form))
    streamed, whole = (load_model(str(tmp_path), offload=where).model for where in ("disk", "none"))
    assert is_streamed(streamed)
    assert torch.equal(logits_of(streamed), logits_of(whole))


@pytest.mark.parametrize("name", FORMS)
def test_they_are_compressed_again_as_in_memory(
    saved: Callable[[str], Any], make_windows: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    found = []
    for where in ("host", "disk"):
        loaded = oc.load(saved(name).folder, offload=where)
        plan = oc.allocate(outline(loaded.model), "uniform", sparsity=0.5)
        result = oc.compress_(loaded.model, plan, "wanda", make_windows())
        oc.save(loaded, result, plan, tmp_path / where)
        found.append(load_model(str(tmp_path / where)).model.state_dict())
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_codes_of_another_shape_are_refused_by_name(saved: Callable[[str], Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved("packed").folder, tmp_path / "OUT"))
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight_shape"
    tensors[name] -= 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match=rf"{name}' says"):
        load_model(str(folder), offload="disk")


def test_a_file_that_goes_while_it_is_needed_is_named(
    saved: Callable[[str], Any], logits_of: Callable[[Any], Tensor], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved("packed").folder, tmp_path / "OUT"))
    model = load_model(str(folder), offload="disk").model
    (folder / "model.safetensors").unlink()
    with pytest.raises(RequestError, match=r"model\.safetensors"):
        logits_of(model)
