"""What a run takes is told before it starts, stage by stage; what there is no room for is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from owl_compress.backends.wanda import Wanda
from owl_compress.documents.measurements import StageNeeds
from owl_compress.documents.recipe import Recipe
from owl_compress.errors import RequestError
from owl_compress.models.structure import find_structure
from owl_compress.pipeline.execution import run
from owl_compress.pipeline.needs import Course, Waiting, needs_of

OPTIONS = {
    "model": "model", "calib": "text.txt", "samples": 4, "seq_len": 32, "data": "other.txt",
    "allocator": "owl", "backend": "wanda", "sparsity": 0.6,
}  # fmt: skip
HEAD = 2 * 128 * 64 * 4 + 64 * 4  # embeddings, head and last norm
PINNED = 2 * 4 * 64 * 128  # memory that one matrix at a time goes through, at most twice its size
BLOCK = 4 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64)


def needs(
    n_blocks: int,
    waiting: Waiting,
    windows: Any,
    *,
    has_device: bool = False,
    keeps_blocks: bool = False,
    activations: Any = "auto",
    widens: bool = False,
    in_turns: bool = False,
) -> dict[str, StageNeeds]:
    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=n_blocks,
        num_attention_heads=4, num_key_value_heads=4,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    course = Course(
        Wanda(),
        waiting,
        has_device,
        windows,
        windows,
        windows,
        keeps_blocks=keeps_blocks,
        checkpoint_bytes=1000,
        activations=activations,
        widens=widens,
        in_turns=in_turns,
    )
    return {one.stage: one for one in needs_of(model, find_structure(model), course)}


@pytest.mark.parametrize("stage", ["measuring", "evaluating", "compressing", "writing"])
def test_from_disk_the_host_holds_two_blocks_however_many_there_are(
    stage: str, make_windows: Callable[..., Any]
) -> None:
    windows = make_windows()
    few, many = (needs(n, "disk", windows)[stage] for n in (2, 64))
    assert few == many
    assert few.host_bytes >= HEAD + (BLOCK if stage == "writing" else 2 * BLOCK)
    in_memory = needs(64, "host", windows)[stage]
    assert in_memory.host_bytes >= HEAD + 64 * BLOCK


def test_a_device_holds_the_block_at_work_and_the_next_or_all_of_them(
    make_windows: Callable[..., Any],
) -> None:
    windows = make_windows()
    resident = needs(8, "device", windows, has_device=True)["compressing"]
    visited = needs(8, "host", windows, has_device=True)["compressing"]
    assert resident.device_bytes - visited.device_bytes == HEAD + 8 * BLOCK - 2 * BLOCK
    assert (resident.host_bytes, visited.host_bytes) == (0, HEAD + 8 * BLOCK + PINNED)


def test_hidden_states_count_by_the_token(make_windows: Callable[..., Any]) -> None:
    few, many = (needs(2, "disk", make_windows(n))["compressing"].host_bytes for n in (3, 13))
    assert many - few == 10 * 24 * 64 * 4


def test_hidden_states_in_a_file_are_on_the_disk(make_windows: Callable[..., Any]) -> None:
    states = 3 * 24 * 64 * 4
    for has_device in (False, True):
        kept, spilled = (
            needs(8, "disk", make_windows(3), has_device=has_device, activations=place)
            for place in ("host", "disk")
        )
        for stage in ("measuring", "evaluating", "compressing"):
            assert kept[stage].host_bytes - spilled[stage].host_bytes == states
            assert spilled[stage].disk_bytes - kept[stage].disk_bytes == states
            assert kept[stage].device_bytes == spilled[stage].device_bytes


def test_a_block_that_is_widened_is_there_in_float32_too(make_windows: Callable[..., Any]) -> None:
    plain, widened = (needs(8, "disk", make_windows(), widens=widens) for widens in (False, True))
    copies = 3 * 4 * 64 * 128  # of the largest linear, which are made after the wide block is gone
    for stage, extra in (
        ("measuring", 2 * BLOCK - copies),
        ("compressing", 2 * BLOCK - copies),
        ("evaluating", 0),
    ):
        assert widened[stage].host_bytes - plain[stage].host_bytes == extra


def test_what_is_kept_until_the_end_is_on_the_disk(make_windows: Callable[..., Any]) -> None:
    found = needs(3, "host", make_windows(), keeps_blocks=True)
    assert found["compressing"].disk_bytes == 3 * BLOCK
    assert found["writing"].disk_bytes == 2000
    assert needs(3, "disk", make_windows(), keeps_blocks=True)["writing"].disk_bytes == 1000


@pytest.mark.parametrize(
    ("offload", "remedy"), [("host", "use --offload disk, or "), ("disk", "use a smaller --batch")]
)
def test_a_stage_without_room_is_refused_with_what_makes_it_fit(
    here: Path, monkeypatch: pytest.MonkeyPatch, offload: str, remedy: str
) -> None:
    monkeypatch.setattr("owl_compress.pipeline.needs.free_host_bytes", lambda: 2000)
    with pytest.raises(RequestError, match=rf"measuring takes about .* 2\.0 KiB are free: {remedy}"):
        run(Recipe.from_options({**OPTIONS, "offload": offload}), "out")
    assert sorted(path.name for path in here.iterdir()) == ["model", "other.txt", "text.txt"]


def test_linears_in_turn_take_all_batches_in_the_middle_of_a_block(make_windows: Callable[..., Any]) -> None:
    windows = make_windows()
    plain = needs(4, "host", windows)
    turns = needs(4, "host", windows, in_turns=True)
    held = windows.ids.numel() * (64 + 128 + 128) * 4
    assert turns["compressing"].host_bytes - plain["compressing"].host_bytes == held
    assert turns["measuring"] == plain["measuring"]
    # Where hidden states wait on disk, the passes are run anew for every turn.
    assert needs(4, "host", windows, in_turns=True, activations="disk") == needs(
        4, "host", windows, activations="disk"
    )
