"""The tools that plans are written for, and those whose files are read."""

from owl_compress.registry import Registry

_BOTH = {
    "csv": "owl_compress.exports.csv_table:CsvTable",
    "gptqmodel": "owl_compress.exports.gptqmodel:GptqModelConfig",
    "llm-compressor": "owl_compress.exports.llm_compressor:LlmCompressorRecipe",
}

EXPORTERS = Registry(
    kind="tool",
    group="owl_compress.exporters",
    builtin={
        **_BOTH,
        "auto-round": "owl_compress.exports.auto_round:AutoRoundConfig",
        "gguf-tensor-types": "owl_compress.exports.gguf_tensor_types:GgufTensorTypes",
        "mlx": "owl_compress.exports.mlx:MlxQuantization",
        "modelopt": "owl_compress.exports.modelopt:ModelOptConfig",
        "torch-pruning": "owl_compress.exports.torch_pruning:TorchPruningRatios",
    },
)

IMPORTERS = Registry(
    kind="tool to import from",
    group="owl_compress.importers",
    builtin={**_BOTH, "evopress": "owl_compress.exports.evopress:EvoPressConfig"},
)
