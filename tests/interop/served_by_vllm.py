"""Log-probabilities that vLLM gives a prompt, asked of a folder by the command on its card; JSON on stdout.

    python served_by_vllm.py FOLDER DTYPE "3 4 5 …"

A process of its own: vLLM keeps what it set up for one model until its process ends.
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}


def main() -> None:
    """Serve the folder and ask."""
    folder, dtype, prompt = sys.argv[1:]
    ids = [int(word) for word in prompt.split()]
    names = run_card(Path(folder), dtype)
    from vllm import SamplingParams  # after the card's own import

    asked = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    prompt, adapter = {"prompt_token_ids": ids}, names.get("adapter")
    (request,) = names["model"].generate(prompt, asked, lora_request=adapter, use_tqdm=False)
    given = [step[token].logprob for token, step in zip(ids[1:], request.prompt_logprobs[1:], strict=True)]
    sys.stdout.write(f"{json.dumps(given)}\n")


def run_card(folder: Path, dtype: str) -> dict[str, Any]:
    """The names of the card's snippet, run as it is printed but for the place, the type and the size."""
    section = (folder / "README.md").read_text(encoding="utf-8").partition("### vLLM\n")[2]
    (code,) = re.findall(r"^```python\n(.*?)^```", section.partition("\n### ")[0], re.M | re.S)
    code = code.replace("path/to/this/folder", str(folder))
    small = f"dtype={dtype!r}, enforce_eager=True, max_model_len=64, max_num_seqs=1"
    names: dict[str, Any] = {}
    exec(code.replace(f'LLM("{folder}"', f'LLM("{folder}", {small}'), names)
    return names


if __name__ == "__main__":
    main()
