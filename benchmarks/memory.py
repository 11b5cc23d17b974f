"""How much host memory does an unstructured run take over the model's own size? One process, one row.

python benchmarks/memory.py --calib validation.txt [--backend wanda] [--samples 12] [--seq-len 512]
"""

import argparse

from rows import print_row

from owl_compress import Recipe, Session, make_plan
from owl_compress.memory import peak_host_bytes
from owl_compress.models.state import n_parameters
from owl_compress.pipeline.execution import compress_


def main() -> None:
    """Compare the peak after the run with what the process held before and with the model's size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calib", required=True)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--backend", default="wanda")
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--seq-len", type=int, default=512)
    arguments = parser.parse_args()
    recipe = Recipe.from_options({"allocator": "owl", "sparsity": 0.6, **vars(arguments)})
    session = Session.open(recipe)
    loaded = session.loaded
    model_bytes = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    held = _resident_bytes()
    peak_before = peak_host_bytes()
    _, plan = make_plan(session)
    compress_(session, plan)
    print_row(
        "memory",
        backend=arguments.backend,
        model=loaded.id,
        n_params=n_parameters(loaded.model),
        model_bytes=model_bytes,
        resident_before_bytes=held,
        peak_before_bytes=peak_before,
        peak_bytes=peak_host_bytes(),
        peak_over_resident_in_models=(peak_host_bytes() - held) / model_bytes,
        samples=arguments.samples,
        seq_len=arguments.seq_len,
    )


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123 - a kernel file, not data
        return int(statm.read().split()[1]) * 4096


if __name__ == "__main__":
    main()
