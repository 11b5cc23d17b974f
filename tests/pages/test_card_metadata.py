"""The head of a card: licences and parents that the hub takes, whatever the compressed model says."""

import re
from typing import Any

import pytest
import yaml

from owl_compress.checkpoints.stored_forms import form_named
from owl_compress.documents.provenance import Origin
from owl_compress.documents.stored_format import LM_EVAL, LOAD, VLLM, StoredFormat, running_code
from owl_compress.pages.card_metadata import HUB_LICENSES, _license


@pytest.mark.parametrize(
    ("origin", "stated"),
    [
        ({}, {}),
        ({"license": "llama3.2"}, {"license": "llama3.2"}),
        ({"license": "Apache-2.0", "license_link": "https://x.org"}, {"license": "apache-2.0"}),
        ({"license": "unknown"}, {"license": "unknown"}),
        ({"license": "other"}, {"license": "other"}),
        (
            {"license": "other", "license_name": "Owl Licence 1.0", "license_link": "https://x.org/L"},
            {"license": "other", "license_name": "owl-licence-1.0", "license_link": "https://x.org/L"},
        ),
        ({"license": "Proprietary (ask us)"}, {"license": "other", "license_name": "proprietary-ask-us"}),
        ({"license": "許可"}, {"license": "other"}),
        ({"license": "other", "license_name": "---"}, {"license": "other"}),
    ],
)
def test_a_licence_that_the_hub_has_no_name_for_keeps_its_own(
    origin: dict[str, str], stated: dict[str, Any]
) -> None:
    found = _license(Origin(**origin))
    assert found == stated
    assert found.get("license", "other") in HUB_LICENSES
    assert re.fullmatch(r"[a-z0-9.-]*", found.get("license_name", ""))
    assert yaml.safe_load(yaml.safe_dump(found)) == found


def test_consent_is_given_where_a_snippet_loads_the_model() -> None:
    assert 'LLM("path/to/this/folder", trust_remote_code=True)' in running_code(VLLM)
    assert "pretrained=path/to/this/folder,trust_remote_code=True " in running_code(LM_EVAL)
    trusting = running_code(LOAD)
    assert trusting.count("trust_remote_code=True") == 1
    assert "AutoTokenizer.from_pretrained(folder)\n" in trusting
    with pytest.raises(ValueError, match="no call to consent to in 'print'"):
        running_code("print")


def test_a_form_of_another_package_need_not_speak_of_others() -> None:
    theirs = StoredFormat("rows", "They are rows", "Nothing loads it.")
    assert (theirs.vllm, theirs.lm_eval, theirs.library) == (None, None, "transformers")


@pytest.mark.parametrize("name", ["dense", "packed", "narrow", "packed-narrow", "decilm", "gptqmodel"])
def test_every_form_of_ours_says_of_each_who_takes_it(name: str) -> None:
    described = form_named(name).describe()
    assert described.vllm
    assert described.lm_eval
    assert ("```" in described.vllm) == ("narrow" not in name)
    assert described.library == {"decilm": None, "gptqmodel": "gptqmodel"}.get(name, "transformers")
