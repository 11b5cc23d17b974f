"""Runs `main.py` of OWL's authors as it stands, on a CPU and on given token ids; `peers.py` calls it.

    python peer_owl.py CLONE METHOD TOKENS MODEL OUT SPARSITY LAMBDA M

It is written for transformers 4, CUDA and a tokenizer from the hub. What is put in the place of these, and
nothing else: names that transformers and huggingface_hub dropped, loading in float32 on the CPU, the rotary
embeddings, which blocks are handed from outside today, and the token ids instead of C4. Its perplexity is
left out. MODEL must hold `llama` and must not hold `opt`: it tells families by the name.
"""

import json
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer


def main() -> None:
    """Put the names in place, then let it run."""
    clone, method, tokens, model, out, sparsity, lam, m = sys.argv[1:]
    ids = torch.tensor(json.loads(Path(tokens).read_text(encoding="utf-8")))
    _supply_dropped_names()
    torch.cuda.synchronize = lambda *_: None
    # The plan is read from what it prints.
    np.set_printoptions(precision=17, threshold=sys.maxsize, linewidth=10**6)
    sys.path.insert(0, clone)
    import main as theirs  # noqa: PLC0415
    from lib import prune_all  # noqa: PLC0415

    theirs.get_llm = lambda folder, _cache: _loaded(folder, ids.shape[1])
    theirs.LlamaTokenizer = transformers.AutoTokenizer
    theirs.eval_ppl = lambda *_: float("nan")
    prune_all.get_loaders = lambda *_, **__: ([(row[None], None) for row in ids], None)
    sys.argv = [
        "main.py", "--model", model, "--prune_method", method, "--sparsity_type", "unstructured",
        "--sparsity_ratio", sparsity, "--Lamda", lam, "--Hyper_m", m, "--nsamples", str(len(ids)),
        "--save_model", out,
    ]  # fmt: skip
    theirs.main()


def _supply_dropped_names() -> None:
    for module, names in ((huggingface_hub, ["Repository"]), (transformers.utils, ["get_full_repo_name"])):
        for name in names:
            if not hasattr(module, name):
                setattr(module, name, None)
    transformers.utils.check_min_version = lambda *_: None
    transformers.utils.send_example_telemetry = lambda *_: None


def _loaded(folder: str, seq_len: int) -> Any:
    """Their `get_llm` for the CPU; each block is handed the rotary embeddings of all positions."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.seqlen = seq_len
    model.hf_device_map = {"model.embed_tokens": torch.device("cpu")}
    rotary = model.model.rotary_emb(torch.zeros(1), torch.arange(seq_len)[None])
    forward = LlamaDecoderLayer.forward

    def with_rotary(block: Any, hidden: Any, **given: Any) -> Any:
        return forward(block, hidden, **{"position_embeddings": rotary, **given})

    LlamaDecoderLayer.forward = with_rotary
    return model


if __name__ == "__main__":
    main()
