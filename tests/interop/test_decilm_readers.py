"""A DeciLM folder in mlx-lm, and in llama.cpp, as a GGUF that is written by the rules of its conversion.

These rules are those of its class `DeciModel` (conversion/deci.py, read in November 2026): which keys of
config.json it reads, by which formula it has widths, which tensors it turns. Names are those of the package
gguf, which that script takes them from. Tokens are numbered here and not spelt: the vocabulary is not asked.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

STEP = 256


class DeciFolder:
    """What llama.cpp's conversion takes of a folder."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.tensors: dict[str, Tensor] = load_file(folder / "model.safetensors")
        blocks = self.config["block_configs"]
        self.n_heads: int = self.config["num_attention_heads"]
        self.n_kv_heads = [self.n_heads // block["attention"]["n_heads_in_group"] for block in blocks]
        widths = [int(2 * block["ffn"]["ffn_mult"] * self.config["hidden_size"] / 3) for block in blocks]
        self.widths = [width + -width % STEP for width in widths]
        assert all(isinstance(block["ffn"]["ffn_mult"], float) for block in blocks)

    def turned(self, name: str, tensor: Tensor) -> Tensor:
        """Queries and keys with the two halves of each head interleaved: [heads * 2 * half, in]."""
        if not name.endswith(("q_proj.weight", "k_proj.weight")):
            return tensor
        n_heads = self.n_heads if "q_proj" in name else self.n_kv_heads[int(name.split(".")[2])]
        return tensor.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)

    def write_gguf(self, path: Path) -> None:
        import gguf

        config, n_blocks = self.config, len(self.widths)
        assert config["architectures"] == ["DeciLMForCausalLM"]
        assert n_blocks == config["num_hidden_layers"]
        writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.DECI])
        writer.add_block_count(n_blocks)
        writer.add_head_count([self.n_heads] * n_blocks)
        writer.add_head_count_kv(self.n_kv_heads)
        writer.add_feed_forward_length(self.widths)
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_key_length(config["hidden_size"] // self.n_heads)
        writer.add_value_length(config["hidden_size"] // self.n_heads)
        writer.add_rope_dimension_count(config["head_dim"])
        writer.add_rope_freq_base(config["rope_theta"])
        writer.add_vocab_size(config["vocab_size"])
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([f"token{number:04d}" for number in range(config["vocab_size"])])
        writer.add_token_merges(["a b"])
        for name, tensor in self.tensors.items():
            writer.add_tensor(self.name_in_gguf(name), self.turned(name, tensor.float()).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def name_in_gguf(self, name: str) -> str:
        import gguf

        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DECI, len(self.widths))
        found: str | None = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        return found


@pytest.fixture
def deci(written: Callable[[str], Path], output: str) -> DeciFolder:
    return DeciFolder(written(output))


@pytest.mark.proves("gguf", "gguf")
@pytest.mark.parametrize("output", ["decilm"])
def test_gguf(deci: DeciFolder, output: str) -> None:
    """names, shapes and keys by the rules of llama.cpp's conversion"""
    pytest.importorskip("gguf")
    hidden = deci.config["hidden_size"]
    head = hidden // deci.n_heads
    shapes = {deci.name_in_gguf(name): tuple(tensor.shape) for name, tensor in deci.tensors.items()}
    vocabulary = (deci.config["vocab_size"], hidden)
    asked = {"token_embd.weight": vocabulary, "output.weight": vocabulary, "output_norm.weight": (hidden,)}
    for place, (n_kv_heads, width) in enumerate(zip(deci.n_kv_heads, deci.widths, strict=True)):
        asked |= {
            f"blk.{place}.{name}.weight": shape
            for name, shape in {
                "attn_norm": (hidden,), "ffn_norm": (hidden,),
                "attn_q": (deci.n_heads * head, hidden), "attn_output": (hidden, deci.n_heads * head),
                "attn_k": (n_kv_heads * head, hidden), "attn_v": (n_kv_heads * head, hidden),
                "ffn_gate": (width, hidden), "ffn_up": (width, hidden), "ffn_down": (hidden, width),
            }.items()
        }  # fmt: skip
    assert shapes == asked
    assert len(set(deci.widths)) > 1


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore")
@pytest.mark.proves("llama.cpp", "xllamacpp", "gguf")
@pytest.mark.parametrize("output", ["decilm"])
def test_llama_cpp(deci: DeciFolder, output: str, tmp_path: Path) -> None:
    """run on a GGUF written by these rules: log-probabilities after 5, 20 and 57 tokens, to 1e-5"""
    xllamacpp = pytest.importorskip("xllamacpp")
    deci.write_gguf(tmp_path / "model.gguf")
    server = xllamacpp.Server(parameters(xllamacpp, tmp_path / "model.gguf"))
    model, ids = rebuilt(deci), list(range(3, 60))
    for length in (5, 20, 57):
        with torch.no_grad():
            logits = model(torch.tensor([ids[:length]])).logits[0, -1]
        asked = torch.log_softmax(logits.double(), dim=-1)
        n_tokens = len(asked)
        request = {"prompt": ids[:length], "max_tokens": 1, "logprobs": n_tokens, "temperature": 0.0}
        answer = server.handle_completions(request)
        rows = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        found = torch.full((n_tokens,), torch.nan, dtype=torch.float64)
        for row in rows:
            found[row["id"]] = row["logprob"]
        torch.testing.assert_close(found, asked, atol=1e-5, rtol=0)


@pytest.mark.interop
@pytest.mark.filterwarnings("ignore")
@pytest.mark.proves("mlx-lm", "mlx-lm", "mlx")
@pytest.mark.parametrize("output", ["decilm"])
def test_mlx_lm(written: Callable[[str], Path], deci: DeciFolder, output: str) -> None:
    """`mlx_lm.load` on a CPU: the logits of the same blocks in transformers, to 1e-5"""
    mlx_lm = pytest.importorskip("mlx_lm")
    import mlx.core as mx

    model, _ = mlx_lm.load(str(written(output)))
    ids = list(range(3, 60))
    with torch.no_grad():
        asked = rebuilt(deci)(torch.tensor([ids])).logits
    torch.testing.assert_close(torch.tensor(model(mx.array([ids])).tolist()), asked, atol=1e-5, rtol=0)


def parameters(xllamacpp: Any, path: Path) -> Any:
    """One thread, and float32 throughout."""
    chosen = xllamacpp.CommonParams()
    chosen.model.path = str(path)
    chosen.n_ctx, chosen.n_gpu_layers, chosen.n_parallel, chosen.warmup = 128, 0, 1, False
    chosen.cpuparams.n_threads = 1
    chosen.cache_type_k = chosen.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    chosen.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return chosen


def rebuilt(deci: DeciFolder) -> LlamaForCausalLM:
    """The same model out of transformers' Llama blocks, each at its own width."""
    foreign = ("block_configs", "auto_map", "architectures", "model_type", "intermediate_size")
    options = {key: value for key, value in deci.config.items() if key not in foreign}
    model = LlamaForCausalLM(LlamaConfig(**options, intermediate_size=STEP))
    for place, (n_kv_heads, width) in enumerate(zip(deci.n_kv_heads, deci.widths, strict=True)):
        config = LlamaConfig(**options | {"num_key_value_heads": n_kv_heads}, intermediate_size=width)
        config._attn_implementation = "sdpa"
        model.model.layers[place] = LlamaDecoderLayer(config, place)
    model.load_state_dict(deci.tensors)
    return model.eval()
