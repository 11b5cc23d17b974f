"""The head of a model card: what the hub reads of it, in the words that the hub takes."""

import re
from typing import Any

import yaml

from owl_compress.documents.plan import Plan
from owl_compress.documents.provenance import Origin
from owl_compress.documents.result import Result
from owl_compress.documents.stored_format import StoredFormat
from owl_compress.documents.units import Unit

# The hub knows adapter, merge, quantized and finetune. A pruned model is none of them to the letter;
# "finetune" stands for whole weights that differ from the base model's, and is where the hub lists a
# model that states no relation. The tags say that the change is pruning.
_RELATION = {Unit.DENSITY: "finetune", Unit.WIDTH: "finetune", Unit.BITS: "quantized"}
_TAGS = {
    Unit.DENSITY: ("pruned", "sparse"),
    Unit.WIDTH: ("pruned", "structured-pruning"),
    Unit.BITS: ("quantized", "mixed-precision"),
}

OTHER = "other"
_NAMES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc
cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0
cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c
ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql
ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2
llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown other
"""
HUB_LICENSES = frozenset(_NAMES.split())
"""The licences that the hub takes by name (November 2026, https://hf.co/docs/hub/repositories-licenses).

It refuses a card with any other. One that it will have learnt since stands under `other`, with its name.
"""


def metadata(plan: Plan, result: Result, origin: Origin, stored: StoredFormat) -> str:
    """The YAML at the start of a card, between its two fences."""
    content = _license(origin)
    if origin.base_model:
        content |= {"base_model": origin.base_model, "base_model_relation": _RELATION[plan.unit]}
    if stored.library:
        content["library_name"] = stored.library
    content["pipeline_tag"] = "text-generation"
    tags = ["owl-compress", *_TAGS[plan.unit], result.backend.name, stored.tag]
    content["tags"] = list(dict.fromkeys(filter(None, tags)))
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---"


def _license(origin: Origin) -> dict[str, Any]:
    """Which licence it is: by the hub's name for it, or as another one with a name of its own."""
    if not origin.license:
        return {}
    known = origin.license.lower()
    if known in HUB_LICENSES - {OTHER}:
        return {"license": known}
    stated = origin.license_name if known == OTHER else origin.license
    name = re.sub(r"[^a-z0-9.]+", "-", (stated or "").lower()).strip("-")  # as the hub asks for it
    more = {"license_name": name, "license_link": origin.license_link}
    return {"license": OTHER, **{key: value for key, value in more.items() if value}}
