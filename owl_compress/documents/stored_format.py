"""How the weights of a checkpoint lie in its files, and what its card says of using it elsewhere."""

from dataclasses import dataclass


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
