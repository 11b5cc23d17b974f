"""Every tool that plans are written for: what is written says what the plan says."""

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pytest
import yaml

from owl_compress.documents.plan import AllocatorRecord, LinearBudget, Plan
from owl_compress.documents.provenance import CalibrationRecord, ModelIdentity, Provenance
from owl_compress.documents.report import BlockReport, ImportanceReport, LinearReport
from owl_compress.documents.units import BitsGrid, KeptOfGrid, Unit
from owl_compress.errors import RequestError
from owl_compress.exports import EXPORTERS, IMPORTERS, export, plan_from

SHAPES = {
    "self_attn.q_proj": (8, 8), "self_attn.k_proj": (4, 8), "self_attn.v_proj": (4, 8),
    "self_attn.o_proj": (8, 8), "mlp.gate_proj": (16, 8), "mlp.up_proj": (16, 8), "mlp.down_proj": (8, 16),
}  # fmt: skip
N_BLOCKS = 12


def size(name: str) -> int:
    rows, columns = SHAPES[".".join(name.split(".")[3:])]
    return rows * columns


NAMES = tuple(f"model.layers.{block}.{name}" for block in range(N_BLOCKS) for name in SHAPES)
SIZES = {name: size(name) for name in NAMES}


def plan_of(unit: Unit, values: Mapping[str, float], grid: Any = None) -> Plan:
    """A plan that gives linears these values and leaves the others alone."""
    budgets = tuple(
        LinearBudget(
            name=name, block=".".join(name.split(".")[:3]), n_weights=SIZES[name], value=values[name]
        )
        for name in NAMES
        if name in values
    )
    mean = sum(b.n_weights * b.value for b in budgets) / sum(b.n_weights for b in budgets)
    low, high = (min(values.values()), max(values.values())) if unit is Unit.BITS else (0.0, 1.0)
    return Plan(
        unit=unit, target=mean, grid=grid, low=low, high=high, allocator=AllocatorRecord(name="any"),
        skipped=tuple(name for name in NAMES if name not in values), budgets=budgets,
    )  # fmt: skip


def by_block(value: Callable[[int], float], skipped: tuple[str, ...] = ()) -> dict[str, float]:
    return {name: value(int(name.split(".")[2])) for name in NAMES if name not in skipped}


SKIPPED = ("model.layers.1.self_attn.q_proj", "model.layers.11.mlp.down_proj")
PLANS: dict[str, Plan] = {
    "density": plan_of(Unit.DENSITY, by_block(lambda block: 0.3 + block / 40)),
    "density, some skipped": plan_of(Unit.DENSITY, by_block(lambda block: 0.3 + block / 40, SKIPPED)),
    "density by linear": plan_of(
        Unit.DENSITY, {name: 0.25 + place / 200 for place, name in enumerate(NAMES)}
    ),
    "N:M": plan_of(Unit.DENSITY, by_block(lambda block: (2 + block % 7) / 8), KeptOfGrid(kept_of=8)),
    "width": plan_of(Unit.WIDTH, by_block(lambda block: (4 + block % 5) / 8)),
    "bits": plan_of(Unit.BITS, by_block(lambda block: 2.0 + block % 3), BitsGrid(bits=(2, 3, 4))),
    "bits, some skipped": plan_of(
        Unit.BITS, by_block(lambda block: 2.0 + block % 3, SKIPPED), BitsGrid(bits=(2, 3, 4))
    ),
    "bits by role": plan_of(
        Unit.BITS,
        {name: 2.0 if "o_proj" in name else 4.0 if "down" in name else 3.0 for name in NAMES},
        BitsGrid(bits=(2, 3, 4)),
    ),
}


@pytest.fixture(params=PLANS)
def plan(request: pytest.FixtureRequest) -> Plan:
    """One of all kinds."""
    return PLANS[request.param]


@pytest.fixture
def report() -> ImportanceReport:
    """The report of the model."""
    text = CalibrationRecord(
        source="text.txt", sampling="first", sequences=4, seq_len=32, seed=0, bos="first",
        token_ids_sha256="0" * 64,
    )  # fmt: skip
    blocks = tuple(
        BlockReport(
            name=f"model.layers.{block}",
            n_weights=sum(size(f"model.layers.{block}.{name}") for name in SHAPES),
            metrics={"lod@5": 0.1},
            linears=tuple(
                LinearReport(
                    name=f"model.layers.{block}.{name}",
                    role="mlp.up",
                    shape=shape,
                    n_weights=shape[0] * shape[1],
                    metrics={"lod@5": 0.1},
                )
                for name, shape in SHAPES.items()
            ),
        )
        for block in range(N_BLOCKS)
    )
    return ImportanceReport(
        model=ModelIdentity(id="model", revision=None, family="llama", dtype="float32"), blocks=blocks,
        provenance=Provenance(calibration=text, versions={}),
    )  # fmt: skip


BITS = PLANS["bits, some skipped"]


@pytest.mark.parametrize("name", EXPORTERS.names())
class TestEveryTool:
    def test_what_is_written_reads_as_the_plan(self, name: str, plan: Plan) -> None:
        tool = EXPORTERS.create(name)
        if plan.unit not in tool.units:
            with pytest.raises(RequestError, match=f"{name} knows no budgets in {plan.unit}.* take these"):
                export(plan, tool)
            return
        found = tool.read(export(plan, tool).text, SIZES)
        assert found.unit is plan.unit
        expected = {budget.name: budget.value for budget in plan.budgets}
        if plan.grid is not None and not isinstance(plan.grid, BitsGrid):
            dense = {linear for linear, value in expected.items() if value == 1}
            assert dense.isdisjoint(found.values) or found.kept_of == plan.grid.kept_of
            expected = {linear: expected[linear] for linear in found.values}
        assert found.values == pytest.approx(expected, abs=1e-9)
        assert set(plan.skipped) <= {*found.skipped, *(set(SIZES) - set(found.values))}

    @pytest.mark.parametrize(
        "text", ["", "[]", "{}", "\x00", "a: [", '{"bits": "four"}', "linear,unit\nx,bits\n"]
    )
    def test_other_files_are_refused(self, name: str, text: str) -> None:
        tool = EXPORTERS.create(name)
        found = None
        with suppress(RequestError):
            found = tool.read(text, SIZES)
        assert found is None or not found.values

    def test_a_summary_and_options_are_told(self, name: str) -> None:
        assert EXPORTERS.load(name).__doc__
        EXPORTERS.options(name)


RETURNING = [
    pytest.param(name, plan, id=f"{name}, {kind}")
    for name in IMPORTERS.names()
    if name in EXPORTERS.names()
    for kind, plan in PLANS.items()
    if plan.unit in EXPORTERS.load(name).units
]


@pytest.mark.parametrize(("name", "plan"), RETURNING)
def test_a_plan_comes_back(name: str, plan: Plan, report: ImportanceReport) -> None:
    tool = EXPORTERS.create(name)
    back = plan_from(export(plan, tool).text, IMPORTERS.create(name), report)
    dense = {b.name for b in plan.budgets if b.value == 1} if name == "llm-compressor" else set()
    assert [(b.name, pytest.approx(b.value)) for b in plan.budgets if b.name not in dense] == [
        (b.name, b.value) for b in back.budgets if b.name not in dense
    ]
    assert back.allocator.name == "imported"
    assert back.report == report.fingerprint
    assert Plan.model_validate(back.model_dump(mode="json")) == back


class TestLlmCompressor:
    def test_targets_match_as_the_tool_matches(self) -> None:
        ct = pytest.importorskip("compressed_tensors.utils")
        nn = pytest.importorskip("torch").nn
        model = nn.Module()
        for name in NAMES:
            parent = model
            for part in name.split(".")[:-1]:
                if not hasattr(parent, part):
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module(name.rpartition(".")[2], nn.Linear(8, 8, bias=False))
        recipe = _recipe(PLANS["density"])["SparseGPTModifier"]
        matched = [name for name, _ in ct.match_named_modules(model, recipe["targets"])]
        assert matched == [f"model.layers.{block}" for block in range(12)]
        assert recipe["sparsity"] == pytest.approx([0.7 - block / 40 for block in range(12)])
        recipe = _recipe(PLANS["density by linear"])["SparseGPTModifier"]
        assert [name for name, _ in ct.match_named_modules(model, recipe["targets"])] == list(NAMES)

    def test_masks_say_what_is_removed(self) -> None:
        stages = yaml.safe_load(export(PLANS["N:M"], EXPORTERS.create("llm-compressor")).text).values()
        masks = {one["sparsegpt_modifiers"]["SparseGPTModifier"]["mask_structure"] for one in stages}
        assert masks == {"6:8", "5:8", "4:8", "3:8", "2:8", "1:8"}

    def test_modifiers_are_of_the_unit(self) -> None:
        assert "WandaPruningModifier" in _recipe(PLANS["density"], modifier="wanda")
        groups = _recipe(BITS, modifier="rtn", group_size=32)["QuantizationModifier"]["config_groups"]
        assert [group["weights"]["num_bits"] for group in groups.values()] == [2, 3, 4]
        assert {group["weights"]["group_size"] for group in groups.values()} == {32}
        with pytest.raises(
            RequestError, match="'gptq' does not carry out budgets in density: use wanda or spar"
        ):
            _recipe(PLANS["density"], modifier="gptq")

    def test_recipes_of_its_users_are_read(self, report: ImportanceReport) -> None:
        text = """
pruning_stage:
  pruning_modifiers:
    SparseGPTModifier:
      sparsity: 0.5
      mask_structure: "2:4"
      targets: ["re:model\\\\.layers\\\\.\\\\d+$"]
      ignore: ["re:.*lm_head", "re:.*q_proj"]
"""
        plan = plan_from(text, IMPORTERS.create("llm-compressor"), report)
        assert plan.grid is not None
        assert plan.grid.values() == (0, 0.25, 0.5, 0.75, 1)
        assert len(plan.skipped) == 12
        assert {one.value for one in plan.budgets} == {0.5}

    @pytest.mark.parametrize("scheme", ["W4A16, targets: Linear", "W4A16_ASYM", "{W4A16: [Linear]}"])
    def test_schemes_are_known_by_their_names(self, scheme: str) -> None:
        text = f"a_stage: {{b_modifiers: {{GPTQModifier: {{scheme: {scheme}, ignore: ['re:.*q_proj']}}}}}}"
        found = IMPORTERS.create("llm-compressor").read(text, SIZES)
        assert set(found.values.values()) == {4}
        assert len(found.skipped) == 12

    @pytest.mark.parametrize("targets", ["targets: Linear, ", "targets: [Linear], ", ""])
    def test_all_linears_are_meant_by_their_class(self, targets: str) -> None:
        text = f"a_stage: {{b_modifiers: {{SparseGPTModifier: {{{targets}sparsity: 0.6}}}}}}"
        found = IMPORTERS.create("llm-compressor").read(text, SIZES)
        assert found.values == pytest.approx(dict.fromkeys(NAMES, 0.4))

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            (
                "a_stage: {b_modifiers: {SparseGPTModifier: {targets: Linear, sparsity: [0.5]}}}",
                "1 sparsities for 84 targets",
            ),
            (
                "a_stage: {b_modifiers: {SparseGPTModifier: {targets: ['re:['], sparsity: 0.5}}}",
                "no regular expression",
            ),
            (
                "a_stage: {b_modifiers: {SparseGPTModifier: {targets: [model.layers.0], sparsity: x}}}",
                "'x', not a number",
            ),
            (
                "a_stage: {b_modifiers: {WandaPruningModifier: "
                "{targets: [model.layers.0], mask_structure: '5:4'}}}",
                "mask_structure '5:4' is no N:M",
            ),
            (
                "a_stage: {b_modifiers: {WandaPruningModifier: {targets: LlamaDecoderLayer, sparsity: .5}}}",
                "0 targets in this model, which are found by name or pattern",
            ),
            (
                "a_stage: {b_modifiers: {GPTQModifier: {scheme: W8A8}}}",
                "scheme 'W8A8' of GPTQModifier quantizes more than weights",
            ),
            (
                "a_stage: {b_modifiers: {GPTQModifier: {targets: Linear}}}",
                "GPTQModifier has no 'config_groups'",
            ),
            ("a_stage: {b_modifiers: {}}", "it has no modifier that prunes or quantizes weights"),
            ("{1: 2, null: {b_modifiers: {GPTQModifier: {}}}}", "it has no modifier that prunes"),
            ("a_stage: {b_modifiers: {WandaPruningModifier: {mask_structure: '²:4'}}}", "'²:4' is no N:M"),
            (
                "a_stage: {b_modifiers: {GPTQModifier: {config_groups: {g: "
                "{targets: [Linear], weights: {num_bits: 8}, input_activations: {num_bits: 8}}}}}}",
                "g quantizes more than weights (input_activations)",
            ),
            (
                "a_stage: {b_modifiers: {GPTQModifier: {config_groups: {g: "
                "{targets: [Linear], weights: {num_bits: 8, type: float}}}}}}",
                "weights of g have type 'float'",
            ),
        ],
    )
    def test_recipes_that_no_plan_can_say_are_refused(self, text: str, reason: str) -> None:
        with pytest.raises(RequestError, match=re.escape(reason)):
            IMPORTERS.create("llm-compressor").read(text, SIZES)


def _recipe(plan: Plan, **options: Any) -> dict[str, Any]:
    content = yaml.safe_load(export(plan, EXPORTERS.create("llm-compressor", options)).text)
    ((name, stage),) = content.items()
    ((key, found),) = stage.items()
    assert name.endswith("_stage")  # the tool passes all others over
    assert key.endswith("_modifiers")
    return dict(found)


class TestBits:
    def test_gptqmodel_leaves_skipped_linears_out_and_names_fused_ones(self) -> None:
        config = json.loads(export(BITS, EXPORTERS.create("gptqmodel", {"group_size": "none"})).text)
        assert config["group_size"] == -1
        assert config["bits"] == 4
        assert config["dynamic"][f"-:^{re.escape(SKIPPED[0])}$"] == {}
        assert config["dynamic"][r"^model\.layers\.2\.self_attn\.qkv_proj$"] == {"bits": 4}
        assert r"^model\.layers\.1\.self_attn\.qkv_proj$" not in config["dynamic"]

    def test_gptqmodel_takes_the_first_rule_that_matches(self) -> None:
        text = json.dumps({"bits": 4, "dynamic": {r".*\.1\..*": {"bits": 8}, "-:.*down": {}, ".*": {}}})
        found = IMPORTERS.create("gptqmodel").read(text, SIZES)
        assert found.values["model.layers.1.mlp.down_proj"] == 8
        assert "model.layers.2.mlp.down_proj" in found.skipped
        assert found.values["model.layers.2.mlp.up_proj"] == 4

    @pytest.mark.parametrize("pattern", ["(", "a{99999999999}", "(" * 3000 + ")" * 3000])
    def test_a_pattern_that_cannot_be_meant_is_refused(self, pattern: str) -> None:
        text = json.dumps({"bits": 4, "dynamic": {pattern: {"bits": 8}}})
        with pytest.raises(RequestError, match="is no regular expression") as refused:
            IMPORTERS.create("gptqmodel").read(text, SIZES)
        assert len(str(refused.value)) < 400

    @pytest.mark.parametrize(
        ("name", "bits", "reason"),
        [
            ("gptqmodel", 5.0, "has 5 bits, and GPTQModel takes 2, 3, 4, 8 bits: 4 is the nearest"),
            ("auto-round", 7.0, "AutoRound takes 2, 3, 4, 8 bits: 8 is the nearest"),
            ("mlx", 7.0, "MLX takes 2, 3, 4, 5, 6, 8 bits: 6 is the nearest"),
        ],
    )
    def test_widths_without_kernels_are_refused(self, name: str, bits: float, reason: str) -> None:
        plan = plan_of(Unit.BITS, by_block(lambda _: bits))
        with pytest.raises(RequestError, match=re.escape(reason)):
            export(plan, EXPORTERS.create(name))

    @pytest.mark.parametrize("name", ["gptqmodel", "auto-round", "llm-compressor", "modelopt"])
    def test_linears_that_are_served_as_one_have_one_width(self, name: str) -> None:
        values = {linear: 4.0 if "k_proj" in linear else 3.0 for linear in NAMES}
        with pytest.raises(
            RequestError, match=r"q_proj has 3 bits and .*k_proj 4.*allocate without --no-tie"
        ):
            export(plan_of(Unit.BITS, values), EXPORTERS.create(name))

    def test_gguf_states_the_types_and_what_they_take(self) -> None:
        written = export(PLANS["bits"], EXPORTERS.create("gguf-tensor-types"))
        assert written.text.splitlines()[0] == r"^blk\.0\.attn_q\.weight$=q2_k"
        (note,) = written.notes
        assert "2 bits as q2_k (2.625), 3 bits as q3_k (3.4375), 4 bits as q4_k (4.5)" in note
        mean = (2.625 + 3.4375 + 4.5) / 3
        assert f"{mean:.3f} bits a weight" in note

    def test_seven_bits_are_never_more_than_the_plan(self) -> None:
        plan = plan_of(Unit.BITS, by_block(lambda _: 7.0))
        written = export(plan, EXPORTERS.create("gguf-tensor-types"))
        assert "84 linears get less than in the plan" in written.notes

    @pytest.mark.parametrize(
        ("architecture", "names"),
        [
            (
                "LLAMA",
                ["self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"],
            ),
            ("PHI3", ["self_attn.qkv_proj", "mlp.gate_up_proj"]),
            ("GPT2", ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]),
            ("GPTNEOX", ["attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h"]),
            ("BLOOM", ["self_attention.query_key_value", "self_attention.dense", "mlp.dense_4h_to_h"]),
        ],
    )
    def test_names_are_those_of_gguf(self, architecture: str, names: list[str]) -> None:
        gguf = pytest.importorskip("gguf")
        from owl_compress.exports.gguf_tensor_types import tensor_name

        prefix = {"GPT2": "transformer.h.3", "GPTNEOX": "gpt_neox.layers.3", "BLOOM": "transformer.h.3"}
        known = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture], 8)
        for name in names:
            linear = f"{prefix.get(architecture, 'model.layers.3')}.{name}"
            assert tensor_name(linear) == known.get_name(f"{linear}.weight", try_suffixes=(".weight",))

    def test_a_linear_without_a_name_in_gguf_is_refused(self) -> None:
        from owl_compress.exports.gguf_tensor_types import tensor_name

        with pytest.raises(RequestError, match="mixer has no name in GGUF"):
            tensor_name("model.layers.0.mixer")

    def test_modelopt_writes_keys_that_are_numbers(self) -> None:
        content = yaml.safe_load(export(BITS, EXPORTERS.create("modelopt")).text)
        assert content["quant_cfg"][0] == {"quantizer_name": "*", "enable": False}
        assert content["quant_cfg"][1]["cfg"] == {"num_bits": 2, "block_sizes": {-1: 64}}

    def test_mlx_reads_what_lies_in_config_json(self) -> None:
        table = json.loads(export(BITS, EXPORTERS.create("mlx")).text)
        assert table[SKIPPED[0]] is False
        found = EXPORTERS.create("mlx").read(json.dumps({"quantization": table}), SIZES)
        assert found.values == {budget.name: budget.value for budget in BITS.budgets}


def test_torch_pruning_names_only_what_loses_outputs() -> None:
    ratios = json.loads(export(PLANS["width"], EXPORTERS.create("torch-pruning")).text)
    assert "model.layers.0.mlp.down_proj" not in ratios
    assert ratios["model.layers.0.mlp.up_proj"] == 0.5


class TestEvoPress:
    def test_levels_are_bits(self, report: ImportanceReport) -> None:
        text = "\n".join(f"{name}: {2 + place % 3}" for place, name in enumerate(NAMES))
        plan = plan_from(text, IMPORTERS.create("evopress"), report)
        assert plan.unit is Unit.BITS
        assert [one.value for one in plan.budgets[:4]] == [2, 3, 4, 2]

    def test_levels_are_steps_of_weights(self, report: ImportanceReport) -> None:
        options = {"level_sparsity": 0.5, "weights_diff": 8}
        text = f"{NAMES[0]}: 2\n{NAMES[1]}: -1\n"
        plan = plan_from(text, IMPORTERS.create("evopress", options), report)
        assert [one.value for one in plan.budgets] == [0.5 - 16 / 64, 0.5 + 8 / 32]
        assert plan.allocator.parameters == {"tool": "evopress", **options}

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("model.layers.0", "line 1 is not 'linear: level'"),
            ("model.layers.0: many", "line 1 is not 'linear: level'"),
            (f"{NAMES[0]}: 2\n{NAMES[0]}: 3", "a second time"),
            ("model.layers.0.mlp.up_prj: 3", "has no such linear: did you mean 'model.layers.0.mlp.up_proj'"),
            (f"{NAMES[0]}: 99", "99 bits"),
            (f"{NAMES[0]}: ²", "line 1 is not 'linear: level'"),
            (f"{NAMES[0]}: {'9' * 5000}", "line 1 is not 'linear: level'"),
        ],
    )
    def test_other_lines_are_refused(self, text: str, reason: str, report: ImportanceReport) -> None:
        with pytest.raises(RequestError, match=re.escape(reason)):
            plan_from(text, IMPORTERS.create("evopress"), report)

    def test_half_of_the_options_is_refused(self) -> None:
        with pytest.raises(RequestError, match="go together"):
            IMPORTERS.create("evopress", {"weights_diff": 8})


class TestCsv:
    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("linear,value\nx,1\n", "column 'unit' is missing"),
            ("linear,unit,value\n", "it has no line of a linear"),
            ("linear,unit,value\nx,bit,3\n", "line 2: unknown unit 'bit': did you mean 'bits'"),
            ("linear,unit,value\nx,bits,much\n", "line 2: 'much' is no number"),
            ("linear,unit,value\nx,bits,nan\n", "line 2: 'nan' is no number"),
            ("linear,unit,value\nx,bits,3\nx,bits,3\n", "line 3 names x a second time"),
            ("linear,unit,value\nx,bits,3\ny,density,.5\n", "lines differ in unit"),
            ("linear,unit,value\nx,density,0,5\n", "line 2 has 4 fields, and the header 3"),
            ("linear,unit,value\nx,density,.5\ny,density\n", "line 3 has 2 fields, and the header 3"),
            ("linear,linear,unit,value\nx,y,bits,3\n", "column 'linear' is there twice"),
            ("linear,unit,value,kept_of\nx,density,.5,0\n", "kept_of '0' is no whole number above 0"),
            ("linear,unit,value,kept_of\nx,density,.5,8.5\n", "kept_of '8.5' is no whole number"),
        ],
    )
    def test_lines_that_cannot_be_meant_are_refused(self, text: str, reason: str) -> None:
        with pytest.raises(RequestError, match=re.escape(reason)):
            IMPORTERS.create("csv").read(text, SIZES)

    @pytest.mark.parametrize(("value", "of", "kept"), [("0.333", 3, 1 / 3), ("0.625", 8, 0.625)])
    def test_shares_are_rounded_as_decimals_were(
        self, value: str, of: int, kept: float, report: ImportanceReport
    ) -> None:
        text = f"linear,unit,value,kept_of\n{NAMES[0]},density,{value},{of}\n"
        assert [one.value for one in plan_from(text, IMPORTERS.create("csv"), report).budgets] == [kept]

    def test_a_density_that_is_no_share_is_refused(self, report: ImportanceReport) -> None:
        text = f"linear,unit,value,kept_of\n{NAMES[0]},density,0.3,8\n"
        with pytest.raises(RequestError, match=r"0\.3, which is no N of 8: the nearest is 2 of 8"):
            plan_from(text, IMPORTERS.create("csv"), report)

    def test_a_value_that_no_plan_can_have_is_refused(self, report: ImportanceReport) -> None:
        text = f"linear,unit,value\n{NAMES[0]},density,1.5\n"
        with pytest.raises(RequestError, match="outside"):
            plan_from(text, IMPORTERS.create("csv"), report)
