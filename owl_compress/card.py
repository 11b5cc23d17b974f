"""The model card: README.md of an output folder. States what was done and what was measured, nothing else."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from owl_compress.backend import StoredFormat
from owl_compress.explain import quiet_transformers
from owl_compress.loading import BUILTIN, BUILTIN_BASE_MODEL, BUILTIN_LICENSE, LoadedModel
from owl_compress.plan import KeptOfGrid, Plan, Unit
from owl_compress.result import LinearResult, Result

OWL_PAPER = "https://arxiv.org/abs/2310.05175"

# The hub knows adapter, merge, quantized and finetune. A pruned model is none of them to the letter;
# "finetune" stands for whole weights that differ from the base model's, and is where the hub lists a
# model that states no relation. The tags say that the change is pruning.
_RELATION = {Unit.DENSITY: "finetune", Unit.WIDTH: "finetune", Unit.BITS: "quantized"}
_TAGS = {
    Unit.DENSITY: ("pruned", "sparse"),
    Unit.WIDTH: ("pruned", "structured-pruning"),
    Unit.BITS: ("quantized", "mixed-precision"),
}

_LOAD = (
    "```python\n"
    "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
    'folder = "path/to/this/folder"\n'
    "model = AutoModelForCausalLM.from_pretrained(folder)\n"
    "tokenizer = AutoTokenizer.from_pretrained(folder)\n```"
)
DENSE = StoredFormat(
    tag="",
    description="They are stored dequantised, like any other weight: the files are no smaller than before, "
    "and the bits per weight above are those of the codes, scales and all other tensors",
    how_to_load=_LOAD,
)
PACKED = StoredFormat(
    tag="compressed-tensors",
    description="They are stored as packed integers, in the format `pack-quantized` of compressed-tensors",
    how_to_load=f"It takes `pip install transformers compressed-tensors`.\n\n{_LOAD}",
)


@dataclass(frozen=True)
class Origin:
    """Where a model descends from: its id on the hub and its licence, each None where not known."""

    base_model: str | None = None
    license: str | None = None


def origin_of(loaded: LoadedModel) -> Origin:
    """What can be said about the origin of `loaded`, from its own card or the hub's; never guessed.

    A local folder states its licence in its README.md; its base model is taken from there only if the folder
    is one of ours, since a foreign card names the parent of the model that is compressed here.
    """
    if loaded.source == BUILTIN:
        return Origin(BUILTIN_BASE_MODEL, BUILTIN_LICENSE)
    if loaded.hub_id:
        return Origin(loaded.hub_id, _text(_hub_card(loaded.hub_id, loaded.revision).get("license")))
    folder = Path(loaded.source).expanduser()
    card = _front_matter(folder / "README.md")
    ours = (folder / "result.json").is_file()
    return Origin(_text(card.get("base_model")) if ours else None, _text(card.get("license")))


def model_card(
    result: Result,
    plan: Plan,
    recipe_yaml: str | None = None,
    origin: Origin | None = None,
    *,
    is_packed: bool = False,
    stored: StoredFormat | None = None,
) -> str:
    """README.md for an output folder: the same result, plan and recipe give the same text.

    `is_packed` says that quantized weights are stored as integer codes; `stored`, that they are stored in a
    format of the backend's own.
    Durations and peak memory differ from run to run and stay in result.json.
    """
    origin = origin or Origin()
    stored = stored or (PACKED if is_packed else DENSE)
    sections = [
        _metadata(plan, result, origin, stored),
        f"# {_short(result.model.id)}, compressed with owl-compress",
        _what_was_done(result, plan),
        _totals(result, plan),
        *_quantization(result, plan, stored),
        *_evaluation(result),
        *_remarks(result),
        _how_to_load(plan, stored),
        _blocks(result, plan),
        *_recipe(recipe_yaml),
        _versions(result, plan),
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(plan: Plan, result: Result, origin: Origin, stored: StoredFormat) -> str:
    content: dict[str, Any] = {}
    if origin.license:
        content["license"] = origin.license
    if origin.base_model:
        content |= {"base_model": origin.base_model, "base_model_relation": _RELATION[plan.unit]}
    content |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    tags = ["owl-compress", *_TAGS[plan.unit], result.backend.name, stored.tag]
    content["tags"] = list(dict.fromkeys(filter(None, tags)))
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---"


def _what_was_done(result: Result, plan: Plan) -> str:
    identity = result.model
    revision = f" (revision `{identity.revision}`)" if identity.revision else ""
    text = (
        f"`{identity.id}`{revision}, family {identity.family}, in {identity.dtype}, with "
        f"{_target(plan)}. The allocator **{plan.allocator.name}** "
        f"({_parameters(plan.allocator.parameters)}) gave every block its budget, and the backend "
        f"**{result.backend.name}** ({_parameters(result.backend.parameters)}) carried it out, "
        f"with seed {result.seed}. "
    )
    if plan.skipped:
        text += f"Left as they were and not in the account: {len(plan.skipped)} linear(s). "
    calibration = result.calibration
    if calibration is None:
        return text + "No calibration text was used."
    return text + (
        f"Calibration: {calibration.sequences} sequences of {calibration.seq_len} tokens from "
        f"`{calibration.source}` (sampling {calibration.sampling}, seed {calibration.seed}, "
        f"BOS {calibration.bos}; sha256 of the token ids `{calibration.token_ids_sha256[:16]}…`)."
    )


def _target(plan: Plan) -> str:
    """The budget in words."""
    if isinstance(plan.grid, KeptOfGrid):
        m = plan.grid.kept_of
        return f"{plan.target * m:g} of every {m} weights of the compressed linears kept on average (N:{m})"
    if plan.unit is Unit.BITS:
        return f"{plan.target:g} bits per weight on average over the compressed linears"
    what = "weights" if plan.unit is Unit.DENSITY else "removable parameters (attention heads, FFN channels)"
    return f"{100 * (1 - plan.target):.4g} % of the {what} in its transformer blocks removed"


def _totals(result: Result, plan: Plan) -> str:
    totals = result.totals
    rows = [
        (f"{_quantity(plan)}, asked", f"{totals.asked:.6f}"),
        (f"{_quantity(plan)}, achieved (counted)", f"{totals.achieved:.6f}"),
        ("weights in the compressed linears", f"{totals.n_weights:,}"),
        ("parameters before", f"{totals.n_params_before:,}"),
        ("parameters after", f"{totals.n_params_after:,}"),
        ("bits per weight, whole model", f"{totals.bits_per_weight:.4f}"),
        ("weight files", f"{totals.bytes_on_disk:,} bytes"),
    ]
    text = "## Size\n\n" + _table(("", "value"), rows)
    if plan.unit is Unit.DENSITY:
        text += "\n\nThe zeros are stored like any other weight: they make the files no smaller."
    return text


def _quantization(result: Result, plan: Plan, stored: StoredFormat) -> list[str]:
    if plan.unit is not Unit.BITS:
        return []
    widths: dict[float, list[int]] = {}
    for row in result.budgets:
        widths.setdefault(row.achieved, []).append(row.n_weights)
    rows = [(f"{bits:g}", f"{len(sizes)}", f"{sum(sizes):,}") for bits, sizes in sorted(widths.items())]
    group_size = result.backend.parameters.get("group_size")
    groups = f"every {group_size} consecutive inputs" if group_size else "all inputs"
    zero_point = "" if result.backend.parameters.get("symmetric", True) else " and zero point"
    return [
        "## Quantization\n\n"
        + _table(("bits", "linears", "weights"), rows)
        + f"\n\nEach output has one scale{zero_point} for {groups}. {stored.description}. "
        "Embeddings, norms, biases and the output layer are as they were."
    ]


def _evaluation(result: Result) -> list[str]:
    if result.evaluation is None:
        return ["## Quality\n\nNot measured in this run: evaluate before use (`owl-compress eval`)."]
    dense, compressed = result.evaluation.dense, result.evaluation.compressed
    rows = [(name, f"{row.perplexity:.3f}") for name, row in (("before", dense), ("after", compressed))]
    return [
        "## Quality\n\n"
        + _table(("", "perplexity"), rows)
        + f"\n\nOn `{dense.data}`: {dense.windows} windows of {dense.seq_len} tokens, {dense.tokens:,} of "
        f"them predicted, BOS {dense.bos}, {dense.dtype}; both in one process. Nothing else was measured."
    ]


def _remarks(result: Result) -> list[str]:
    lines = [f"- {one.what}: {one.where} ({one.count}×)" for one in result.fallbacks]
    lines += [f"- {note}" for note in result.notes]
    return ["## Fallbacks and notes\n\n" + "\n".join(lines)] if lines else []


def _how_to_load(plan: Plan, stored: StoredFormat) -> str:
    text = f"## How to load\n\n{stored.how_to_load}"
    if plan.unit is Unit.DENSITY:
        text += "\n\nIt runs as a dense model; nothing here was measured to be faster."
    return text


def _blocks(result: Result, plan: Plan) -> str:
    achieved: dict[str, list[LinearResult]] = {}
    for linear in result.budgets:
        achieved.setdefault(linear.block, []).append(linear)
    removed = plan.unit is not Unit.BITS
    rows = []
    for block in plan.per_block:
        linears = achieved.get(block.name)
        got = f"{_mean(linears, 'achieved'):.4f}" if linears else "–"
        error = f"{_mean(linears, 'relative_error'):.4f}" if linears else "–"
        share = (f"{1 - block.value:.4f}",) if removed else ()
        rows.append((f"`{block.name}`", f"{block.n_weights:,}", *share, f"{block.value:.4f}", got, error))
    header = ("block", "weights", *(("sparsity",) if removed else ()), _quantity(plan), "achieved", "error")
    return (
        "## Budget of each block\n\n"
        + _table(header, rows)
        + f"\n\nMeans over the weights of a block. Error: {result.error_measure}. "
        "Every linear by itself is in `result.json`."
    )


def _recipe(recipe_yaml: str | None) -> list[str]:
    if recipe_yaml is None:
        return []
    return [
        f"## Recipe\n\n```yaml\n{recipe_yaml.strip()}\n```\n\n"
        "`owl-compress run recipe.yaml -o OUT` makes this checkpoint again, with the versions below and on "
        "the same machine."
    ]


def _versions(result: Result, plan: Plan) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in sorted(result.versions.items()))
    text = f"{versions}. Fingerprints: report `{result.report[:16]}…`, plan `{result.plan[:16]}…`."
    if plan.allocator.name.startswith("owl"):
        text += f"\nThe allocator follows [Outlier Weighed Layerwise Sparsity]({OWL_PAPER})."
    return f"## Versions\n\n{text}"


def _quantity(plan: Plan) -> str:
    return {Unit.DENSITY: "density", Unit.WIDTH: "width", Unit.BITS: "bits per weight"}[plan.unit]


def _mean(rows: Sequence[LinearResult], field: str) -> float:
    """Mean of a field of the linears, weighted by their number of weights."""
    return fsum(row.n_weights * getattr(row, field) for row in rows) / sum(row.n_weights for row in rows)


def _parameters(parameters: Mapping[str, Any]) -> str:
    shown = (f"{name} = {value}" for name, value in sorted(parameters.items()) if value not in (None, {}, []))
    return ", ".join(shown) or "no parameters"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = tuple(header)
    lines = [header, ("---", *("---:" for _ in header[1:])), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _short(model_id: str) -> str:
    return model_id.rstrip("/").rpartition("/")[2] or model_id


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _hub_card(hub_id: str, revision: str | None) -> dict[str, Any]:
    """Front matter of the hub's card, empty where it cannot be had: a card is no reason to fail."""
    try:
        with quiet_transformers():
            return _front_matter(Path(hf_hub_download(hub_id, "README.md", revision=revision)))
    except (OSError, HfHubHTTPError, HFValidationError):
        return {}


def _front_matter(path: Path) -> dict[str, Any]:
    """The YAML between the first two lines of three hyphens, empty where there is none."""
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text.split("\n---", 1)[0]) if text.startswith("---\n") else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}
