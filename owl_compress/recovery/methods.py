"""The recovery methods by name."""

from owl_compress.registry import Registry

METHODS = Registry(
    kind="recovery method",
    group="owl_compress.recovery_methods",
    builtin={
        "bias": "owl_compress.recovery.bias:Bias",
        "lora": "owl_compress.recovery.lora:Lora",
        "masked": "owl_compress.recovery.masked:Masked",
    },
)

DEFAULT_METHOD = "lora"
