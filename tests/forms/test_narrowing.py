"""A block that was cut computes what the whole one computes with the cut columns of its outputs zeroed."""

import ast
import copy
import json
import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from owl_compress.errors import RequestError
from owl_compress.forms import modeling_narrow, narrowing
from owl_compress.forms.modeling_narrow import narrowed, set_widths_
from owl_compress.forms.narrowing import KeptUnits, has_narrowed_blocks, keep_units_
from owl_compress.models.anatomy import Attention, BlockAnatomy, FeedForward, find_anatomy
from owl_compress.models.state import cache_name
from owl_compress.models.structure import BlockSite, find_structure, in_rows

Make = Callable[[str], Any]
Choose = Callable[[BlockAnatomy, int], KeptUnits]

_SMALL = {
    "vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 3, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 2,
}  # fmt: skip
_LLAMA = _SMALL | {"intermediate_size": 48, "num_attention_heads": 8}
_PHI3 = _LLAMA | {"num_key_value_heads": 2, "max_position_embeddings": 128}
_PARTIAL = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
_FALCON = _SMALL | {"num_attention_heads": 8, "new_decoder_architecture": True, "num_kv_heads": 4}
_MIXTRAL = _LLAMA | {"num_key_value_heads": 4, "num_local_experts": 4, "max_position_embeddings": 128}
# Layouts that the tiny models of the families leave out.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama_multi_head": ("LlamaConfig", _LLAMA | {"num_key_value_heads": 8}),
    "llama_multi_query": ("LlamaConfig", _LLAMA | {"num_key_value_heads": 1, "head_dim": 6}),
    "llama_biases": (
        "LlamaConfig", _LLAMA | {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}
    ),
    "phi3_partial_rotary": (
        "Phi3Config",
        _PHI3 | {"rope_parameters": _PARTIAL},
    ),
    "opt_norm_after": (
        "OPTConfig", _SMALL | {"ffn_dim": 48, "num_attention_heads": 4, "do_layer_norm_before": False}
    ),
    "bloom_six_heads": ("BloomConfig", _SMALL | {"hidden_size": 48, "n_layer": 3, "n_head": 6}),
    "falcon_biases": (
        "FalconConfig",
        _FALCON | {"bias": True},
    ),
    "falcon_rotary_multi_head": (
        "FalconConfig", _SMALL | {"num_attention_heads": 4, "multi_query": False, "parallel_attn": False}
    ),
}  # fmt: skip
FAMILIES = [
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gemma3_with_vision", "phi3", "opt", "gpt2",
    "gpt_neox", "bloom", "falcon", "falcon_grouped", "falcon_alibi",
]  # fmt: skip
# Of these no table says where their heads lie. GPT-Neo's has no place in the cache that an emptied one finds.
UNTABLED = [
    "starcoder2", "phi", "stablelm", "gptj", "codegen", "cohere", "olmo", "granite", "nemotron", "gemma",
    "persimmon", "mpt", "glm",
]  # fmt: skip
ALIBI = ["bloom", "bloom_six_heads", "falcon_alibi", "mpt"]
ALL = [*FAMILIES, *VARIANTS, *UNTABLED]


@pytest.fixture(scope="session")
def strong(make_model: Make) -> Make:
    """A function that builds a model whose heads and channels weigh: what goes missing shows."""

    def make(name: str) -> Any:
        if name not in VARIANTS:
            model = make_model(name)
        else:
            config_class, options = VARIANTS[name]
            config = getattr(transformers, config_class)(**options)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = transformers.AutoModelForCausalLM.from_config(config).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for linear in find_structure(model).linears:
                weight = linear.module.get_parameter("weight")
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
                if linear.module.bias is not None:
                    bias = linear.module.get_parameter("bias")
                    bias.copy_(torch.randn(bias.shape, generator=generator) * 0.2)
        return model

    return make


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(3, 259, (2, 20), generator=torch.Generator().manual_seed(2))


def channels(anatomy: BlockAnatomy, block: int) -> KeptUnits:
    """Every third channel, starting elsewhere in every block."""
    assert anatomy.mlp is not None
    return KeptUnits(channels=torch.arange(block, anatomy.mlp.n_channels, 3))


def groups(anatomy: BlockAnatomy, block: int) -> KeptUnits:
    """One key-value head less, with its query heads; another one in every block."""
    attention = anatomy.attention
    assert attention is not None
    gone = block % attention.n_kv_heads
    kept = [head for head in range(attention.n_kv_heads) if head != gone or attention.n_kv_heads == 1]
    n_queries = attention.n_queries_per_group
    heads = [kv_head * n_queries + query for kv_head in kept for query in range(n_queries)]
    return KeptUnits(heads=torch.tensor(heads), kv_heads=torch.tensor(kept))


def queries(anatomy: BlockAnatomy, block: int) -> KeptUnits:
    """One query head less in every group, not the same one; nothing where a group has only one."""
    attention = anatomy.attention
    assert attention is not None
    n_queries = attention.n_queries_per_group
    heads = [
        kv_head * n_queries + query
        for kv_head in range(attention.n_kv_heads)
        for query in range(n_queries)
        if n_queries == 1 or query != (kv_head + block) % n_queries
    ]
    return KeptUnits(heads=torch.tensor(heads), kv_heads=torch.arange(attention.n_kv_heads))


def both(anatomy: BlockAnatomy, block: int) -> KeptUnits:
    """Channels everywhere, and query heads or groups in turn; the last block keeps its heads."""
    if block == 2:
        return channels(anatomy, block)
    heads = groups(anatomy, block) if block else queries(anatomy, block)
    return KeptUnits(channels(anatomy, block).channels, heads.heads, heads.kv_heads)


def nothing_in_the_first_block(anatomy: BlockAnatomy, block: int) -> KeptUnits:
    """Neither heads nor channels in the first block; elsewhere as `both`."""
    none = torch.arange(0)
    return both(anatomy, block) if block else KeptUnits(none, none, none)


def narrow_(model: nn.Module, choose: Choose) -> nn.Module:
    for index, site in enumerate(find_structure(model).blocks):
        anatomy = find_anatomy(site)
        keep_units_(site, anatomy, choose(anatomy, index))
    return model


def mask_(model: nn.Module, choose: Choose) -> nn.Module:
    """The oracle: nothing is cut, but the output projections do not see what should go."""
    for index, site in enumerate(find_structure(model).blocks):
        anatomy = find_anatomy(site)
        kept = choose(anatomy, index)
        for part, units in ((anatomy.mlp, kept.channels), (anatomy.attention, kept.heads)):
            if part is not None and units is not None:
                _zero_columns_(site, part, units)
    return model


def _zero_columns_(site: BlockSite, part: FeedForward | Attention, kept: Tensor) -> None:
    module = next(linear.module for linear in site.linears if linear.name == part.output)
    weight = in_rows(module, module.get_parameter("weight").data)
    size = part.head_dim if isinstance(part, Attention) else 1
    units = weight.unflatten(1, (-1, size))  # [out, in] -> [out, units, entries]
    units[:, [unit for unit in range(units.shape[1]) if unit not in kept.tolist()]] = 0


def logits(model: Any, ids: Tensor, **named: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=ids, **named).logits
    return result


@pytest.mark.parametrize("choose", [channels, groups, queries, both, nothing_in_the_first_block])
@pytest.mark.parametrize("name", ALL)
def test_the_cut_model_is_the_masked_model(strong: Make, ids: Tensor, name: str, choose: Choose) -> None:
    dense = logits(strong(name), ids)
    masked = logits(mask_(strong(name), choose), ids)
    model = narrow_(strong(name), choose)
    torch.testing.assert_close(logits(model, ids), masked, rtol=2e-5, atol=2e-5)
    if has_narrowed_blocks(model):
        assert (masked - dense).abs().max() > 0.01


@pytest.mark.parametrize("choose", [groups, queries])
def test_heads_go_from_a_block_that_is_recognised_as_a_whole(
    strong: Make, ids: Tensor, monkeypatch: pytest.MonkeyPatch, choose: Choose
) -> None:
    monkeypatch.setitem(VARIANTS, "mixtral", ("MixtralConfig", _MIXTRAL))
    dense, masked = logits(strong("mixtral"), ids), logits(mask_(strong("mixtral"), choose), ids)
    cut = logits(narrow_(strong("mixtral"), choose), ids)
    torch.testing.assert_close(cut, masked, rtol=2e-5, atol=2e-5)
    assert (masked - dense).abs().max() > 0.01


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi3", "opt", "gpt2", "gpt_neox", *ALIBI])
def test_eager_attention_and_padding(strong: Make, ids: Tensor, name: str) -> None:
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    for implementation in ("eager",) if name == "gemma2" else ("sdpa", "eager"):
        models = [mask_(strong(name), both), narrow_(strong(name), both)]
        for model in models:
            if not name.startswith("bloom"):  # it has but one
                model.set_attn_implementation(implementation)
        masked, cut = (logits(model, ids, attention_mask=mask)[mask.bool()] for model in models)
        torch.testing.assert_close(cut, masked, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ALL)
def test_keeping_everything_changes_nothing(strong: Make, ids: Tensor, name: str) -> None:
    model = strong(name)
    before = logits(model, ids)
    parameters = dict(model.named_parameters())

    def everything(anatomy: BlockAnatomy, block: int) -> KeptUnits:
        assert anatomy.mlp is not None
        assert anatomy.attention is not None
        counts = (anatomy.mlp.n_channels, anatomy.attention.n_heads, anatomy.attention.n_kv_heads)
        return KeptUnits(*map(torch.arange, counts))

    narrow_(model, everything)
    assert torch.equal(logits(model, ids), before)
    assert all(parameter is parameters[key] for key, parameter in model.named_parameters())
    assert not has_narrowed_blocks(model)


@pytest.mark.parametrize("name", ALL)
def test_parameters_go_as_the_index_says(strong: Make, name: str) -> None:
    model = strong(name)
    for index, site in enumerate(find_structure(model).blocks):
        anatomy = find_anatomy(site)
        kept = both(anatomy, index)
        shapes = {linear.name: list(linear.shape) for linear in site.linears}
        attention, mlp = anatomy.attention, anatomy.mlp
        assert attention is not None
        assert mlp is not None
        kinds: list[tuple[Any, Tensor | None, int]] = [
            (mlp.channels, kept.channels, mlp.n_channels),
            (attention.queries, kept.heads, attention.n_heads),
            (attention.keys_values, kept.kv_heads, attention.n_kv_heads),
        ]
        for slots, units, n_units in kinds:
            for slot in slots if units is not None else ():
                assert units is not None
                shapes[slot.linear][slot.axis == "in"] -= (n_units - len(units)) * slot.index.shape[1]
        other = sum(p.numel() for p in site.module.parameters()) - _parameters_of_linears(site)
        keep_units_(site, anatomy, kept)
        biases = sum(shapes[x.name][0] for x in site.linears if x.module.bias is not None)
        assert {linear.name: list(linear.shape) for linear in site.linears} == shapes
        expected = other + biases + sum(rows * columns for rows, columns in shapes.values())
        assert sum(p.numel() for p in site.module.parameters()) == expected


def _parameters_of_linears(site: BlockSite) -> int:
    return sum(p.numel() for linear in site.linears for p in linear.module.parameters())


@pytest.mark.parametrize("name", ALL)
def test_removing_twice_is_removing_once(strong: Make, ids: Tensor, name: str) -> None:
    once, twice = strong(name), strong(name)

    def both_at_once(anatomy: BlockAnatomy, block: int) -> KeptUnits:
        first, heads = channels(anatomy, block), groups(anatomy, block)
        assert first.channels is not None
        return KeptUnits(first.channels[1::2], heads.heads, heads.kv_heads)

    narrow_(once, both_at_once)
    narrow_(twice, channels)
    narrow_(twice, groups)
    narrow_(twice, lambda anatomy, _: KeptUnits(channels=torch.arange(1, n_channels(anatomy), 2)))
    assert torch.equal(logits(once, ids), logits(twice, ids))
    for a, b in zip(find_structure(once).blocks, find_structure(twice).blocks, strict=True):
        assert a.module.narrow_widths == b.module.narrow_widths


def n_channels(anatomy: BlockAnatomy) -> int:
    assert anatomy.mlp is not None
    return anatomy.mlp.n_channels


@pytest.mark.parametrize("name", ALIBI)
def test_slopes_follow_their_heads_through_a_second_removal(strong: Make, ids: Tensor, name: str) -> None:
    def keep(*heads: int) -> Choose:
        return lambda _anatomy, _block: KeptUnits(heads=torch.tensor(heads), kv_heads=torch.tensor(heads))

    model = narrow_(narrow_(strong(name), keep(1, 2, 3)), keep(0, 2))
    masked = logits(mask_(strong(name), keep(1, 3)), ids)
    torch.testing.assert_close(logits(model, ids), masked, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("choose", [both, nothing_in_the_first_block])
@pytest.mark.parametrize("name", [*FAMILIES, *UNTABLED])
def test_generation_with_and_without_a_cache(strong: Make, ids: Tensor, name: str, choose: Choose) -> None:
    model: Any = narrow_(strong(name), choose)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 2}
    settings |= {"output_logits": True, "return_dict_in_generate": True, "attention_mask": mask}
    cached, plain = (model.generate(ids, use_cache=use, **settings) for use in (True, False))
    assert torch.equal(cached.sequences, plain.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(plain.logits), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_steps_with_a_cache_are_one_forward_pass(strong: Make, ids: Tensor, name: str) -> None:
    model: Any = narrow_(strong(name), nothing_in_the_first_block)
    cache, parts = None, []
    for piece in ids.split([11, 1, 1, 7], dim=1):
        with torch.no_grad():
            outputs = model(input_ids=piece, use_cache=True, **{cache_name(model): cache})
        cache = getattr(outputs, cache_name(model))
        parts.append(outputs.logits)
    assert cache.get_seq_length() == ids.shape[1]
    torch.testing.assert_close(torch.cat(parts, dim=1), logits(model, ids), rtol=1e-4, atol=1e-4)


def config_with_widths(model: Any) -> Any:
    """The configuration of a cut model, after a trip through JSON."""
    blocks = find_structure(model).blocks
    widths = [getattr(block.module, "narrow_widths", None) for block in blocks]
    config = copy.deepcopy(model.config)
    entry = {"blocks": blocks[0].name.rpartition(".")[0], "widths": widths}
    config.owl_compress_widths = json.loads(json.dumps(entry))
    assert config.owl_compress_widths == entry
    return config


@pytest.mark.parametrize("choose", [both, nothing_in_the_first_block])
@pytest.mark.parametrize("name", ALL)
def test_a_stock_model_with_the_widths_takes_the_weights(
    strong: Make, ids: Tensor, name: str, choose: Choose
) -> None:
    model: Any = narrow_(strong(name), choose)
    fresh = narrowed(type(model))(config_with_widths(model)).eval()
    assert isinstance(fresh, type(model))
    assert type(fresh).__name__ == f"Narrow{type(model).__name__}"
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(logits(fresh, ids), logits(model, ids))


@pytest.mark.parametrize("name", FAMILIES)
def test_it_loads_like_any_model(strong: Make, ids: Tensor, name: str, tmp_path: Path) -> None:
    model: Any = narrow_(strong(name), nothing_in_the_first_block)
    for parameter in model.parameters():  # the rotary frequencies stay float32, as they do when loading
        parameter.data = parameter.data.to(torch.bfloat16)
    config = config_with_widths(model)
    model.save_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    loaded, notes = narrowed(type(model)).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(notes.values())
    assert loaded.dtype == torch.bfloat16
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    assert torch.equal(logits(loaded.eval(), ids), logits(model, ids))


def test_what_was_cut_off_may_leave_memory(strong: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go: list[int] = []
    monkeypatch.setattr(narrowing, "page_out", lambda address, _n_bytes: let_go.append(address))
    model = strong("llama")
    linears = [linear for site in find_structure(model).blocks for linear in site.linears]
    before = [(linear, linear.weight.data_ptr()) for linear in linears]
    narrow_(model, channels)
    assert let_go == [address for linear, address in before if "mlp" in linear.name]


def test_weights_made_anew_have_values(strong: Make, ids: Tensor) -> None:
    model: Any = narrow_(strong("gpt2"), both)
    fresh = narrowed(type(model))(config_with_widths(model)).eval()
    for linear in find_structure(fresh).linears:
        assert 0.005 < linear.weight.std() < 0.03  # the family's own initialisation
    assert bool(logits(fresh, ids).isfinite().all())


def test_a_narrow_class_without_widths_is_the_stock_model(tiny_llama: LlamaForCausalLM, ids: Tensor) -> None:
    model = narrowed(LlamaForCausalLM)(tiny_llama.config).eval()
    model.load_state_dict(tiny_llama.state_dict())
    assert torch.equal(logits(model, ids), logits(tiny_llama, ids))
    assert narrowed(LlamaForCausalLM) is narrowed(LlamaForCausalLM)


def test_widths_for_another_number_of_blocks_are_refused(strong: Make) -> None:
    config = config_with_widths(narrow_(strong("llama"), both))
    config.owl_compress_widths["widths"].pop()
    with pytest.raises(ValueError, match="2 blocks, the model has 3"):
        narrowed(LlamaForCausalLM)(config)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "falcon_alibi"])
def test_copies_and_pickles_compute_the_same(strong: Make, ids: Tensor, name: str) -> None:
    model = narrow_(strong(name), nothing_in_the_first_block)
    expected = logits(model, ids)
    copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(logits(copied, ids), expected)
    assert torch.equal(logits(pickled, ids), expected)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_tensors_keep_their_kind(strong: Make, name: str) -> None:
    model = strong(name).to(torch.bfloat16)
    frozen = [p for key, p in model.named_parameters() if key.endswith(("down_proj.weight", "c_fc.weight"))]
    for parameter in frozen:
        parameter.requires_grad_(requires_grad=False)
    before = {key: p.requires_grad for key, p in model.named_parameters()}
    narrow_(model, both)
    for key, parameter in model.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert parameter.requires_grad == before[key]
        assert parameter.is_contiguous()
        # nothing of the old tensor is held on to
        assert parameter.untyped_storage().nbytes() == parameter.numel() * parameter.element_size()


@pytest.mark.parametrize("name", FAMILIES)
def test_modules_say_their_sizes_and_can_be_trained(strong: Make, ids: Tensor, name: str) -> None:
    model: Any = narrow_(strong(name), both)
    for linear in find_structure(model).linears:
        module: Any = linear.module
        stated = (
            (module.out_features, module.in_features)
            if isinstance(module, nn.Linear)
            else (module.nf, module.nx)
        )
        assert stated == linear.shape
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(
        linear.module.get_parameter("weight").grad is not None for linear in find_structure(model).linears
    )


def test_memory_is_that_of_one_linear(strong: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a linear is copied, those before it have let go of their old weights."""
    import torch_pruning

    model = strong("llama")
    site = find_structure(model).blocks[0]
    sizes: list[int] = []

    def noting(cut: Callable[..., Any]) -> Callable[..., Any]:
        def call(module: nn.Module, removed: Sequence[int]) -> Any:
            result = cut(module, removed)
            sizes.append(sum(p.untyped_storage().nbytes() for p in site.module.parameters()))
            return result

        return call

    for name in ("prune_linear_out_channels", "prune_linear_in_channels"):
        monkeypatch.setattr(torch_pruning, name, noting(getattr(torch_pruning, name)))
    anatomy = find_anatomy(site)
    keep_units_(site, anatomy, both(anatomy, 0))
    assert len(sizes) == 5  # two of the attention's, three of the feed-forward's: keys and values stay
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom", "falcon_alibi", "phi3"])
def test_shapes_on_the_meta_device(strong: Make, name: str) -> None:
    model: Any = narrow_(strong(name), nothing_in_the_first_block)
    config = config_with_widths(model)
    with torch.device("meta"):
        empty = narrowed(type(model))(config)
    assert {key: value.shape for key, value in empty.state_dict().items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }
    assert all(parameter.is_meta for parameter in empty.parameters())


def test_widths_touch_only_what_has_another_shape(strong: Make) -> None:
    model = narrow_(strong("llama"), channels)
    block: Any = find_structure(model).blocks[0].module
    before = dict(block.named_parameters())
    set_widths_(block, block.narrow_widths)
    assert all(parameter is before[key] for key, parameter in block.named_parameters())


def test_a_config_of_its_own_follows_the_shared_one(strong: Make, ids: Tensor) -> None:
    model: Any = narrow_(strong("phi3"), groups)
    attention = find_structure(model).blocks[0].module.get_submodule("self_attn")
    config: Any = attention.config
    assert (config.num_attention_heads, model.config.num_attention_heads) == (2, 4)
    expected = logits(model, ids)
    model.set_attn_implementation("eager")
    assert config._attn_implementation == "eager"
    torch.testing.assert_close(logits(model, ids), expected)
    assert not hasattr(config, "no_such_option")
    assert copy.deepcopy(config).num_attention_heads == 2


def test_what_is_left_of_an_empty_part_is_its_bias(strong: Make) -> None:
    model = strong("opt")
    site = find_structure(model).blocks[1]
    none = torch.arange(0)
    keep_units_(site, find_anatomy(site), KeptUnits(none, none, none))
    hidden = torch.randn(2, 5, 32)
    outputs = site.module(hidden)
    added = site.module.self_attn.out_proj.bias + site.module.fc2.bias
    torch.testing.assert_close(outputs, hidden + added)


def test_a_block_without_heads_can_be_cut_again(strong: Make, ids: Tensor) -> None:
    none = torch.arange(0)
    for name in ("llama", "gpt2", "bloom"):
        model = narrow_(strong(name), lambda *_: KeptUnits(heads=none, kv_heads=none))
        narrow_(model, channels)
        narrow_(model, lambda *_: KeptUnits(heads=none, kv_heads=none))
        masked = mask_(strong(name), channels)
        mask_(masked, lambda *_: KeptUnits(heads=none, kv_heads=none))
        torch.testing.assert_close(logits(model, ids), logits(masked, ids), rtol=2e-5, atol=2e-5)


def test_an_attention_that_cannot_count_its_tokens_keeps_a_head(strong: Make) -> None:
    site = find_structure(strong("bloom")).blocks[0]
    site.module.get_submodule("self_attention").layer_idx = None  # type: ignore[assignment]
    before = copy.deepcopy(site.module.state_dict())
    none = torch.arange(0)
    with pytest.raises(RequestError, match=r"transformer\.h\.0.*'bloom'.*keep at least one"):
        keep_units_(site, find_anatomy(site), KeptUnits(heads=none, kv_heads=none))
    assert all(torch.equal(value, before[key]) for key, value in site.module.state_dict().items())


REFUSED = {
    "beyond the last": (KeptUnits(channels=torch.tensor([0, 64])), "0 to 64 lie outside the 64"),
    "before the first": (KeptUnits(channels=torch.tensor([-1, 3])), "-1 to 3 lie outside"),
    "falling": (KeptUnits(channels=torch.tensor([3, 1])), r"rising order.*\[3, 1\]"),
    "twice": (KeptUnits(channels=torch.tensor([3, 3])), "each once"),
    "no integers": (KeptUnits(channels=torch.tensor([1.0])), "int64"),
    "a mask": (KeptUnits(channels=torch.ones(64, dtype=torch.bool)), "int64"),
    "no list": (KeptUnits(channels=torch.zeros(1, 1, dtype=torch.int64)), r"\[1, 1\]"),
    "heads alone": (KeptUnits(heads=torch.tensor([0, 1])), "together"),
    "key-value heads alone": (KeptUnits(kv_heads=torch.tensor([0])), "together"),
    "unequal": (KeptUnits(heads=torch.tensor([0, 1, 2]), kv_heads=torch.tensor([0, 1])), r"same.*\[2, 1\]"),
    "stray": (KeptUnits(heads=torch.tensor([0, 2]), kv_heads=torch.tensor([0])), r"none, not \[1, 1\]"),
    "no reader": (KeptUnits(heads=torch.tensor([0, 1]), kv_heads=torch.tensor([0, 1])), r"\[2, 0\]"),
    "no query at all": (KeptUnits(heads=torch.arange(0), kv_heads=torch.tensor([0])), "at least one"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused_and_nothing_touched(strong: Make, case: str) -> None:
    kept, message = REFUSED[case]
    site = find_structure(strong("llama")).blocks[0]
    before = dict(site.module.named_parameters())
    with pytest.raises(ValueError, match=message):
        keep_units_(site, find_anatomy(site), kept)
    assert all(parameter is before[key] for key, parameter in site.module.named_parameters())


def test_an_anatomy_of_before_is_refused(strong: Make) -> None:
    site = find_structure(strong("llama")).blocks[0]
    before = find_anatomy(site)
    keep_units_(site, before, both(before, 0))
    for kept in (channels(before, 0), groups(before, 0)):
        with pytest.raises(ValueError, match="as it is now"):
            keep_units_(site, before, kept)


def test_an_unknown_model_loses_channels_and_nothing_else(strong: Make, ids: Tensor) -> None:
    model, masked = narrow_(strong("unknown"), channels), mask_(strong("unknown"), channels)
    torch.testing.assert_close(logits(model, ids), logits(masked, ids), rtol=2e-5, atol=2e-5)
    assert has_narrowed_blocks(model)
    site = find_structure(model).blocks[0]
    with pytest.raises(ValueError, match="no attention whose heads are known"):
        keep_units_(site, find_anatomy(site), KeptUnits(heads=torch.arange(1), kv_heads=torch.arange(1)))
    with pytest.raises(ValueError, match="no feed-forward whose channels are known"):
        keep_units_(site, BlockAnatomy(site.name, None, None), KeptUnits(channels=torch.arange(1)))


def test_the_modelling_file_stands_alone() -> None:
    tree = ast.parse(Path(modeling_narrow.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {
        name.partition(".")[0]
        for node in imports
        for name in (
            [node.module or "."] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        )
    }
    assert names <= {"torch", "transformers", *sys.stdlib_module_names}
