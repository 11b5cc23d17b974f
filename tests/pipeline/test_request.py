"""A recipe becomes a request, or one line that says why not."""

from pathlib import Path
from typing import Any

import pytest
import torch

from owl_compress.backends.gptq import Gptq
from owl_compress.backends.structured import Structured
from owl_compress.documents.recipe import Recipe
from owl_compress.documents.units import Unit
from owl_compress.errors import RequestError
from owl_compress.pipeline.request import Request

WANDA = {"allocator": "owl", "backend": "wanda", "sparsity": 0.5}
GPTQ = {"allocator": "owl", "backend": "gptq", "bits": 3}
WIDTHS = {"allocator": "owl", "backend": "structured", "prune_ratio": 0.5}


def request_of(**options: Any) -> Request:
    return Request.of(Recipe.from_options({"model": "builtin", "device": "cpu"} | options), "recipe.yaml")


def test_everything_is_made_once_from_its_options() -> None:
    request = request_of(**GPTQ, metric="lod@10", lam=0.5, group_size=128, asymmetric=True, format="dense")
    assert request.allocator is not None
    assert request.allocator.name == "owl"
    assert request.allocator.lam == 0.5  # type: ignore[attr-defined]
    assert request.backend == Gptq(group_size=128, symmetric=False)
    assert request.target is not None
    assert (request.unit, request.target.value) == (Unit.BITS, 3)
    assert (request.keeps_codes, request.export, request.plan) == (False, None, None)
    assert request.device == torch.device("cpu")


def test_switches_words_and_text_mean_what_they_say() -> None:
    assert request_of(**GPTQ, no_group_order=True).backend == Gptq(group_order=False)
    assert request_of(**GPTQ, group_size="none").backend == Gptq(group_size=None)
    assert request_of(**GPTQ, group_size="32").backend == Gptq(group_size=32)
    assert request_of(**GPTQ, asymmetric=False).backend == Gptq()


def test_an_option_that_every_recipe_has_is_taken_from_there() -> None:
    random = request_of(**{**WANDA, "allocator": "random"}, seed=7)
    assert random.allocator.seed == 7  # type: ignore[union-attr]
    assert request_of(**WIDTHS, importance="random", seed=7).backend == Structured("random", seed=7)  # type: ignore[arg-type]


def test_a_form_brings_what_it_needs_unless_told_otherwise() -> None:
    decilm = {**WIDTHS, "export": "decilm", "parts": "mlp"}
    assert request_of(**decilm).backend == Structured(round_to=256)
    assert request_of(**decilm, round_to=512).backend == Structured(round_to=512)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({**WANDA, "sparsty": 1}, "recipe.yaml: unknown key 'sparsty': did you mean 'sparsity'?"),
        ({**WANDA, "seqlen": 1}, "did you mean 'seq-len'?"),
        ({**WANDA, "bogus": None}, "recipe.yaml: unknown key 'bogus'"),
        ({**WANDA, "options": {"sparsity": 0.9}}, "recipe.yaml: unknown key 'options'"),
        ({**WANDA, "scope": "rwo"}, "recipe.yaml: backend 'wanda': unknown scope 'rwo'"),
        ({**WANDA, "group_sise": 1}, "did you mean 'group-size'?"),
        ({**WANDA, "group_size": 64}, "backend 'wanda' takes no group-size; it takes: scope"),
        ({**WANDA, "allocator": "uniform", "lam": 0.1}, "allocator 'uniform' takes no lam; it takes no"),
        ({**GPTQ, "group_size": 0}, "backend 'gptq': group-size 0 must be at least 1"),
        ({**GPTQ, "damping": "much"}, "backend 'gptq': damping: has to be a number"),
        ({**GPTQ, "bit_choices": [1, 4]}, "bit choice 1 is outside 2..8"),
        ({**GPTQ, "bits": 5, "bit_choices": [2, 4]}, "an average of 5 bits is outside the choices"),
        ({**GPTQ, "format": "zip"}, "unknown format 'zip': known: dense, packed"),
        ({**WANDA, "format": "packed"}, "backend 'wanda' makes none"),
        ({**WIDTHS, "taylor_variant": "vector"}, "taylor-variant goes with importance taylor or auto"),
        ({**WIDTHS, "importance": "wanda", "gradient_samples": 4}, "gradient-samples goes with"),
        (
            {**WIDTHS, "importance": "taylor", "gradient_samples": 9, "samples": 8},
            "gradient-samples 9 is more than the 8 samples",
        ),
        ({**WIDTHS, "backend": "wanda"}, "use --backend 'structured'"),
        ({**WANDA, "backend": "wonda"}, "unknown backend 'wonda': did you mean 'wanda'?"),
        ({**WANDA, "allocator": "owls"}, "unknown allocator 'owls': did you mean 'owl'?"),
        ({**WANDA, "lam": 2}, "lam 2 is outside [0, 1]"),
        ({**WANDA, "metric": "load@5"}, "unknown metric 'load@5': did you mean 'lod@5'?"),
        ({**WANDA, "device": "tpu"}, "unknown device 'tpu'"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(RequestError) as caught:
        request_of(**options)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plan_stands_for_allocator_and_target(tmp_path: Path) -> None:
    recipe = Recipe.from_options({"model": "m", "backend": "wanda", "plan": str(tmp_path / "none.json")})
    with pytest.raises(RequestError, match="cannot read"):
        Request.of(recipe)
