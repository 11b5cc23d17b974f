"""How a plain lm-eval comes to know the model type "owl-compress"."""

import sys
from contextlib import suppress

NAME = "owl-compress"
"""What lm-eval calls our models: `lm_eval run --model owl-compress --model_args pretrained=OUT`."""

_PLACE = "owl_compress.pipeline.lm_eval_model:OwlCompressLM"
_HARNESS = "lm_eval"


def offer() -> None:
    """Name our model to lm-eval, if it is what this process runs; else do nothing.

    lm-eval 0.4.13 keeps a registry of models that would take entry points, and looks for none (asked for in
    https://github.com/EleutherAI/lm-evaluation-harness/issues/3282). torch does look for some, under
    "torch.backends", whenever it is imported, and lm-eval imports torch before it chooses a model: that is
    when this is called. `TORCH_DEVICE_BACKEND_AUTOLOAD=0` turns it off.
    """
    if _HARNESS not in sys.modules:
        return
    with suppress(Exception):  # whatever another version does: if this failed, the import of torch would
        # lm-eval registers its own models when it finds no other: they have to be there first.
        import lm_eval.models  # noqa: F401, PLC0415 - an extra
        from lm_eval.api.registry import model_registry  # noqa: PLC0415

        if NAME not in model_registry:
            model_registry.register(NAME, target=_PLACE)
