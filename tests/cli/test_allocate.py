"""`allocate` from a sensitivity profile: no model, no torch, and a plan that compress takes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from owl_compress.documents.plan import Plan
from owl_compress.documents.sensitivity import SensitivityProfile

SPARSITY = ("--sparsity", "0.5")


def test_a_profile_becomes_a_plan_that_compress_takes(
    done: Callable[..., Any], profile: Path, here: Path
) -> None:
    told = done("allocate", profile, *SPARSITY, "-o", "plan.json")
    plan = Plan.read(here / "plan.json")
    assert plan.allocator.name == "sensitivity"
    assert plan.report == SensitivityProfile.read(profile).fingerprint
    assert plan.achieved == pytest.approx(0.5, abs=1e-15)
    damage = plan.allocator.parameters["predicted_damage"]
    assert f"predicted damage (kl, the sum over all parts): {damage:.4g}" in " ".join(told.out.split())
    result = done("compress", "model", "--plan", "plan.json", "--backend", "magnitude", "-o", "OUT", "--json")
    assert result.json["report"] == plan.report


def test_a_profile_is_divided_without_torch(profile: Path, here: Path) -> None:
    code = (
        "import sys\n"
        "from owl_compress.cli import main\n"
        f"sys.argv = ['owl-compress', 'allocate', {str(profile)!r}, '--sparsity', '.5', '-o', 'plan.json']\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=here, check=True)
    assert Plan.read(here / "plan.json").achieved == pytest.approx(0.5)


def test_what_reads_metrics_refuses_a_profile(
    refused: Callable[..., str], profile: Path, report: Path
) -> None:
    message = refused("allocate", profile, "--allocator", "owl", *SPARSITY, "-o", "plan.json")
    assert "allocator 'owl' reads the metrics of a report, and this is a sensitivity profile" in message
    message = refused("allocate", report, "--allocator", "sensitivity", *SPARSITY, "-o", "plan.json")
    assert "reads the damages of a sensitivity profile, and this is a report" in message


def test_a_target_beyond_the_levels_is_one_line(refused: Callable[..., str], profile: Path) -> None:
    message = refused("allocate", profile, "--sparsity", "0.9", "-o", "plan.json")
    assert "measure levels of 0.1 or less too" in message


def test_a_broken_profile_is_one_line(refused: Callable[..., str], profile: Path) -> None:
    content = json.loads(profile.read_text())
    content["parts"][0]["damage"] = [1.0]
    profile.write_text(json.dumps(content))
    assert "has 3 levels and 1 damages" in refused("allocate", profile, *SPARSITY, "-o", "plan.json")
    profile.write_text(json.dumps(content | {"schema": "owl-compress/sensitivity/2"}))
    assert "upgrade owl-compress" in refused("allocate", profile, *SPARSITY, "-o", "plan.json")
