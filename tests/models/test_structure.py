"""Blocks, linears and roles of every family, and what is done about architectures that no table knows."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers import AutoConfig, AutoModelForCausalLM, GPT2LMHeadModel, LlamaForCausalLM

from owl_compress.errors import RequestError
from owl_compress.importance.estimator import measure
from owl_compress.models.families import FAMILIES
from owl_compress.models.structure import LinearSite, check_compressible, find_structure, in_rows

GATED = {"attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down"}
FUSED = {"attn.qkv", "attn.o", "mlp.fc1", "mlp.fc2"}
# By model type: where the blocks are, and the roles in each of them.
EXPECTED = {
    "llama": ("model.layers", GATED),
    "mistral": ("model.layers", GATED),
    "qwen2": ("model.layers", GATED),
    "qwen3": ("model.layers", GATED),
    "gemma2": ("model.layers", GATED),
    "gemma3_text": ("model.layers", GATED),
    "gemma3": ("model.language_model.layers", GATED),
    "phi3": ("model.layers", {"attn.qkv", "attn.o", "mlp.gate_up", "mlp.down"}),
    "opt": ("model.decoder.layers", {"attn.q", "attn.k", "attn.v", "attn.o", "mlp.fc1", "mlp.fc2"}),
    "gpt2": ("transformer.h", FUSED),
    "gpt_neox": ("gpt_neox.layers", FUSED),
    "bloom": ("transformer.h", FUSED),
    "falcon": ("transformer.h", FUSED),
    "plain": ("stages", {"other"}),
}


def test_every_matrix_of_every_block_is_found(family_model: Any) -> None:
    path, roles = EXPECTED[family_model.config.model_type]
    structure = find_structure(family_model)
    assert [block.name for block in structure.blocks] == [f"{path}.{index}" for index in range(3)]
    matrices = {name for name, p in family_model.named_parameters() if name.startswith(path) and p.ndim == 2}
    assert {f"{linear.name}.weight" for linear in structure.linears} == matrices
    assert structure.linear_sizes == {
        name.removesuffix(".weight"): family_model.get_parameter(name).numel() for name in matrices
    }
    for block in structure.blocks:
        assert {linear.role for linear in block.linears} == roles
        assert block.n_weights == sum(linear.n_weights for linear in block.linears)


def test_names_lead_to_the_modules(family_model: Any) -> None:
    for block in find_structure(family_model).blocks:
        assert family_model.get_submodule(block.name) is block.module
        for linear in block.linears:
            assert family_model.get_submodule(linear.name) is linear.module


def test_weights_are_seen_as_out_by_in_and_written_through(family_model: Any) -> None:
    for linear in find_structure(family_model).linears:
        x = torch.randn(2, linear.shape[1])
        bias = getattr(linear.module, "bias", None)
        expected = x @ linear.weight.t() + (0 if bias is None else bias)
        assert torch.allclose(linear.module(x), expected, atol=1e-6)
        linear.weight[0].fill_(7.0)
        stored = family_model.get_parameter(f"{linear.name}.weight")
        assert int((stored == 7.0).sum()) == linear.shape[1]
        assert linear.weight.data_ptr() == stored.data_ptr()


def test_a_stored_tensor_is_seen_in_rows_too(make_model: Callable[[str], GPT2LMHeadModel]) -> None:
    for name in ("gpt2", "llama"):  # one stores [in, out], the other [out, in]
        for linear in find_structure(make_model(name)).linears:
            stored = linear.module.get_parameter("weight").detach().clone()
            assert torch.equal(in_rows(linear.module, stored), linear.weight)


def test_a_known_family_leaves_no_note(family_model: Any) -> None:
    structure = find_structure(family_model)
    if family_model.config.model_type in FAMILIES:
        assert structure.notes == ()
        gemma = "gemma" in family_model.config.model_type
        assert structure.bos == ("every" if gemma else "first")
    else:
        assert structure.family == "plain"
        assert structure.bos == "first"
        (note,) = structure.notes
        assert "'plain' is not in the table" in note
        assert "'stages'" in note


def test_a_model_without_its_head_is_found_by_structure(tiny_llama: LlamaForCausalLM) -> None:
    structure = find_structure(tiny_llama.model)
    assert [block.name for block in structure.blocks] == ["layers.0", "layers.1", "layers.2"]
    assert {linear.role for linear in structure.linears} == GATED
    assert "no blocks at its usual place" in structure.notes[0]


def test_a_list_of_experts_inside_the_blocks_is_not_the_blocks() -> None:
    model = nn.Module()
    model.stages = nn.ModuleList(nn.Module() for _ in range(2))
    for stage in model.stages:
        stage.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(5))
    structure = find_structure(model)
    assert [block.name for block in structure.blocks] == ["stages.0", "stages.1"]
    assert len(list(structure.linears)) == 10


def test_the_longest_list_of_like_blocks_is_taken() -> None:
    model = nn.Module()
    model.mixed = nn.ModuleList([nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4))] * 3)
    model.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(9))
    model.short = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(2))
    model.long = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(3))
    assert [block.name for block in find_structure(model).blocks] == ["long.0", "long.1", "long.2"]


class Attending(nn.Sequential):
    """A block of one class."""


class Scanning(nn.Sequential):
    """A block of another."""


def mixed_blocks(n_experts: int = 0) -> nn.ModuleList:
    blocks = nn.ModuleList([kind(nn.Linear(4, 4), nn.Linear(4, 4)) for kind in (Attending, Scanning)] * 2)
    if n_experts:
        blocks[1].experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(n_experts))
    return blocks


def test_blocks_of_several_classes_are_found_and_never_the_experts_of_one() -> None:
    model = nn.Module()
    model.layers = mixed_blocks(n_experts=9)
    structure = find_structure(model)
    assert [block.name for block in structure.blocks] == [f"layers.{index}" for index in range(4)]
    assert [len(block.linears) for block in structure.blocks] == [2, 11, 0, 0]  # the same two blocks twice


def test_experts_in_a_list_that_is_not_blocks_are_no_blocks_either() -> None:
    model = nn.Module()
    model.layers = mixed_blocks(n_experts=9)
    model.layers[2] = nn.LayerNorm(4)
    with pytest.raises(RequestError, match="no list of blocks"):
        find_structure(model)


def test_the_list_that_the_configuration_announces_is_taken() -> None:
    model: Any = nn.Module()
    model.config = SimpleNamespace(model_type="odd", num_hidden_layers=4)
    model.towers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(6))
    model.layers = mixed_blocks()
    assert find_structure(model).blocks[0].name == "layers.0"
    model.config.num_hidden_layers = 6
    assert find_structure(model).blocks[0].name == "towers.0"


def test_blocks_are_looked_for_in_the_decoder(make_model: Callable[[str], Any]) -> None:
    model = make_model("gemma3_with_vision")
    model.config.model_type = (
        "odd"  # nothing in the table: the vision tower has more blocks than the text part
    )
    assert find_structure(model).blocks[0].name == "model.language_model.layers.0"


JAMBA = {
    "vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
    "expert_layer_period": 2, "num_experts": 2, "mamba_d_state": 8, "mamba_dt_rank": 4,
    "use_mamba_kernels": False,
}  # fmt: skip


def test_jamba_is_found_measured_and_counted(make_windows: Callable[..., Any]) -> None:
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("jamba", **JAMBA)).eval()
    report = measure(model, make_windows(2))
    assert [block.name for block in report.blocks] == ["model.layers.0", "model.layers.1"]
    coverage = report.coverage
    assert coverage is not None
    matrices = sum(
        p.numel() for layer in model.model.layers for p in layer.parameters() if p.squeeze().ndim > 1
    )
    assert coverage.n_weights == matrices
    assert report.n_weights == matrices - coverage.n_left_out
    assert coverage.named.startswith("feed_forward.experts.gate_up_proj (1 block), ")
    assert "mamba.dt_proj (1 block)" in coverage.named


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(RequestError, match="Sequential has no list of blocks with linears in it"):
        find_structure(nn.Sequential(nn.Linear(4, 4)))


def test_a_block_without_linear_is_refused(tiny_llama: LlamaForCausalLM) -> None:
    tiny_llama.model.layers[1] = nn.Identity()
    with pytest.raises(RequestError, match=r"block model\.layers\.1 \(Identity\) has no linear"):
        find_structure(tiny_llama)


def empty_(block: Any, *names: str) -> None:
    """Leave no weight in the named linears of a block: all their rows go."""
    for name in names:
        linear = block.get_submodule(name)
        linear.weight = nn.Parameter(linear.weight[:0])


def test_a_linear_without_weights_is_told_apart(tiny_llama: LlamaForCausalLM) -> None:
    empty_(tiny_llama.model.layers[1], "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    structure = find_structure(tiny_llama)
    first, second, _ = structure.blocks
    assert (len(first.linears), first.emptied, first.all_linears) == (7, (), first.linears)
    assert {linear.role for linear in second.linears} == {role for role in GATED if "attn" in role}
    assert {linear.role for linear in second.emptied} == {role for role in GATED if "mlp" in role}
    assert len(second.all_linears) == 7
    assert len(structure.linear_sizes) == 3 * 7 - 3
    (note,) = structure.notes
    assert "get no budget: 3, the first model.layers.1.mlp.gate_proj" in note


def test_a_block_that_lost_all_its_weights_stays_in_the_walk(tiny_llama: LlamaForCausalLM) -> None:
    names = [
        linear.name.removeprefix("model.layers.0.") for linear in find_structure(tiny_llama).blocks[0].linears
    ]
    empty_(tiny_llama.model.layers[1], *names)
    structure = find_structure(tiny_llama)
    assert [len(block.linears) for block in structure.blocks] == [7, 0, 7]
    check_compressible(structure)
    for index in (0, 2):
        empty_(tiny_llama.model.layers[index], *names)
    with pytest.raises(RequestError, match="nothing is left to compress in the 3 blocks of the model"):
        check_compressible(find_structure(tiny_llama))


def test_a_shared_weight_is_listed_once(tiny_llama: LlamaForCausalLM) -> None:
    first, second, _ = tiny_llama.model.layers
    second.mlp.down_proj.weight = first.mlp.down_proj.weight
    second.self_attn.q_proj = second.self_attn.o_proj  # one module under two names
    structure = find_structure(tiny_llama)
    names = [linear.name for linear in structure.linears]
    assert len(names) == len(set(names)) == 3 * 7 - 2
    assert "model.layers.1.mlp.down_proj" not in names
    assert any("model.layers.1.mlp.down_proj shares its weight" in note for note in structure.notes)
    assert len(structure.notes) == 2


@pytest.mark.parametrize(
    "compute_",
    [
        parametrizations.weight_norm,
        lambda module: prune.l1_unstructured(module, "weight", amount=0.5),
    ],
    ids=["parametrized", "masked"],
)
def test_a_weight_that_is_computed_when_it_is_read_is_refused(
    tiny_llama: LlamaForCausalLM, compute_: Callable[[nn.Module], nn.Module]
) -> None:
    compute_(tiny_llama.model.layers[0].mlp.up_proj)
    with pytest.raises(RequestError, match=r"model\.layers\.0\.mlp\.up_proj computes its weight .* first"):
        find_structure(tiny_llama)


def test_a_block_that_is_all_shared_stays_in_the_walk(tiny_llama: LlamaForCausalLM) -> None:
    tiny_llama.model.layers[2] = tiny_llama.model.layers[0]
    structure = find_structure(tiny_llama)
    assert [len(block.linears) for block in structure.blocks] == [7, 7, 0]
    assert len(structure.notes) == 7


class _Unpacking(torch.Tensor):
    """A weight that is something else in memory, as quantizing packages have them."""


@pytest.mark.parametrize(
    ("weight", "shown"),
    [
        (torch.zeros(64, 32, dtype=torch.int8), r"torch\.int8"),
        (torch.zeros(64, 32).to(torch.float8_e4m3fn), r"torch\.float8_e4m3fn"),
        (torch.zeros(64, 32).as_subclass(_Unpacking), "_Unpacking"),
    ],
)
def test_a_quantized_model_is_refused(tiny_llama: LlamaForCausalLM, weight: torch.Tensor, shown: str) -> None:
    linear = tiny_llama.model.layers[1].mlp.up_proj
    linear.weight = nn.Parameter(weight, requires_grad=False)
    message = rf"model\.layers\.1\.mlp\.up_proj holds {shown}: the model is quantized already"
    with pytest.raises(RequestError, match=message):
        find_structure(tiny_llama)


def test_a_site_knows_its_size() -> None:
    site = LinearSite("a", "mlp.fc1", nn.Linear(3, 5))
    assert site.shape == (5, 3)
    assert site.n_weights == 15


def test_a_model_without_blocks_is_not_said_to_have_lost_them(tiny_llama: LlamaForCausalLM) -> None:
    tiny_llama.model.layers = nn.ModuleList()
    with pytest.raises(RequestError, match="the model has no blocks"):
        check_compressible(find_structure(tiny_llama))
