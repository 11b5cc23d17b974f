"""The parts of a block: every head and channel of every family, wherever its layout puts them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

from owl_compress.documents.units import Sublayer
from owl_compress.forms.narrowing import KeptUnits, keep_units_
from owl_compress.models.anatomy import Attention, FeedForward, Slot, find_anatomy
from owl_compress.models.structure import BlockSite, LinearSite, find_structure

Make = Callable[[str], Any]
GROUPED = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gemma3_with_vision", "phi3"]
MULTI_HEAD = ["opt", "gpt2", "gpt_neox", "bloom", "falcon_alibi"]
# By tiny model: query heads, key-value heads, channels.
EXPECTED = (
    dict.fromkeys([*GROUPED, "falcon_grouped"], (4, 2, 64))
    | dict.fromkeys(MULTI_HEAD, (4, 4, 64))
    | {"gpt2": (4, 4, 128), "bloom": (4, 4, 128), "falcon_alibi": (4, 4, 128)}
    | {"falcon": (4, 1, 128), "falcon_grouped": (4, 2, 128)}
)


def first_block(model: nn.Module) -> BlockSite:
    return find_structure(model).blocks[0]


def attention_of(site: BlockSite) -> Attention:
    found = find_anatomy(site).attention
    assert found is not None
    return found


def feed_forward_of(site: BlockSite) -> FeedForward:
    found = find_anatomy(site).mlp
    assert found is not None
    return found


def as_unknown(site: BlockSite) -> BlockSite:
    """The same block as one of a family that no table knows."""
    linears = tuple(LinearSite(linear.name, "other", linear.module) for linear in site.linears)
    return BlockSite(site.name, site.module, linears, "unheard_of")


def entries(slots: tuple[Slot, ...], linear: str, axis: str) -> Tensor:
    """Indices [units, entries] of the only slot on that side of that linear."""
    (slot,) = (slot for slot in slots if slot.linear.endswith(linear) and slot.axis == axis)
    return slot.index


@pytest.mark.parametrize("name", EXPECTED)
def test_heads_and_channels_are_counted(make_model: Make, name: str) -> None:
    for site in find_structure(make_model(name)).blocks:
        anatomy = find_anatomy(site)
        assert anatomy.unrecognised == {}
        attention, mlp = attention_of(site), feed_forward_of(site)
        assert (attention.n_heads, attention.n_kv_heads, mlp.n_channels) == EXPECTED[name]
        assert attention.head_dim == 8
        assert attention.n_queries_per_group == attention.n_heads // attention.n_kv_heads


@pytest.mark.parametrize("name", EXPECTED)
def test_every_row_and_column_but_the_hidden_ones_belongs_to_one_unit(make_model: Make, name: str) -> None:
    site = first_block(make_model(name))
    attention, mlp = attention_of(site), feed_forward_of(site)
    slots = [*attention.queries, *attention.keys_values, *mlp.channels]
    outputs = {attention.output, mlp.output}
    for linear in site.linears:
        axis, size = ("in", linear.shape[1]) if linear.name in outputs else ("out", linear.shape[0])
        covered = [slot.index.flatten() for slot in slots if (slot.linear, slot.axis) == (linear.name, axis)]
        assert torch.equal(torch.cat(covered).sort().values, torch.arange(size))
        assert all(slot.axis == axis for slot in slots if slot.linear == linear.name)


def perturbed(module: nn.Module, rows: Tensor) -> None:
    weight = module.get_parameter("weight")
    with torch.no_grad():
        view = weight if isinstance(module, nn.Linear) else weight.t()
        view[rows] += torch.randn(len(rows), view.shape[1])


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("kind", ["queries", "keys_values", "channels"])
def test_a_unit_feeds_no_other_columns_of_the_output(make_model: Make, name: str, kind: str) -> None:
    """Changing the rows of one unit changes the output projection's input there, and nowhere else."""
    torch.manual_seed(0)
    model = make_model(name)
    site = first_block(model)
    attention, mlp = attention_of(site), feed_forward_of(site)
    part = mlp if kind == "channels" else attention
    slots = mlp.channels if kind == "channels" else getattr(attention, kind)
    seen: list[Tensor] = []
    output = next(linear.module for linear in site.linears if linear.name == part.output)
    output.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].flatten(0, -2)))
    ids = torch.randint(3, 259, (1, 12))
    unit = 1 if slots[0].index.shape[0] > 1 else 0
    model(input_ids=ids)
    for slot in slots:
        if slot.axis == "out":
            perturbed(next(x.module for x in site.linears if x.name == slot.linear), slot.index[unit])
    model(input_ids=ids)
    changed = (seen[0] != seen[1]).any(dim=0).nonzero().flatten()
    columns = entries(mlp.channels if kind == "channels" else attention.queries, part.output, "in")
    readers = [unit]
    if kind == "keys_values":
        readers = [unit * attention.n_queries_per_group + i for i in range(attention.n_queries_per_group)]
    assert len(changed)
    assert set(changed.tolist()) == set(columns[readers].flatten().tolist())


def test_layouts_of_fused_projections(make_model: Make) -> None:
    phi3, bloom = (attention_of(first_block(make_model(name))) for name in ("phi3", "bloom"))
    assert entries(phi3.queries, "qkv_proj", "out")[1].tolist() == list(range(8, 16))
    # 32 rows of queries, 16 of keys, 16 of values
    assert entries(phi3.keys_values, "qkv_proj", "out")[1].tolist() == [*range(40, 48), *range(56, 64)]
    assert entries(bloom.queries, "query_key_value", "out")[1].tolist() == list(range(24, 32))
    assert entries(bloom.keys_values, "query_key_value", "out")[1].tolist() == list(range(32, 48))
    # one group: two queries, a key, a value
    grouped = attention_of(first_block(make_model("falcon_grouped")))
    assert entries(grouped.queries, "query_key_value", "out")[2].tolist() == list(range(32, 40))
    assert entries(grouped.keys_values, "query_key_value", "out")[1].tolist() == list(range(48, 64))
    multi_query = attention_of(first_block(make_model("falcon")))
    assert entries(multi_query.keys_values, "query_key_value", "out").tolist() == [list(range(32, 48))]


def test_rows_of_a_fused_gate_and_up(make_model: Make) -> None:
    mlp = feed_forward_of(first_block(make_model("phi3")))
    assert entries(mlp.channels, "gate_up_proj", "out")[5].tolist() == [5, 69]
    assert entries(mlp.channels, "down_proj", "in")[5].tolist() == [5]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_narrowed_block_is_analysed_as_it_is_now(make_model: Make, name: str) -> None:
    site = first_block(make_model(name))
    anatomy, attention = find_anatomy(site), attention_of(site)
    n_queries = attention.n_queries_per_group
    kv_heads = torch.arange(max(1, attention.n_kv_heads - 1))
    n_heads = len(kv_heads) * n_queries
    keep_units_(site, anatomy, KeptUnits(torch.arange(10), torch.arange(n_heads), kv_heads))
    attention = attention_of(site)
    assert (attention.n_heads, attention.n_kv_heads, attention.head_dim) == (n_heads, len(kv_heads), 8)
    assert feed_forward_of(site).n_channels == 10


def test_an_attention_without_heads_is_recognised(make_model: Make) -> None:
    nothing = torch.arange(0)
    for name in EXPECTED:
        site = first_block(make_model(name))
        keep_units_(site, find_anatomy(site), KeptUnits(nothing, nothing, nothing))
        attention = attention_of(site)
        assert (attention.n_heads, attention.n_kv_heads, attention.n_queries_per_group) == (0, 0, 0)
        assert feed_forward_of(site).n_channels == 0


def test_head_size_of_its_own() -> None:
    config = LlamaConfig(
        vocab_size=9, hidden_size=36, intermediate_size=24, num_hidden_layers=1, head_dim=6,
        num_attention_heads=3, num_key_value_heads=1,
    )  # fmt: skip
    attention = attention_of(first_block(LlamaForCausalLM(config)))
    assert (attention.n_heads, attention.n_kv_heads, attention.head_dim) == (3, 1, 6)


def test_rows_that_are_not_made_of_heads_are_refused_with_the_figures(make_model: Make) -> None:
    site = first_block(make_model("llama"))
    site.module.get_submodule("self_attn").head_dim = 5  # type: ignore[assignment]
    anatomy = find_anatomy(site)
    assert anatomy.attention is None
    assert "[32, 16, 16]" in anatomy.unrecognised[Sublayer.ATTENTION]
    assert "heads of 5" in anatomy.unrecognised[Sublayer.ATTENTION]


def test_unequal_feed_forward_is_refused_with_the_figures(make_model: Make) -> None:
    site = first_block(make_model("llama"))
    site.module.get_submodule("mlp").gate_proj = nn.Linear(32, 60, bias=False)
    anatomy = find_anatomy(find_structure_of_block(site))
    assert anatomy.mlp is None
    assert "gate_proj has 60 rows" in anatomy.unrecognised[Sublayer.MLP]


def find_structure_of_block(site: BlockSite) -> BlockSite:
    """`site` with the linears that its block has now."""
    roles = {linear.name: linear.role for linear in site.linears}
    modules = ((f"{site.name}.{path}", module) for path, module in site.module.named_modules())
    linears = tuple(LinearSite(name, roles[name], module) for name, module in modules if name in roles)
    return BlockSite(site.name, site.module, linears, site.family)


def test_a_projection_that_is_missing_is_named(make_model: Make) -> None:
    site = first_block(make_model("llama"))
    linears = tuple(linear for linear in site.linears if linear.role not in {"attn.k", "attn.v"})
    reason = find_anatomy(BlockSite(site.name, site.module, linears, "llama")).unrecognised[
        Sublayer.ATTENTION
    ]
    assert "attn.k and attn.v" in reason


def test_bloom_that_slices_its_output_projection_is_refused(make_model: Make) -> None:
    site = first_block(make_model("bloom"))
    attention: Any = site.module.get_submodule("self_attention")
    attention.slow_but_exact, attention.pretraining_tp = True, 4
    assert "slow_but_exact" in find_anatomy(site).unrecognised[Sublayer.ATTENTION]


def test_the_feed_forward_of_an_unknown_model_is_traced(make_model: Make) -> None:
    for site in find_structure(make_model("unknown")).blocks:
        anatomy = find_anatomy(site)
        assert anatomy.attention is None
        assert "'plain'" in anatomy.unrecognised[Sublayer.ATTENTION]
        mlp = feed_forward_of(site)
        assert (mlp.n_channels, mlp.output) == (64, f"{site.name}.back")
        assert torch.equal(entries(mlp.channels, "mix", "out"), torch.arange(64).view(64, 1))
        assert torch.equal(entries(mlp.channels, "back", "in"), torch.arange(64).view(64, 1))


TRACED = ["llama", "qwen3", "gemma3", "opt", "gpt_neox", "bloom", "falcon"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", TRACED)
def test_tracing_finds_what_the_table_says(make_model: Make, name: str, dtype: torch.dtype) -> None:
    site = first_block(make_model(name).to(dtype).requires_grad_(requires_grad=False))
    before = {key: value.clone() for key, value in site.module.state_dict().items()}
    with torch.no_grad():
        traced = find_anatomy(as_unknown(site)).mlp
    known = feed_forward_of(site)
    assert traced is not None
    assert (traced.n_channels, traced.output) == (known.n_channels, known.output)
    assert {(slot.linear, slot.axis) for slot in traced.channels} == {
        (slot.linear, slot.axis) for slot in known.channels
    }
    after = site.module.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert not any(parameter.requires_grad for parameter in site.module.parameters())


def test_tracing_leaves_the_random_numbers_alone(make_model: Make) -> None:
    site = first_block(make_model("unknown"))
    state = torch.random.get_rng_state()
    find_anatomy(site)
    assert torch.equal(torch.random.get_rng_state(), state)


class Normed(nn.Module):
    """Two linears with a function over all channels between them: no channel can go alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.second(torch.softmax(self.first(hidden), dim=-1))


class Awkward(nn.Module):
    """A forward pass that asks for what nobody can make up."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, hidden: Tensor, table: Any) -> Tensor:
        return self.second(table["scale"] * self.first(hidden))


def site_of(block: nn.Module) -> BlockSite:
    linears = tuple(
        LinearSite(f"stages.0.{name}", "other", module)
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
    )
    return BlockSite("stages.0", block, linears)


@pytest.mark.parametrize("block", [Normed(), Awkward(), nn.Sequential(nn.Linear(8, 8))])
def test_what_cannot_be_cut_or_traced_is_unrecognised_with_a_reason(block: nn.Module) -> None:
    anatomy = find_anatomy(site_of(block))
    assert anatomy.mlp is None
    assert "made-up inputs" in anatomy.unrecognised[Sublayer.MLP]


def test_experts_are_not_taken_for_the_feed_forward() -> None:
    experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(3))

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = experts

        def forward(self, hidden: Tensor) -> Tensor:
            return sum((expert(hidden) for expert in self.experts), hidden)

    reason = find_anatomy(site_of(Routed())).unrecognised[Sublayer.MLP]
    assert "3 feed-forwards" in reason


def test_of_a_mixture_of_experts_only_the_shared_one_is_found() -> None:
    config = Qwen2MoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, moe_intermediate_size=16, num_hidden_layers=1,
        shared_expert_intermediate_size=24, num_attention_heads=4, num_key_value_heads=2, num_experts=4,
    )  # fmt: skip
    site = first_block(Qwen2MoeForCausalLM(config))
    mlp = feed_forward_of(site)
    assert (mlp.n_channels, mlp.output) == (24, f"{site.name}.mlp.shared_expert.down_proj")
    assert find_anatomy(site).unrecognised == {}


_GROUPED = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
# By tiny model of a family that no table knows: query heads, key-value heads, channels.
FOUND = (
    dict.fromkeys(["starcoder2", "phi", "stablelm", "cohere", "olmo", "granite"], (4, 2, 64))
    | dict.fromkeys(["nemotron", "gemma", "glm"], (4, 2, 64))
    | dict.fromkeys(["gptj", "codegen", "gpt_neo", "mpt"], (4, 4, 128))
    | {"persimmon": (4, 4, 64)}
)


@pytest.mark.parametrize("name", FOUND)
def test_heads_and_channels_of_families_without_a_table_are_found(make_model: Make, name: str) -> None:
    site = first_block(make_model(name))
    anatomy = find_anatomy(site)
    assert anatomy.unrecognised == {}
    attention, mlp = attention_of(site), feed_forward_of(site)
    assert (attention.n_heads, attention.n_kv_heads, mlp.n_channels) == FOUND[name]
    slots = [*attention.queries, *attention.keys_values, *mlp.channels]
    assert {slot.linear for slot in slots} == {linear.name for linear in site.linears}


@pytest.mark.parametrize("name", [name for name in EXPECTED if name != "gemma3_with_vision"])
def test_running_it_finds_what_the_table_says_of_heads(make_model: Make, name: str) -> None:
    site = first_block(make_model(name))
    state = torch.random.get_rng_state()
    found, known = find_anatomy(as_unknown(site)).attention, attention_of(site)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert found is not None
    assert (found.n_heads, found.n_kv_heads, found.head_dim) == (
        known.n_heads, known.n_kv_heads, known.head_dim,
    )  # fmt: skip
    assert found.output == known.output

    def rows(slots: tuple[Slot, ...]) -> dict[tuple[str, str], list[list[int]]]:
        return {(slot.linear, slot.axis): slot.index.tolist() for slot in slots}

    assert rows(found.queries) | rows(found.keys_values) == rows(known.queries) | rows(known.keys_values)


@pytest.mark.parametrize(
    ("config_class", "options"),
    [
        ("Olmo2Config", {}),  # a norm over all heads
        ("CohereConfig", {"use_qk_norm": True}),  # a norm with weights for each head
        ("Qwen3Config", {"head_dim": 8, "num_attention_heads": 1, "num_key_value_heads": 1}),  # only one
    ],
)
def test_heads_that_cannot_go_alone_are_refused(config_class: str, options: dict[str, Any]) -> None:
    config = getattr(transformers, config_class)(**_GROUPED | options)
    site = as_unknown(first_block(transformers.AutoModelForCausalLM.from_config(config)))
    anatomy = find_anatomy(site)
    assert anatomy.attention is None
    assert "with the output of that head ignored" in anatomy.unrecognised[Sublayer.ATTENTION]
    assert feed_forward_of(site).n_channels == 64


def test_a_pair_of_another_size_is_not_taken_for_the_feed_forward() -> None:
    config = transformers.Gemma3nTextConfig(
        **_GROUPED | {"num_hidden_layers": 4}, head_dim=8, laurel_rank=16, num_kv_shared_layers=0,
        vocab_size_per_layer_input=64, hidden_size_per_layer_input=8, layer_types=["full_attention"] * 4,
        activation_sparsity_pattern=[0.0] * 4,
    )  # fmt: skip
    site = first_block(transformers.AutoModelForCausalLM.from_config(config))
    assert feed_forward_of(site).output == f"{site.name}.mlp.down_proj"
    without = tuple(linear for linear in site.linears if ".mlp." not in linear.name)
    module = site.module
    del module.mlp
    reason = find_anatomy(BlockSite(site.name, module, without, site.family)).unrecognised[Sublayer.MLP]
    assert "laurel.linear_right has 16 columns, not the 64 of a feed-forward" in reason


def test_a_configuration_that_does_not_let_its_sizes_be_read_does_no_harm() -> None:
    config = transformers.Gemma4TextConfig(
        **_GROUPED, head_dim=8, global_head_dim=16, hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=64, layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    with pytest.raises(Exception, match="per-layer attribute"):
        _ = config.head_dim
    for site in find_structure(transformers.AutoModelForCausalLM.from_config(config)).blocks:
        assert feed_forward_of(site).n_channels == 64
