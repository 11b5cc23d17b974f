"""lm-eval's own command line, in which our models are known.

    python -m owl_compress.lm_eval run --model owl-compress --model_args pretrained=OUT --tasks boolq

lm-eval 0.4.13 keeps a registry of models that would take entry points, and looks for none (asked for in
https://github.com/EleutherAI/lm-evaluation-harness/issues/3282): somebody has to name ours to it before it
reads its arguments.
"""

import sys
from importlib.util import find_spec

NAME = "owl-compress"
"""What lm-eval calls our models."""

_PLACE = "owl_compress.pipeline.lm_eval_model:OwlCompressLM"


def offer() -> None:
    """Name our model to lm-eval, which imports it when it is asked for."""
    # lm-eval registers its own models when it finds no other: they have to be there first.
    import lm_eval.models  # noqa: F401, PLC0415 - an extra
    from lm_eval.api.registry import model_registry  # noqa: PLC0415

    if NAME not in model_registry:
        model_registry.register(NAME, target=_PLACE)


def main() -> None:
    """Run lm-eval as the command `lm_eval` does."""
    if find_spec("lm_eval") is None:
        print("owl-compress: lm-eval is not installed: pip install 'owl-compress[eval]'", file=sys.stderr)  # noqa: T201
        raise SystemExit(2)
    from lm_eval.__main__ import cli_evaluate  # noqa: PLC0415

    offer()
    cli_evaluate()


if __name__ == "__main__":
    main()
