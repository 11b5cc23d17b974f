"""How the weights of a checkpoint lie in its files, and what its card says of using it elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class StoredFormat:
    """What the model card says of a format: a tag, how weights lie in it, how to use it.

    `how_to_load` is by the software that the format is for, `library` what the hub calls that. `vllm` and
    `lm_eval` are snippets for these, or say plainly that there is none; without either the card is silent.
    """

    tag: str
    description: str
    how_to_load: str
    vllm: str | None = None
    lm_eval: str | None = None
    library: str | None = "transformers"


_FOLDER = "path/to/this/folder"

LOAD = (
    "```python\n"
    "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
    f'folder = "{_FOLDER}"\n'
    "model = AutoModelForCausalLM.from_pretrained(folder)\n"
    "tokenizer = AutoTokenizer.from_pretrained(folder)\n```"
)
"""How a folder is loaded that needs nothing but transformers."""

_VLLM = (
    "```python\n"
    "from vllm import LLM, SamplingParams\n\n"
    f'model = LLM("{_FOLDER}")\n'
    '(request,) = model.generate("Owls hunt", SamplingParams(max_tokens=32))\n'
    "print(request.outputs[0].text)\n```\n\n"
)

VLLM = f"{_VLLM}This was run with vLLM 0.32 on a CPU."
"""How vLLM generates from a folder that needs nothing else."""

VLLM_OF_CODES = (
    f"{_VLLM}This was run with vLLM 0.32 on a CPU, whose kernels take 4 bits; for other widths it follows "
    "the documentation and was not run."
)
"""How vLLM generates from packed codes."""

VLLM_AS_DOCUMENTED = f"{_VLLM}This follows the documentation of vLLM 0.32 and was not run there."
"""How vLLM should generate from a form that it was not tried with."""

NO_VLLM = (
    "vLLM does not serve this form: its model classes have one width for all blocks. `--uniform-width` makes "
    "a checkpoint that it serves like any other; `--export decilm` is its form for blocks of different "
    "widths, for models that fit it."
)
"""What is said of blocks of different widths instead."""

LM_EVAL = f"```sh\nlm_eval run --model hf --model_args pretrained={_FOLDER} --tasks arc_easy\n```"
"""How lm-eval scores a folder that needs nothing but transformers."""

_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for `max_lora_rank`."""


def running_code(snippet: str) -> str:
    """The snippet for a folder whose classes are built by a file beside its weights.

    Raises:
        ValueError: `snippet` is none of those above.
    """
    consent = "trust_remote_code=True"
    for call, trusting in (
        ("from_pretrained(folder)\n", f"from_pretrained(folder, {consent})\n"),
        (f'LLM("{_FOLDER}")', f'LLM("{_FOLDER}", {consent})'),
        (f"pretrained={_FOLDER}", f"pretrained={_FOLDER},{consent}"),
    ):
        if call in snippet:
            return snippet.replace(call, trusting, 1)  # the tokenizer, loaded second, has none
    raise ValueError(f"no call to consent to in {snippet!r}")


def with_adapter(stored: StoredFormat, adapter: str, rank: int) -> StoredFormat:
    """The same for a folder that has a LoRA of this rank beside its weights, in its folder `adapter`."""
    added = f'PeftModel.from_pretrained(model, f"{{folder}}/{adapter}")'
    to_load = {
        "from transformers import": "from peft import PeftModel\nfrom transformers import",
        "tokenizer = ": f"model = {added}\ntokenizer = ",
    }
    beside = f"{_FOLDER}/{adapter}"
    within = next((known for known in _LORA_RANKS if known >= rank), rank)
    names = "import LLM, SamplingParams\n"
    to_serve = {
        names: f"{names}from vllm.lora.request import LoRARequest\n",
        f'LLM("{_FOLDER}"': f'LLM("{_FOLDER}", enable_lora=True, max_lora_rank={within}',
        "(request,) = ": f'adapter = LoRARequest("adapter", 1, "{beside}")\n(request,) = ',
        "max_tokens=32))": "max_tokens=32), lora_request=adapter)",
    }
    to_score = {f"pretrained={_FOLDER}": f"pretrained={_FOLDER},peft={beside}"}
    return replace(
        stored,
        how_to_load=_all_replaced(stored.how_to_load, to_load) or "",
        vllm=_all_replaced(stored.vllm, to_serve),
        lm_eval=_all_replaced(stored.lm_eval, to_score),
    )


def _all_replaced(text: str | None, pairs: Mapping[str, str]) -> str | None:
    """The text with each key replaced once; as it is where it is none of the snippets above."""
    if text is None or any(old not in text for old in pairs):
        return text
    for old, new in pairs.items():
        text = text.replace(old, new, 1)
    return text
