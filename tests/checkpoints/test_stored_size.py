"""The size of weight files is told beforehand to the byte."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from owl_compress.checkpoints.leftovers import Leftovers, carried_headers, carry_over
from owl_compress.checkpoints.saving import write_weights
from owl_compress.checkpoints.stored_forms import SizedForm, form_named
from owl_compress.checkpoints.stored_size import file_bytes, saved_tensors, weight_files
from owl_compress.checkpoints.tensors import INDEX_NAME, TensorHeader, bytes_on_disk
from owl_compress.forms.codes import coded_modules

TYPES = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
    "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip


def on_disk(folder: Path) -> int:
    """All weight files and the index of shards, as the file system counts them."""
    index = folder / INDEX_NAME
    return bytes_on_disk(folder) + (index.stat().st_size if index.exists() else 0)


@pytest.mark.parametrize("n_rows", [0, 1, 7, 123])
def test_a_file_of_tensors_of_all_types_is_as_large_as_told(tmp_path: Path, n_rows: int) -> None:
    tensors = {f"{name}.ö.{i}": torch.zeros(n_rows, i + 3, dtype=TYPES[name]) for i, name in enumerate(TYPES)}
    tensors["scalar"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "file", metadata={"format": "pt"})
    names = {dtype: name for name, dtype in TYPES.items()}
    headers = {
        name: TensorHeader(names[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()
    }
    assert file_bytes(headers) == (tmp_path / "file").stat().st_size


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard", ["50GB", "3KB"])
def test_sharded_and_tied_models_are_counted_with_their_index(
    wide: Callable[..., Any], tmp_path: Path, shard: str, tied: bool
) -> None:
    model = wide("Llama", tie_word_embeddings=tied)
    write_weights(model, tmp_path, max_shard_size=shard)
    assert (tmp_path / INDEX_NAME).exists() == (shard == "3KB")
    told = weight_files(model, saved_tensors(model), max_shard_size=shard)
    assert told.n_bytes == on_disk(tmp_path)


@pytest.mark.parametrize("name", ["decilm", "packed-narrow", "narrow", "packed", "dense"])
def test_every_form_tells_the_bytes_that_it_writes(saved: Callable[[str], Any], name: str) -> None:
    form, model = form_named(name), saved(name).model
    assert isinstance(form, SizedForm)
    coded = {linear: codes for linear, _, codes in coded_modules(model)}
    code_format = next(iter(coded.values())).code_format if coded else None
    before = {key: value.clone() for key, value in model.state_dict().items()}
    told = form.sizer(model, list(coded), code_format)
    n_bytes = told({linear: codes.bits for linear, codes in coded.items()}).n_bytes
    assert n_bytes == on_disk(saved(name).folder)
    after: dict[str, Tensor] = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("shard", ["50GB", "3KB"])
def test_tensors_that_are_carried_over_count(wide: Callable[..., Any], tmp_path: Path, shard: str) -> None:
    model = wide("Llama")
    (tmp_path / "source").mkdir()
    (tmp_path / "out").mkdir()
    save_file({"mtp.weight": torch.zeros(5, 7)}, tmp_path / "source/model.safetensors")
    leftovers = Leftovers(tmp_path / "source", apart=("mtp.weight",))
    told = weight_files(model, saved_tensors(model), max_shard_size=shard)
    carried = carried_headers(leftovers, set(model.state_dict()))
    assert set(carried) == {"mtp.weight"}
    write_weights(model, tmp_path / "out", max_shard_size=shard)
    carry_over(leftovers, tmp_path / "out")
    assert told.carrying(carried).n_bytes == on_disk(tmp_path / "out")
