"""The walk is compared with the model's own forward pass before any work, and leaves no trace of it."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from owl_compress.allocators import Target, allocate
from owl_compress.backends.magnitude import Magnitude
from owl_compress.backends.wanda import Wanda
from owl_compress.compression.driver import compress_with_
from owl_compress.data.windows import TokenWindows
from owl_compress.errors import RequestError
from owl_compress.importance.estimator import measure, outline
from owl_compress.models.structure import find_structure
from owl_compress.walk.agreement import settled_structure
from owl_compress.walk.blocks import BlockWalk

Make = Callable[..., TokenWindows]


class Decoder(nn.Module):
    """A decoder of three plain blocks, which `passes` runs in some way of its own."""

    def __init__(self, passes: Callable[[nn.ModuleList, Tensor], Tensor], block: type[nn.Module]) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="odd", use_cache=True, max_position_embeddings=128)
        self.tokens = nn.Embedding(259, 16)
        self.stages = nn.ModuleList(block() for _ in range(3))
        self.head = nn.Linear(16, 259)
        self._passes = passes

    def get_input_embeddings(self) -> nn.Embedding:
        return self.tokens

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self._passes(self.stages, self.tokens(input_ids))))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 16)

    def forward(self, hidden: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        return hidden + torch.tanh(self.mix(hidden)) + shift


class TwoStreams(Block):
    """Its second output is meant for the next block."""

    def forward(self, hidden: Tensor, shift: Tensor | float = 0.0) -> Any:
        return super().forward(hidden) + shift, self.mix(hidden)


class Routing(Block):
    """Its second output is meant for the router of the next block, on which nothing hangs here."""

    def __init__(self) -> None:
        super().__init__()
        self.route = nn.Linear(16, 4)

    def forward(self, hidden: Tensor, shift: Tensor | float = 0.0) -> Any:
        chances = self.route(hidden + shift).softmax(dim=-1)
        return super().forward(hidden) * chances.sum(dim=-1, keepdim=True), hidden


class Writing(Block):
    """It leaves something in a dictionary that all blocks are handed."""

    def forward(self, hidden: Tensor, shift: Any = None) -> Tensor:
        shift["sum"] = shift.get("sum", 0) + self.mix(hidden)
        return hidden + shift["sum"]


class Needing(Block):
    """It cannot do without what the block before it wrote."""

    def forward(self, hidden: Tensor, shift: Any = None) -> Tensor:
        shift["keys"].append(hidden)
        return hidden + self.mix(shift["keys"][0] if len(shift["keys"]) == 1 else shift["keys"].pop(0))


def plainly(blocks: nn.ModuleList, hidden: Tensor) -> Tensor:
    for block in blocks:
        hidden = block(hidden)
    return hidden


def one_again(blocks: nn.ModuleList, hidden: Tensor) -> Tensor:
    for index in (0, 1, 1, 2):
        hidden = blocks[index](hidden)
    return hidden


def all_again(blocks: nn.ModuleList, hidden: Tensor) -> Tensor:
    return plainly(blocks, plainly(blocks, hidden))


def backwards(blocks: nn.ModuleList, hidden: Tensor) -> Tensor:
    for block in reversed(blocks):
        hidden = block(hidden)
    return hidden


def one_too_few(blocks: nn.ModuleList, hidden: Tensor) -> Tensor:
    return plainly(blocks[:2], hidden)


def scaled_between(blocks: nn.ModuleList, hidden: Tensor) -> Tensor:
    for block in blocks:
        hidden = block(hidden) * 1.0001
    return hidden


def changed_in_place_between(blocks: nn.ModuleList, hidden: Tensor) -> Tensor:
    for block in blocks:
        hidden = block(hidden)
        hidden[:, 0] += 1e-3
    return hidden


def argument_from_the_states(blocks: nn.ModuleList, hidden: Tensor) -> Tensor:
    shift: Tensor = torch.zeros_like(hidden)
    for block in blocks:
        hidden, shift = block(hidden, shift), hidden
    return hidden


def second_output_handed_on(blocks: nn.ModuleList, hidden: Tensor) -> Tensor:
    shift: Any = 0.0
    for block in blocks:
        hidden, shift = block(hidden, shift)
    return hidden


def shared_dictionary(blocks: nn.ModuleList, hidden: Tensor) -> Tensor:
    shared: dict[str, Tensor] = {}
    for block in blocks:
        hidden = block(hidden, shared)
    return hidden


def shared_list(blocks: nn.ModuleList, hidden: Tensor) -> Tensor:
    shared: dict[str, list[Tensor]] = {"keys": []}
    for block in blocks:
        hidden = block(hidden, shared)
    return hidden


def failing(blocks: nn.ModuleList, hidden: Tensor) -> Tensor:
    plainly(blocks, hidden)
    raise ValueError("no\nway")


REFUSED = [
    (one_again, Block, r"stages\.1 runs more than once in a forward pass"),
    (all_again, Block, r"stages\.0 runs more than once in a forward pass"),
    (backwards, Block, r"stages\.2 runs before stages\.0"),
    (one_too_few, Block, r"Decoder does not call stages\.2 on text"),
    (scaled_between, Block, r"stages\.1 is handed something else"),
    (changed_in_place_between, Block, r"stages\.1 is handed something else"),
    (argument_from_the_states, Block, r"stages\.2 computes something else within the model than by itself"),
    (second_output_handed_on, TwoStreams, r"stages\.1 (computes something else|cannot be run by itself)"),
    (second_output_handed_on, Routing, r"stages\.1\.route reads something else within the model"),
    (shared_dictionary, Writing, r"stages\.1 computes something else within the model than by itself"),
    (shared_list, Needing, r"stages\.1 computes something else|stages\.0 cannot be run"),
    (failing, Block, r"the forward pass of Decoder itself fails \(ValueError: no way\): model\(input_ids"),
]


def odd(passes: Any, block: type[nn.Module]) -> Decoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Decoder(passes, block).eval()


@pytest.mark.parametrize(("passes", "block", "message"), REFUSED)
def test_a_model_that_the_walk_would_get_wrong_is_refused(
    passes: Any, block: type[nn.Module], message: str, make_windows: Make
) -> None:
    model = odd(passes, block)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = allocate(outline(model), "uniform", Target.from_sparsity(0.5))
    for work in (
        lambda: measure(model, make_windows(2)),
        lambda: compress_with_(model, plan, Wanda(), make_windows(2)),
    ):
        with pytest.raises(RequestError, match=message) as refusal:
            work()
        assert "\n" not in str(refusal.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in module.__dict__


def test_methods_that_read_no_text_need_no_walk(make_windows: Make) -> None:
    model = odd(one_again, Block)
    plan = allocate(outline(model), "uniform", Target.from_sparsity(0.5))
    assert compress_with_(model, plan, Magnitude()).totals.achieved == 0.5


@pytest.mark.parametrize("kind", ["dory", "hrm_text"])
def test_architectures_that_run_blocks_in_loops_are_refused(kind: str, make_windows: Make) -> None:
    sizes = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": None}
    config = AutoConfig.for_model(kind, **sizes)
    if kind == "dory":
        config = AutoConfig.for_model(
            kind, **sizes, num_hidden_layers=4, n_input_layers=1, n_recurrent_layers=2, n_output_layers=1
        )
    else:
        config.num_layers_per_stack = 2
    with pytest.raises(RequestError, match="cannot be measured"):
        measure(AutoModelForCausalLM.from_config(config).eval(), make_windows(1))


def test_a_model_in_training_mode_agrees_with_itself_and_stays_in_training(
    make_model: Callable[[str], Any], make_windows: Make
) -> None:
    model = make_model("gpt2").train()
    assert model.config.resid_pdrop == 0.1
    assert settled_structure(model, find_structure(model), make_windows(1).ids).is_settled
    assert model.training


def test_a_family_agrees_with_its_walk_to_the_last_bit(
    family_model: Any, make_windows: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("owl_compress.walk.agreement._rounding", lambda *_: 0.0)
    structure = find_structure(family_model)
    settled = settled_structure(family_model, structure, make_windows(2).ids)
    assert settled.is_settled
    assert settled.blocks == structure.blocks
    assert settled.uncalled == ()


def test_a_block_that_stands_in_the_list_twice_may_run_twice(tiny_llama: Any, make_windows: Make) -> None:
    tiny_llama.model.layers[2] = tiny_llama.model.layers[0]
    assert settled_structure(tiny_llama, find_structure(tiny_llama), make_windows(1).ids).is_settled


def test_a_settled_structure_is_not_looked_at_again(
    tiny_llama: Any, make_windows: Make, forwards_counted: Callable[..., Any]
) -> None:
    windows = make_windows(2, seq_len=32)
    with forwards_counted(tiny_llama) as counts:
        settled = settled_structure(tiny_llama, find_structure(tiny_llama), windows.ids)
        assert settled_structure(tiny_llama, settled, windows.ids) is settled
    assert [sum(lengths) for lengths in counts] == [1 + 2 * 32, 2 * 32, 2 * 32]


def test_at_most_32_tokens_are_looked_at(
    make_model: Callable[[str], Any], make_windows: Make, forwards_counted: Callable[..., Any]
) -> None:
    model = make_model("bloom")  # takes any length
    with forwards_counted(model) as counts:
        settled_structure(model, find_structure(model), make_windows(2, seq_len=200).ids)
    assert max(length for lengths in counts for length in lengths) == 32


class Reading(Block):
    """It reads the weight of one linear without calling it, as Mamba does."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(16, 16)

    def forward(self, hidden: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        return super().forward(hidden) + hidden @ self.read.weight


class Choosing(Block):
    """Three experts, of which a router finds none for any token but the first."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def forward(self, hidden: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        return super().forward(hidden) + self.experts[0](hidden)


def test_linears_that_are_read_without_being_called_are_left_out_and_named(make_windows: Make) -> None:
    model = odd(plainly, Reading)
    dense = [stage.read.weight.detach().clone() for stage in model.stages]
    report = measure(model, make_windows(2))
    names = [linear.name for block in report.blocks for linear in block.linears]
    assert names == ["stages.0.mix", "stages.1.mix", "stages.2.mix"]
    assert any(
        "does not call them" in note and "3 linears, the first stages.0.read" in note for note in report.notes
    )
    coverage = report.coverage
    assert coverage is not None
    assert (coverage.share, coverage.named) == (0.5, "read (3 blocks)")
    plan = allocate(report, "owl", Target.from_sparsity(0.5))
    result = compress_with_(model, plan, Wanda(), make_windows(2))
    assert any("stages.0.read" in note for note in result.notes)
    assert result.coverage == coverage
    assert all(torch.equal(stage.read.weight, old) for stage, old in zip(model.stages, dense, strict=True))


def test_a_plan_of_measured_linears_suits_a_method_that_reads_no_text(make_windows: Make) -> None:
    model = odd(plainly, Reading)
    plan = allocate(measure(model, make_windows(2)), "owl", Target.from_sparsity(0.5))
    assert compress_with_(model, plan, Magnitude()).totals.n_weights == 3 * 16 * 16


def test_a_plan_that_names_such_a_linear_is_refused_before_work(make_windows: Make) -> None:
    model = odd(plainly, Reading)
    plan = allocate(outline(model), "uniform", Target.from_sparsity(0.5))
    with pytest.raises(RequestError, match=r"stages\.0\.read has a budget, but .* leave it out with --skip"):
        compress_with_(model, plan, Wanda(), make_windows(2))


def test_a_skip_may_name_what_is_left_out_anyway(make_windows: Make) -> None:
    report = measure(odd(plainly, Reading), make_windows(2))
    plan = allocate(report, "uniform", Target.from_sparsity(0.5, skips=("*.read",)))
    assert [budget.name for budget in plan.budgets] == ["stages.0.mix", "stages.1.mix", "stages.2.mix"]
    with pytest.raises(RequestError, match="matches no block or linear"):
        allocate(report, "uniform", Target.from_sparsity(0.5, skips=("*.raed",)))


def test_experts_that_no_token_reached_stay_and_may_be_spared(make_windows: Make) -> None:
    model = odd(plainly, Choosing)
    settled = settled_structure(model, find_structure(model), make_windows(1).ids)
    assert settled.uncalled == ()
    with pytest.raises(RequestError, match=r"no token reached stages\.0\.experts\.1: more or other"):
        measure(model, make_windows(1))
    unreached = [f"stages.{index}.experts.{expert}" for index in range(3) for expert in (1, 2)]
    spared = replace(find_structure(model), spared=frozenset(unreached))
    report = measure(model, make_windows(1), structure=spared)
    for block in report.blocks:
        assert block.n_weights == 4 * 16 * 16
        assert [bool(linear.metrics) for linear in block.linears] == [True, True, False, False]
    model = odd(plainly, Block)
    spared = replace(find_structure(model), spared=frozenset({"stages.0.mix"}))
    everything = measure(model, make_windows(1), structure=spared)
    assert everything.blocks[0].linears[0].metrics  # one that tokens reach is measured as ever


def test_memory_that_runs_out_is_told_as_such(make_windows: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = odd(plainly, Block)
    monkeypatch.setattr(BlockWalk, "run_block", lambda *_, **__: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(RequestError, match="out of memory while comparing"):
        settled_structure(model, find_structure(model), make_windows(1).ids)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_activations_that_are_no_numbers_are_left_to_those_who_name_the_linear(
    tiny_llama: Any, make_windows: Make, bad: float
) -> None:
    tiny_llama.model.layers[1].post_attention_layernorm.weight.data[3] = bad
    assert settled_structure(tiny_llama, find_structure(tiny_llama), make_windows(1).ids).is_settled
