"""Backends: model + plan + calibration -> compressed model, one file per method.

A backend never imports an allocator or a sibling; what several of them share lies in `selection` (which
weights stay), `solver` (how the rest make up for the loss) and `quantizer` (which integers stand for them).
Structured removal has its own: `parts` and `unit_importance` (which heads and channels), `widths` and
`block_widths` (how many of them), `repair`.
"""

from owl_compress.registry import Registry

DEFAULT_BACKEND = "wanda"
"""Who carries out a plan where nobody says."""

BACKENDS = Registry(
    kind="backend",
    group="owl_compress.backends",
    builtin={
        "magnitude": "owl_compress.backends.magnitude:Magnitude",
        "wanda": "owl_compress.backends.wanda:Wanda",
        "sparsegpt": "owl_compress.backends.sparsegpt:SparseGPT",
        "structured": "owl_compress.backends.structured:Structured",
        "rtn": "owl_compress.backends.rtn:Rtn",
        "gptq": "owl_compress.backends.gptq:Gptq",
        "autoround": "owl_compress.backends.autoround:AutoRound",
        "gptqmodel": "owl_compress.backends.gptqmodel:GptqModel",
    },
)
