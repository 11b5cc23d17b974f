"""Saved tensors are counted against a pattern or a plan, and what breaks it is named with its place."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from owl_compress.allocators import Target, allocate
from owl_compress.backends.magnitude import Magnitude
from owl_compress.backends.rtn import Rtn
from owl_compress.checkpoints.saving import save_checkpoint
from owl_compress.checkpoints.stored_forms import form_named
from owl_compress.checkpoints.verification import verify
from owl_compress.compression.driver import compress_with_
from owl_compress.documents.measurements import Violation
from owl_compress.documents.plan import Plan
from owl_compress.errors import RequestError
from owl_compress.importance.estimator import measure, outline
from owl_compress.models.structure import find_structure

pytest.importorskip("compressed_tensors")

UP = "model.layers.1.mlp.up_proj"


@pytest.fixture
def planned(make_model: Callable[[str], Any], tmp_path: Path) -> Callable[..., tuple[Path, Plan]]:
    """A function that compresses a tiny model to a target, and stores it with its plan."""

    def store(target: Target, *, name: str = "llama", allocator: str = "random") -> tuple[Path, Plan]:
        model = make_model(name)
        plan = allocate(outline(model), allocator, target)
        compress_with_(model, plan, Magnitude(), None)
        (tmp_path / "OUT").mkdir()
        save_checkpoint(model, None, tmp_path / "OUT")
        plan.write(tmp_path / "OUT" / "plan.json")
        return tmp_path / "OUT", plan

    return store


def fill(folder: Path, rows: slice, columns: slice) -> None:
    """Put ones into a part of one saved tensor."""
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{UP}.weight"][rows, columns] = 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("name", ["narrow", "dense"])
def test_forms_of_plain_weights_are_verified_by_a_count_of_every_linear(
    saved: Callable[[str], Any], name: str
) -> None:
    there = saved(name)
    sites = list(find_structure(there.model).linears)
    found = form_named(name).verify(there.source, "1:1")
    assert found == verify(there.folder, "1:1")
    assert found.ok
    assert found.linears == len(sites)
    assert found.groups == sum(site.module.weight.numel() for site in sites)


@pytest.mark.parametrize("name", ["gptqmodel", "packed-narrow", "packed"])
def test_codes_have_no_zeros_to_count(saved: Callable[[str], Any], gptq_folder: Path, name: str) -> None:
    folder = gptq_folder if name == "gptqmodel" else saved(name).folder
    with pytest.raises(RequestError, match="holds packed codes and no zeros to count: verify them against"):
        verify(folder, "2:4")


def test_verify_refuses_what_is_for_other_software(saved: Callable[[str], Any]) -> None:
    with pytest.raises(RequestError, match="is a DeciLM checkpoint, which verify does not take apart"):
        verify(saved("decilm").folder, "2:4")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "target", [Target.from_sparsity(0.6), Target.from_nm("2:4")], ids=["sparsity", "2:4"]
)
def test_what_a_backend_made_of_a_plan_keeps_it(
    planned: Callable[..., tuple[Path, Plan]], target: Target, name: str
) -> None:
    folder, plan = planned(target, name=name)
    found = verify(folder)
    assert found.ok
    assert found.linears == len(plan.budgets)
    n_weights = sum(budget.n_weights for budget in plan.budgets)
    assert found.groups == (n_weights // plan.grid.kept_of if plan.grid else len(plan.budgets))


def test_a_group_that_keeps_too_much_is_named_with_its_place(
    planned: Callable[..., tuple[Path, Plan]],
) -> None:
    folder, _ = planned(Target.from_nm("2:4"), allocator="uniform")
    fill(folder, slice(5, 7), slice(8, 12))
    fill(folder, slice(63, 64), slice(28, 31))
    first = Violation(linear=UP, groups=64 * 8, violating=3, row=5, first_input=8, kept=4, allowed=2)
    found = verify(folder, "2:4")
    assert not found.ok
    assert found.violations == (first,)
    assert verify(folder, "4:4").ok
    assert (found.pattern, found.linears) == ("2:4", 21)


def test_without_a_grid_a_linear_is_one_group(planned: Callable[..., tuple[Path, Plan]]) -> None:
    folder, plan = planned(Target.from_sparsity(0.5))
    fill(folder, slice(None), slice(None))
    allowed = int(plan.value_of(UP) * 64 * 32)
    (violation,) = verify(folder).violations
    assert violation == Violation(
        linear=UP, groups=1, violating=1, row=0, first_input=0, kept=2048, allowed=allowed
    )


@pytest.mark.parametrize("pattern", ["2", "2:", "0:4", "5:4", "a:b", "2:4 ", "", "plans"])
def test_a_pattern_that_is_none_is_refused(saved: Callable[[str], Any], pattern: str) -> None:
    with pytest.raises(RequestError, match="is neither 'plan' nor N:M"):
        verify(saved("dense").folder, pattern)


def test_groups_that_do_not_divide_the_inputs_are_refused(saved: Callable[[str], Any]) -> None:
    with pytest.raises(RequestError, match="has 32 inputs, which groups of 5 do not divide"):
        verify(saved("dense").folder, "2:5")


def test_what_cannot_be_compared_is_refused_with_what_to_do(
    saved: Callable[[str], Any], planned: Callable[..., tuple[Path, Plan]], tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match="holds no checkpoint: verify takes a folder that compress or run"):
        verify(tmp_path)
    with pytest.raises(RequestError, match=r"has no plan\.json to verify against: name a pattern"):
        verify(saved("dense").folder)
    folder, plan = planned(Target.from_sparsity(0.5))
    content = plan.model_dump()
    renamed = content["budgets"][0] | {"name": "model.layers.9.up"}
    Plan.model_validate(content | {"budgets": [renamed, *content["budgets"][1:]]}).write(folder / "plan.json")
    with pytest.raises(RequestError, match=r"plan names linear 'model\.layers\.9\.up', which the model in"):
        verify(folder)
    allocate(outline(saved("dense").model), "uniform", Target.from_bits(4, (4,))).write(folder / "plan.json")
    with pytest.raises(RequestError, match=r"has no result\.json, which says how many inputs share a scale"):
        verify(folder)


def edited(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """The plan in `folder`, after a hand has been at it."""
    content = Plan.read(folder / "plan.json").model_dump()
    change(content)
    Plan.model_validate(content).write(folder / "plan.json")


def test_a_plan_that_leaves_linears_out_is_not_believed(planned: Callable[..., tuple[Path, Plan]]) -> None:
    folder, plan = planned(Target.from_sparsity(0.5), allocator="uniform")
    edited(folder, lambda content: content.update(budgets=content["budgets"][:1]))
    found = verify(folder)
    assert {one.linear for one in found.violations} == {budget.name for budget in plan.budgets[1:]}
    assert "has no budget in the plan" in found.violations[0].what


def test_what_the_plan_skips_is_said(planned: Callable[..., tuple[Path, Plan]]) -> None:
    folder, plan = planned(Target.from_sparsity(0.5, skips=(UP,)), allocator="uniform")
    found = verify(folder)
    assert found.ok
    assert (found.linears, found.skipped) == (20, 1)
    n_weights = sum(budget.n_weights for budget in plan.budgets)
    assert f"20 linears with {n_weights:,} weights counted" in found.summary
    assert "1 that the plan skips were not looked at" in found.summary


def test_sizes_are_those_of_the_tensors_and_not_of_the_plan(
    planned: Callable[..., tuple[Path, Plan]],
) -> None:
    folder, plan = planned(Target.from_sparsity(0.5), allocator="uniform")
    fill(folder, slice(None), slice(None))
    index = next(i for i, budget in enumerate(plan.budgets) if budget.name == UP)
    edited(folder, lambda content: content["budgets"][index].update(n_weights=10**6))
    (violation,) = verify(folder).violations
    assert (violation.linear, violation.kept, violation.allowed) == (UP, 2048, 10**6)
    assert violation.what == "has 2,048 weights, the plan says 1,000,000"


def compressed(model: Any, folder: Path, target: Target, backend: Any, **options: Any) -> Plan:
    """The folder that a run would write: weights, plan and result."""
    plan = allocate(outline(model), "uniform", target)
    result = compress_with_(model, plan, backend, None)
    folder.mkdir()
    save_checkpoint(model, None, folder, form_named(options["form"]))
    plan.write(folder / "plan.json")
    result.write(folder / "result.json")
    return plan


@pytest.mark.parametrize("form", ["packed", "dense"])
def test_bits_are_compared_with_the_plan(make_model: Callable[[str], Any], tmp_path: Path, form: str) -> None:
    folder = tmp_path / "OUT"
    target = Target.from_bits(3.5, (3, 4))
    plan = compressed(make_model("llama"), folder, target, Rtn(group_size=32), form=form)
    found = verify(folder)
    assert found.ok, found.violations
    assert found.linears == len(plan.budgets)
    index = next(i for i, budget in enumerate(plan.budgets) if budget.value == 4)
    edited(folder, lambda content: content["budgets"][index].update(value=3.0))
    (violation,) = verify(folder).violations
    assert violation.linear == plan.budgets[index].name
    assert violation.kept > violation.allowed


def test_widths_are_measured_on_the_tensors(saved: Callable[[str], Any], make_model: Any) -> None:
    folder, dense = saved("narrow").folder, make_model("llama")
    whole = allocate(outline(dense), "uniform", Target.from_prune_ratio(0))
    whole.write(folder / "plan.json")
    assert verify(folder).ok
    allocate(outline(dense), "uniform", Target.from_prune_ratio(0.95)).write(folder / "plan.json")
    (violation,) = verify(folder).violations
    assert "all linears of the plan keep" in violation.what


MAMBA = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 512, "state_size": 4, "time_step_rank": 32}


@pytest.fixture
def mamba() -> Any:
    """A model that reads the weights of some linears without calling them, and of some while it is built."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **MAMBA)).eval()


def test_linears_that_can_get_no_budget_are_no_violation(
    mamba: Any, make_windows: Callable[..., Any], tmp_path: Path
) -> None:
    plan = allocate(measure(mamba, make_windows()), "uniform", Target.from_sparsity(0.5))
    compress_with_(mamba, plan, Magnitude(), None)
    save_checkpoint(mamba, None, tmp_path)
    plan.write(tmp_path / "plan.json")
    found = verify(tmp_path)
    assert found.ok
    assert found.skipped == 2  # dt_proj of each block
    edited(tmp_path, lambda content: content.pop("coverage"))
    assert [one.linear for one in verify(tmp_path).violations] == [
        f"backbone.layers.{block}.mixer.dt_proj" for block in range(2)
    ]


def test_linears_that_are_stored_as_weights_among_codes_are_counted_by_their_values(
    mamba: Any, tmp_path: Path
) -> None:
    plan = allocate(outline(mamba), "uniform", Target.from_bits(4, (4,)))
    result = compress_with_(mamba, plan, Rtn(32), None)
    save_checkpoint(mamba, None, tmp_path, form_named("packed"))
    plan.write(tmp_path / "plan.json")
    result.write(tmp_path / "result.json")
    assert verify(tmp_path).ok
    weights = load_file(tmp_path / "model.safetensors")
    weights["backbone.layers.1.mixer.out_proj.weight"] += 0.01 * torch.rand(32, 64)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert [one.what for one in verify(tmp_path).violations] == ["holds more values than its bits"]


@pytest.mark.parametrize("groups", [None, [1], {"group_0": "x"}, 0, 64, "x"], ids=str)
def test_codes_of_no_stated_width_are_refused(
    make_model: Callable[[str], Any], tmp_path: Path, groups: Any
) -> None:
    folder = tmp_path / "OUT"
    compressed(make_model("llama"), folder, Target.from_bits(4, (4,)), Rtn(group_size=32), form="packed")
    config = json.loads((folder / "config.json").read_text())
    if isinstance(groups, int | str):
        config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] = groups
    else:
        config["quantization_config"]["config_groups"] = groups
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError, match=r"config\.json does not say how many bits .* fetch it again"):
        verify(folder)
