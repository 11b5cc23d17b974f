"""Every form of every architecture is read by plain transformers as it was in memory, or refused before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from owl_compress.allocators import Target, allocate
from owl_compress.backends.rtn import Rtn
from owl_compress.checkpoints.loading import LoadedModel
from owl_compress.checkpoints.packed import Packed
from owl_compress.checkpoints.packed_trial import Fit
from owl_compress.checkpoints.saving import save_checkpoint
from owl_compress.checkpoints.stored_forms import form_named, suiting
from owl_compress.compression.driver import compress_with_
from owl_compress.errors import RequestError
from owl_compress.forms.codes import CodeFormat
from owl_compress.importance.estimator import outline
from owl_compress.models.structure import find_structure
from owl_compress.pipeline.folder import save

pytest.importorskip("compressed_tensors")

SIZES = {
    "vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
GPT = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 128, "n_inner": 64}
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "num_key_value_heads": 4,
}  # fmt: skip

FUSED_EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": LOCAL,
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 32},
    "qwen3_moe": EXPERTS,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": ROUTED | LATENT,
    "glm4_moe": ROUTED,
    "minimax": LOCAL | {"layer_types": ["full_attention", "linear_attention"]},
}
READ_WHILE_BUILT: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 16, "expand": 2, "time_step_rank": 16},
    "mamba2": {"num_heads": 8, "state_size": 16, "expand": 2, "n_groups": 1, "chunk_size": 16},
    "gpt_bigcode": GPT,
}
OF_ANOTHER_KIND: dict[str, dict[str, Any]] = {"phimoe": {"num_local_experts": 4}}
ALL_READ: dict[str, dict[str, Any]] = {
    "modernbert-decoder": {},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 32, "num_key_value_heads": 1},
    "rwkv": {"attention_hidden_size": 32, "context_length": 128},
}
ORDINARY: dict[str, dict[str, Any]] = {
    "granitemoe": LOCAL, "phi": {}, "gptj": GPT | {"rotary_dim": 4}, "codegen": GPT | {"rotary_dim": 4},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "stablelm": {}, "cohere": {}, "starcoder2": {}, "olmo2": {}, "granite": {}, "nemotron": {}, "gemma": {},
    "persimmon": {},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 128},
}  # fmt: skip
ARCHITECTURES = FUSED_EXPERTS | READ_WHILE_BUILT | OF_ANOTHER_KIND | ALL_READ | ORDINARY
IDS = torch.arange(3, 40)[None]


def build(name: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(name, **(SIZES | ARCHITECTURES[name]))
        return AutoModelForCausalLM.from_config(config).eval()


def fit_of(model: Any) -> None:
    Packed().check_holds(model, find_structure(model), CodeFormat(None, symmetric=True))


def quantized(model: Any) -> Any:
    plan = allocate(outline(model), "uniform", Target.from_bits(4, (4,)), {})
    return compress_with_(model, plan, Rtn(None), None, partial=True), plan


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def names_in(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return set(file.keys())


@pytest.mark.parametrize("name", ALL_READ)
def test_what_transformers_could_not_read_is_refused_before_any_work(name: str) -> None:
    message = r"cannot be stored packed: transformers reads the weight of \S+ while .*: use --format dense"
    with pytest.raises(RequestError, match=message):
        fit_of(build(name))


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3"])
def test_experts_that_are_merged_as_they_are_read_are_stored_merged(name: str, tmp_path: Path) -> None:
    model = build(name)
    quantized(model)
    assert save_checkpoint(model, None, tmp_path, form_named("packed")) == ()
    assert any(name.endswith("mlp.experts.gate_up_proj") for name in names_in(tmp_path))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


@pytest.mark.parametrize(("name", "part"), [("gpt_bigcode", "attn.c_proj"), ("phimoe", "mlp.router")])
def test_linears_that_are_read_by_attribute_or_of_another_kind_stay_unpacked_and_are_named(
    name: str, part: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build(name)
    fit_of(model)
    assert f"{part}" in caplog.text  # told before the work
    result, plan = quantized(model)
    result = save(LoadedModel(model, None, name, name, None, "float32"), result, plan, tmp_path / "OUT")
    (note,) = [note for note in result.notes if "stored dequantised" in note]
    assert note.endswith(f".0.{part}")
    assert note in (tmp_path / "OUT" / "README.md").read_text()
    assert not any(f"{part}.weight_packed" in name for name in names_in(tmp_path / "OUT"))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "OUT")), logits(model))


def test_a_fit_of_all_has_nothing_to_tell() -> None:
    assert Fit(("a", "b"), (), original_names=True).notes == ()


def test_random_numbers_are_where_they_were_after_the_trial() -> None:
    model = build("phi")
    before = torch.get_rng_state()
    fit_of(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert not hasattr(model.config, "quantization_config")


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_read_as_it_was_in_memory(name: str, tmp_path: Path) -> None:
    model = build(name)
    quantized(model)
    expected = logits(model)
    for form in ("dense", "packed"):
        if form == "packed" and name in ALL_READ:
            continue
        folder = tmp_path / form
        folder.mkdir()
        save_checkpoint(model, None, folder, form_named(form))
        again, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values()), info
        assert torch.equal(logits(again), expected)


@pytest.mark.slow
def test_every_family_is_read_as_it_was_in_memory_in_every_form(
    family_model: Any,
    keep_channels_: Callable[..., Any],
    logits_of: Callable[[Any], torch.Tensor],
    tmp_path: Path,
    copied_modules: None,
) -> None:
    if not hasattr(family_model, "save_pretrained"):
        pytest.skip("no model of transformers")
    for is_narrowed in (False, True):
        if is_narrowed:
            keep_channels_(family_model, 61, 59, 57)
        for wants_codes in (False, True):
            form = suiting(family_model, wants_codes=wants_codes)
            folder = tmp_path / form.name
            folder.mkdir()
            if wants_codes:
                quantized(family_model)
            try:
                save_checkpoint(family_model, None, folder, form)
            except RequestError as error:
                assert "only torch.nn.Linear can be packed" in str(error)  # noqa: PT017 - some are read
                continue
            again = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=is_narrowed)
            assert torch.equal(logits_of(again), logits_of(family_model))
