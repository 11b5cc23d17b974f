"""Our loader as a model of lm-eval, of the type owl-compress; `owl_compress.lm_eval` makes it known there."""

from inspect import signature
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from owl_compress.device import resolve_device
from owl_compress.errors import RequestError, nearest
from owl_compress.evaluation.harness import LiveModel
from owl_compress.lm_eval import NAME
from owl_compress.pipeline.stages import load

_OF_LOADING = frozenset(
    {
        "autogptq", "backend", "delta", "gguf_file", "gptqmodel", "max_cpu_memory", "max_memory_per_gpu",
        "offload_folder", "parallelize", "peft", "self", "subfolder", "tokenizer", "tp_plan",
        "use_fast_tokenizer", "kwargs",
    }
)  # fmt: skip
"""Arguments of lm-eval's own class that say how it loads a model."""


@register_model(NAME)
class OwlCompressLM(LiveModel):
    """Whatever `owl_compress.load` loads: a folder of ours, packed and narrow too, a GGUF file, a hub id.

    Args:
        pretrained: as for `owl_compress.load`.
        revision: of a model on the hub.
        dtype: auto, bfloat16, float16 or float32.
        device: auto, cpu, cuda or cuda:N; the CPU where torch sees no CUDA.
        batch_size: choices in one pass, or "auto" as lm-eval means it.
        trust_remote_code: run code from the repository or folder of the model.
        allow_pickle: load pickled weights, which can run code while they load.
        options: further arguments of lm-eval's HFLM that are about scoring, such as `max_length`.

    Raises:
        RequestError: see `owl_compress.load`; or an argument that is not known.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str = 1,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
        **options: Any,
    ) -> None:
        known = signature(HFLM.__init__).parameters.keys() - _OF_LOADING
        for name in options:
            if name not in known:
                own = signature(type(self).__init__).parameters.keys() - {"self", "options"}
                raise RequestError(f"--model_args: {name!r} is not known: {nearest(name, {*known, *own})}")
        # lm-eval says "cuda:0" where nobody says anything, and means the CPU where there is no other.
        place = resolve_device(device if device and torch.cuda.is_available() else "auto")
        loaded = load(
            str(pretrained),
            dtype=dtype,
            revision=None if revision is None else str(revision),
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
        super().__init__(loaded.model.to(place), loaded.tokenizer, batch_size, **options)
        self.revision = loaded.revision or ""
