"""Saved tensors are counted as they are in the files, sharded or not."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from owl_compress.checkpoints.saving import save_checkpoint
from owl_compress.checkpoints.tensors import bytes_on_disk, tensor_from_checkpoint
from owl_compress.documents.output_folders import output_folder
from owl_compress.errors import RequestError

UP = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize("shard", ["50GB", "3KB"])
def test_saved_tensors_are_read_one_by_one(small_llama: LlamaForCausalLM, tmp_path: Path, shard: str) -> None:
    weight = small_llama.get_submodule(UP).weight
    with torch.no_grad():
        weight[:, ::4] = 0
    with output_folder(tmp_path / "out") as temporary:
        save_checkpoint(small_llama, None, temporary, max_shard_size=shard)
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 1) == (shard == "3KB")
    saved = tensor_from_checkpoint(tmp_path / "out", UP)
    assert int(torch.count_nonzero(saved)) == 24 * 12
    assert torch.equal(saved, weight)
    assert tensor_from_checkpoint(tmp_path / "out", "model.norm.weight").shape == (16,)
    parameters = sum(parameter.numel() for parameter in small_llama.parameters())
    assert 4 * parameters < bytes_on_disk(tmp_path / "out") < 4 * parameters + 10_000


def test_a_tensor_that_is_not_there_is_refused(checkpoint: Path) -> None:
    with pytest.raises(RequestError, match=r"has no tensor 'model\.layers\.9\.up'"):
        tensor_from_checkpoint(checkpoint, "model.layers.9.up")
