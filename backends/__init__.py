"""Backends: model + plan + calibration -> compressed model, one file per method.

A backend never imports an allocator or a sibling; what several of them share lies in `selection` (which
weights stay) and `solver` (how the rest make up for the loss).
"""

from owl_compress.registry import Registry

BACKENDS = Registry(
    kind="backend",
    group="owl_compress.backends",
    builtin={
        "magnitude": "owl_compress.backends.magnitude:Magnitude",
        "wanda": "owl_compress.backends.wanda:Wanda",
        "sparsegpt": "owl_compress.backends.sparsegpt:SparseGPT",
    },
)
