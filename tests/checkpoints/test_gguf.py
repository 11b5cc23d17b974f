"""A GGUF is the model that it was converted from: what it says is taken over, told, or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from owl_compress.checkpoints.gguf_account import known_tensors
from owl_compress.checkpoints.gguf_file import read_gguf
from owl_compress.checkpoints.loading import LoadedModel, load_model
from owl_compress.checkpoints.saving import save_checkpoint
from owl_compress.errors import RequestError
from owl_compress.pipeline.session import Session

gguf = pytest.importorskip("gguf")

SIZES = {
    "vocab_size": 260, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
}  # fmt: skip
IDS = torch.arange(3, 203)[None]
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
}  # fmt: skip


def gguf_name(name: str) -> str:
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    module, _, part = name.rpartition(".")
    if module in whole:
        return f"{whole[module]}.{part}"
    _, _, block, inner = module.split(".", 3)
    return f"blk.{block}.{NAMES[inner]}.{part}"


def as_llama_cpp_has_it(name: str, weight: Tensor, heads: int) -> Tensor:
    """Queries and keys of the architecture "llama" lie pair by pair there, and half by half here."""
    if not name.endswith(("attn_q.weight", "attn_k.weight")):
        return weight
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


Edit = Callable[[Any], None]


@pytest.fixture
def convert(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a model as a GGUF, with what `edit` adds through the writer, or without keys."""

    def write(model: Any, architecture: str = "llama", edit: Edit = lambda _: None, **changed: Any) -> Path:
        config, path = model.config, tmp_path / "model.gguf"
        head_dim = config.head_dim
        writer = gguf.GGUFWriter(str(path), architecture)
        keys: dict[str, Any] = {
            "context_length": 256, "embedding_length": 64, "block_count": 2, "feed_forward_length": 96,
            "attention.head_count": 4, "attention.head_count_kv": 2, "rope.dimension_count": head_dim,
        } | changed  # fmt: skip
        for key, value in keys.items():
            if value is not None:
                writer.add_uint32(f"{architecture}.{key}", value)
        writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
        writer.add_float32(f"{architecture}.rope.freq_base", config.rope_parameters["rope_theta"])
        tokens = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("default")
        writer.add_token_list([*tokens, "ab"])
        writer.add_token_types([3] * 3 + [1] * (len(tokens) - 2))
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        for name, weight in model.state_dict().items():
            called = gguf_name(name)
            if architecture == "llama":
                weight = as_llama_cpp_has_it(called, weight, 4 if "attn_q" in called else 2)  # noqa: PLW2901
            writer.add_tensor(called, weight.detach().numpy())
        edit(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


@pytest.fixture
def build() -> Callable[..., Any]:
    """A function that builds a random model of a kind whose rotary embedding is scaled as it is told."""

    def make(kind: str = "llama", **options: Any) -> Any:
        rope = {"rope_type": "default", "rope_theta": 10_000.0} | options.pop("rope", {})
        config = AutoConfig.for_model(kind, **SIZES | {"head_dim": 16, "rope_parameters": rope} | options)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return model

    return make


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(IDS).logits
    return logits


def assert_same(loaded: LoadedModel, model: Any, tmp_path: Path) -> None:
    """The loaded model computes what `model` does, and so does the checkpoint that it is saved as."""
    torch.testing.assert_close(logits_of(loaded.model), logits_of(model), rtol=1e-4, atol=1e-4)
    save_checkpoint(loaded.model, loaded.tokenizer, tmp_path / "saved")
    again = load_model(str(tmp_path / "saved")).model
    assert torch.equal(logits_of(again), logits_of(loaded.model))


def test_a_plain_file_is_the_model_that_it_was_made_of(
    build: Callable[..., Any], convert: Callable[..., Path], tmp_path: Path
) -> None:
    model = build(rope={"rope_theta": 500_000.0}, rms_norm_eps=1e-3)
    loaded = load_model(str(convert(model)))
    assert loaded.notes == ()
    assert loaded.model.config.rope_parameters["rope_theta"] == 500_000.0
    assert_same(loaded, model, tmp_path)


def llama3(**changes: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_theta": 500_000.0,
    } | changes  # fmt: skip


def factors_of(model: Any) -> np.ndarray:
    """What converters write: the plain frequency over the scaled one."""
    rope = model.config.rope_parameters
    scaled, _ = ROPE_INIT_FUNCTIONS[rope["rope_type"]](model.config, None)
    plain = rope["rope_theta"] ** -(torch.arange(0, 16, 2).double() / 16)
    factors: np.ndarray = (plain / scaled.double()).numpy().astype(np.float32)
    return factors


@pytest.mark.parametrize(
    "changes",
    [{}, {"factor": 32.0}, {"original_max_position_embeddings": 512, "rope_theta": 10_000.0}],
    ids=["3.1", "3.2", "short"],
)
def test_the_factors_of_llama_3_become_its_parameters(
    build: Callable[..., Any], convert: Callable[..., Path], tmp_path: Path, changes: dict[str, float]
) -> None:
    model = build(rope=llama3(**changes))
    path = convert(model, edit=lambda writer: writer.add_tensor("rope_freqs.weight", factors_of(model)))
    loaded = load_model(str(path))
    found = loaded.model.config.rope_parameters
    assert found["rope_type"] == "llama3"
    assert {key: found[key] for key in llama3()} == pytest.approx(llama3(**changes))
    assert_same(loaded, model, tmp_path)
    plain = load_model(str(convert(model))).model
    assert not torch.allclose(logits_of(plain), logits_of(model), rtol=1e-3, atol=1e-3)


def test_factors_of_nobody_are_carried_one_by_one(
    build: Callable[..., Any], convert: Callable[..., Path], tmp_path: Path
) -> None:
    factors = np.linspace(1, 8, 8).astype(np.float32)
    both = {"short_factor": factors.tolist(), "long_factor": factors.tolist()}
    sizes = {"factor": 1.0, "original_max_position_embeddings": 256, "attention_factor": 1.0}
    model = build(rope={"rope_type": "longrope"} | both | sizes)
    loaded = load_model(
        str(convert(model, edit=lambda writer: writer.add_tensor("rope_freqs.weight", factors)))
    )
    assert loaded.model.config.rope_parameters["rope_type"] == "longrope"
    assert_same(loaded, model, tmp_path)


def test_factors_of_one_change_nothing(build: Callable[..., Any], convert: Callable[..., Path]) -> None:
    ones = np.ones(8, np.float32)
    path = convert(build(), edit=lambda writer: writer.add_tensor("rope_freqs.weight", ones))
    assert load_model(str(path)).model.config.rope_parameters["rope_type"] == "default"


def test_linear_scaling_is_taken_over(
    build: Callable[..., Any], convert: Callable[..., Path], tmp_path: Path
) -> None:
    model = build(rope={"rope_type": "linear", "factor": 4.0})

    def scale(writer: Any) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    assert_same(load_model(str(convert(model, edit=scale))), model, tmp_path)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_yarn_is_taken_over(
    build: Callable[..., Any], convert: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    rope = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}
    model = build(kind, rope=rope)

    def scale(writer: Any) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(8.0)
        writer.add_rope_scaling_orig_ctx_len(32)

    assert_same(load_model(str(convert(model, kind, edit=scale))), model, tmp_path)


def test_heads_of_their_own_size_are_taken_over(
    build: Callable[..., Any], convert: Callable[..., Path], tmp_path: Path
) -> None:
    model = build("qwen3", head_dim=24)
    path = convert(model, "qwen3", **{"attention.key_length": 24, "attention.value_length": 24})
    loaded = load_model(str(path))
    assert loaded.model.config.head_dim == 24
    assert_same(loaded, model, tmp_path)


def test_heads_without_a_size_are_hidden_size_over_heads(
    build: Callable[..., Any], convert: Callable[..., Path], tmp_path: Path
) -> None:
    model = build("qwen3")  # whose configuration would take 128 by default
    assert_same(load_model(str(convert(model, "qwen3", **{"rope.dimension_count": None}))), model, tmp_path)


def add(key: str, value: Any) -> Edit:
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    return lambda writer: getattr(writer, f"add_{kinds[type(value)]}")(key, value)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (add("split.count", 2), "one of 2 parts .* llama-gguf-split --merge"),
        (add("general.type", "adapter"), "'adapter'"),
        (add("llama.expert_count", 8), r"llama\.expert_count = 8 changes what the model computes"),
        (add("llama.attention.sliding_window", 64), r"llama\.attention\.sliding_window = 64"),
        (add("llama.attention.causal", False), r"llama\.attention\.causal = False"),
        (add("llama.final_logit_softcapping", 30.0), "final_logit_softcapping = 30"),
        (add("llama.attention.value_length", 8), "keys are 16 wide and its values 8"),
        (add("llama.rope.scaling.type", "spiral"), "'spiral'"),
        (add("llama.rope.scaling.factor", float("nan")), "is nan"),
        (lambda w: w.add_tensor("blk.0.attn_q.bias", np.ones(64, np.float32)), r"'blk\.0\.attn_q\.bias'"),
        (lambda w: w.add_tensor("rope_freqs.weight", np.ones(5, np.float32)), "not 8 factors above zero"),
        (lambda w: w.add_tensor("rope_freqs.weight", np.zeros(8, np.float32)), "not 8 factors above zero"),
    ],
)
def test_what_the_model_could_not_express_is_refused_by_name(
    build: Callable[..., Any],
    convert: Callable[..., Path],
    refusal: Callable[..., str],
    edit: Edit,
    words: str,
) -> None:
    with pytest.raises(RequestError, match=words):
        load_model(str(convert(build(), edit=edit)))


def test_a_part_of_each_head_cannot_be_turned_where_the_family_turns_all(
    build: Callable[..., Any], convert: Callable[..., Path], refusal: Callable[..., str]
) -> None:
    path = convert(build(), **{"rope.dimension_count": 8, "attention.key_length": 16})
    assert "it turns 8 of 16 dimensions" in refusal(path)


def test_keys_that_nobody_knows_are_told_in_the_result(
    build: Callable[..., Any], convert: Callable[..., Path]
) -> None:
    path = convert(build(), edit=add("llama.colour", "blue"))
    loaded = load_model(str(path))
    assert loaded.notes == ("llama.colour = 'blue' of the GGUF is not read: what it means is not known",)
    structure = Session.open(recipe_for(path), loaded).structure
    assert loaded.notes[0] in structure.notes


def recipe_for(path: Path) -> Any:
    from owl_compress.documents.recipe import Recipe

    return Recipe(model=str(path), backend="magnitude", allocator="uniform", sparsity=0.5)


@pytest.mark.parametrize("keep", [4, 8, 30, 200, 3000])
def test_a_head_that_is_cut_off_is_said_to_be(
    build: Callable[..., Any], convert: Callable[..., Path], refusal: Callable[..., str], keep: int
) -> None:
    path = convert(build())
    path.write_bytes(path.read_bytes()[:keep])
    assert "corrupt or cut off" in refusal(path)


def test_data_that_is_cut_off_is_said_to_be(
    build: Callable[..., Any], convert: Callable[..., Path], refusal: Callable[..., str]
) -> None:
    path = convert(build())
    path.write_bytes(path.read_bytes()[:-5000])
    assert "cut off" in refusal(path)


@pytest.mark.parametrize("family", ["llama", "bloom", "gpt2"])
def test_the_names_that_the_reader_knows_are_found_without_asking_at_each_module(
    make_model: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    reader = pytest.importorskip("transformers.modeling_gguf_pytorch_utils")
    config = make_model(family).config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    processor = reader.TENSOR_PROCESSORS.get(family, reader.TensorProcessor)(config=config.to_dict())
    expected = frozenset(reader.get_gguf_hf_weights_map(model, processor)) | {"output.weight"}
    tables = []
    table_of = gguf.get_tensor_name_map
    monkeypatch.setattr(gguf, "get_tensor_name_map", lambda *sizes: tables.append(sizes) or table_of(*sizes))
    assert known_tensors(config, family) == expected
    assert len(tables) == 1


def test_a_file_is_parsed_once_for_all_that_is_read_from_it(
    build: Callable[..., Any], convert: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, parsed, tables = convert(build()), [], []
    reader, table_of = gguf.GGUFReader, gguf.get_tensor_name_map
    monkeypatch.setattr(gguf, "GGUFReader", lambda *given: parsed.append(given) or reader(*given))
    monkeypatch.setattr(gguf, "get_tensor_name_map", lambda *sizes: tables.append(sizes) or table_of(*sizes))
    theirs = gguf.GGUFReader
    for n_loads in (1, 2):
        load_model(str(path))
        assert gguf.GGUFReader is theirs
        assert len(parsed) == n_loads
        assert len(tables) == len(set(tables)) * n_loads
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(RequestError):
        load_model(str(path))
    assert gguf.GGUFReader is theirs


def test_the_head_is_read_as_the_package_reads_it(
    build: Callable[..., Any], convert: Callable[..., Path]
) -> None:
    path = convert(build(), edit=add("llama.list", [1, 2, 3]))
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    assert {name: tensor.shape for name, tensor in ours.tensors.items()} == {
        tensor.name: tuple(reversed(tensor.shape.tolist())) for tensor in theirs.tensors
    }
    for tensor in theirs.tensors:
        assert ours.data_start + ours.tensors[tensor.name].offset == tensor.data_offset
    assert ours.value("list") == [1, 2, 3]
    assert ours.value("embedding_length") == 64
    assert ours.metadata["tokenizer.ggml.tokens"] == 260
