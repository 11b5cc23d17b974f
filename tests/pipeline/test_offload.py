"""Where weights wait changes nothing of what comes out, and with them on disk memory stays small."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import owl_compress as oc
from owl_compress.checkpoints.tensors import tensor_files, tensor_from_checkpoint
from owl_compress.documents.recipe import Recipe
from owl_compress.errors import RequestError
from owl_compress.importance.estimator import outline
from owl_compress.models.structure import find_structure
from owl_compress.pipeline.execution import run

TEXT = {"calib": "text.txt", "samples": 4, "seq_len": 32, "data": "other.txt"}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor_from_checkpoint(folder, name) for name in tensor_files(folder)}


def ran(out: str, **options: Any) -> Any:
    return run(Recipe.from_options({"model": "model", **TEXT, **options}), out)


@pytest.mark.parametrize(
    "options",
    [
        {"allocator": "owl", "backend": "wanda", "sparsity": 0.6},
        {
            "allocator": "owl",
            "backend": "wanda",
            "sparsity": 0.6,
            "statistics": "dense",
            "skip": ["model.layers.1"],
        },
        {"allocator": "uniform", "backend": "sparsegpt", "nm": "2:4"},
        {"allocator": "uniform", "backend": "magnitude", "sparsity": 0.5, "batch_size": 3},
        {"allocator": "owl", "backend": "gptq", "bits": 3, "bit_choices": "2,3,4", "group_size": 8},
        {"allocator": "uniform", "backend": "rtn", "bits": 4, "group_size": 8, "format": "dense"},
        {"allocator": "uniform", "backend": "wanda", "sparsity": 0.5, "scope": "model"},
        {"allocator": "uniform", "backend": "magnitude", "sparsity": 0.5, "scope": "model"},
        {"allocator": "owl", "backend": "structured", "prune_ratio": 0.3, "round_to": 8, "repair": True},
        {
            "allocator": "uniform",
            "backend": "structured",
            "prune_ratio": 0.3,
            "round_to": 8,
            "parts": "mlp",
            "uniform_width": True,
        },
    ],
    ids=[
        "wanda",
        "wanda-dense-statistics",
        "sparsegpt",
        "magnitude",
        "gptq-packed",
        "rtn-dense",
        "wanda-model-wide",
        "magnitude-model-wide",
        "structured",
        "structured-uniform",
    ],
)
def test_a_run_from_disk_gives_the_same_to_the_last_bit(here: Path, options: dict[str, Any]) -> None:
    whole, streamed = ran("whole", offload="host", **options), ran("streamed", offload="disk", **options)
    assert streamed.plan == whole.plan
    assert streamed.report == whole.report
    rows = [[row.model_dump(exclude={"seconds"}) for row in one.result.budgets] for one in (whole, streamed)]
    assert rows[0] == rows[1]
    assert streamed.result.evaluation == whole.result.evaluation
    expected, found = tensors_of(here / "whole"), tensors_of(here / "streamed")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (here / "streamed/config.json").read_text() == (here / "whole/config.json").read_text()
    assert oc.verify("streamed") == oc.verify("whole")
    assert oc.verify("streamed").ok or options.get("scope") == "model"  # by which linears get other shares
    assert not list(here.glob(".*partial"))


@pytest.mark.parametrize("offload", ["host", "disk"])
def test_hidden_states_in_a_file_change_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, offload: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(here))
    options = {"allocator": "owl", "backend": "sparsegpt", "sparsity": 0.6, "offload": offload}
    whole, spilled = (ran(place, activations=place, **options) for place in ("host", "disk"))
    assert spilled.report == whole.report
    assert spilled.result.evaluation == whole.result.evaluation
    expected, found = tensors_of(here / "host"), tensors_of(here / "disk")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not list(here.glob(".*partial"))


def test_a_profile_from_disk_is_the_same(here: Path) -> None:
    profiles = []
    for offload in ("host", "disk"):
        loaded = oc.load("model", offload=offload)
        calibration = oc.calibrate(loaded, "text.txt", samples=3, seq_len=32)
        damage = oc.hold_apart(loaded, "text.txt", [calibration], samples=2, seq_len=16)
        profiles.append(oc.profile(loaded.model, "wanda", calibration, damage, levels=[0.3, 0.5]))
    assert profiles[0] == profiles[1]


def test_plans_that_are_tried_out_on_a_copy_are_refused_before_anything_is_measured(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "owl_compress.importance.damage.Bench.tried", lambda *_, **__: pytest.fail("measured")
    )
    with pytest.raises(RequestError, match="takes the whole model in memory: use --offload host or none"):
        ran("out", offload="disk", allocator="sensitivity", backend="wanda", sparsity=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"backend": "structured", "prune_ratio": 0.2, "importance": "taylor"},
            "gradients of the whole model",
        ),
    ],
)
def test_what_takes_the_whole_model_is_refused_with_the_option_that_has_it(
    here: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(
        RequestError, match=rf"{message}.* takes the whole model in memory: use --offload host"
    ):
        ran("out", offload="disk", allocator="uniform", **options)
    assert not (here / "out").exists()


def test_gradients_that_are_left_open_are_not_taken_from_disk(here: Path) -> None:
    options = {"allocator": "uniform", "backend": "structured", "prune_ratio": 0.3, "round_to": 8}
    result = ran("out", offload="disk", importance="auto", **options).result
    assert result.backend.parameters["importance"] == "wanda"
    assert any(
        "importance auto ran as wanda: gradients take the whole model" in note for note in result.notes
    )


@pytest.mark.parametrize("name", ["gpt2", "falcon_alibi", "starcoder2"])
def test_blocks_of_other_families_become_narrower_from_disk_as_in_memory(
    here: Path, make_model: Callable[[str], Any], make_windows: Callable[..., Any], tokenizer: Any, name: str
) -> None:
    make_model(name).save_pretrained(here / name)
    tokenizer.save_pretrained(here / name)
    for offload in ("host", "disk"):
        loaded = oc.load(here / name, offload=offload)
        plan = oc.allocate(outline(loaded.model), "uniform", prune_ratio=0.4)
        result = oc.compress_(loaded.model, plan, "structured", make_windows(), round_to=4)
        if offload == "disk":
            blocks = [site.module for site in find_structure(loaded.model).blocks]
            assert all(one.is_meta for block in blocks for one in block.parameters())
        oc.save(loaded, result, plan, here / offload)
    expected, found = tensors_of(here / "host"), tensors_of(here / "disk")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (here / "disk/config.json").read_text() == (here / "host/config.json").read_text()


_CHILD = """
import sys
from pathlib import Path
from threading import Event, Thread

import owl_compress as oc

folder, text, out = sys.argv[1:]


def own_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def watch():
    while not ended.wait(0.002):
        seen.append(own_bytes())


def run(model, out):
    loaded = oc.load(model, offload="disk")
    calibration = oc.calibrate(loaded, text + "/text.txt", samples=2, seq_len=32)
    plan = oc.allocate(oc.measure(loaded.model, calibration), sparsity=0.5)
    result = oc.compress_(loaded.model, plan, "wanda", calibration)
    oc.evaluate(loaded, text + "/text.txt", seq_len=32, max_windows=2)
    oc.save(loaded, result, plan, out)


run(text + "/tiny", text + "/small")  # imports are paid for
ended, seen, before = Event(), [], own_bytes()
watcher = Thread(target=watch)
watcher.start()
run(folder, out)
ended.set()
watcher.join()
print(max(seen) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells memory of its own from that of files")
def test_host_memory_stays_at_a_few_blocks(here: Path, tokenizer: Any) -> None:
    """Of its own: pages of mapped files count as the process's too while they are mapped, and come and go.

    Tensors as small as these would share the allocator's heap, which shrinks by chance; larger ones do not.
    """
    (here / "model").rename(here / "tiny")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=1024, num_hidden_layers=32,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    n_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())
    model.save_pretrained(here / "large", max_shard_size="20MB")
    tokenizer.save_pretrained(here / "large")
    del model
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, str(here / "large"), str(here), str(here / "out")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    growth = int(child.stdout.splitlines()[-1])
    assert 0 < growth < n_bytes / 4, f"{growth:,} of {n_bytes:,} bytes"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped")
def test_codes_stay_in_their_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("compressed_tensors")
    mapped: list[str] = []

    def noted(_module: Any, codes: Any) -> None:
        for part in codes.parts.values():
            (region,) = (
                line
                for line in Path("/proc/self/maps").read_text().splitlines()
                if part.data_ptr() in range(*(int(end, 16) for end in line.split()[0].split("-")))
            )
            mapped.append(region.split(maxsplit=5)[-1])

    with monkeypatch.context() as patched:
        patched.setattr("owl_compress.compression.driver.keep_codes_", noted)
        options = {"allocator": "uniform", "backend": "rtn", "bits": 3, "bit_choices": "3", "group_size": 8}
        ran("out", **options, format="dense", offload="disk")
    assert len(mapped) == 3 * 7 * 3  # blocks, linears; two fields of three bits and the scales
    assert all(path.endswith(".codes") for path in mapped)


def test_blocks_without_an_output_are_kept_for_as_long_as_the_model(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(here))
    loaded = oc.load("model", offload="disk")
    plan = oc.allocate(
        oc.measure(loaded.model, oc.calibrate(loaded, "text.txt", samples=1, seq_len=32)), sparsity=0.5
    )
    oc.compress_(loaded.model, plan, "magnitude")
    (kept,) = here.glob(".owl-compress-blocks.*")
    assert len(list(kept.glob("*.safetensors"))) == 3
    del loaded
    gc.collect()
    assert not kept.exists()
