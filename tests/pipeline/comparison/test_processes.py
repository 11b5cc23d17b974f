"""Who carries out which cells, and on which device."""

import os

import pytest

from owl_compress.errors import RequestError
from owl_compress.pipeline.comparison.cells import Place
from owl_compress.pipeline.comparison.processes import Jobs
from owl_compress.pipeline.comparison.share import Share


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)


def test_a_place_is_the_users_device_or_of_gpus_the_own_one() -> None:
    assert [Place().of(device) for device in ("auto", "cpu", "cuda:1")] == ["auto", "cpu", "cuda:1"]
    assert [Place(gpu="cuda:1").of(device) for device in ("auto", "cuda", "cpu")] == [
        "cuda:1",
        "cuda:1",
        "cpu",
    ]
    assert Place("cpu", "cuda:1").of("auto") == "cpu"
    assert Place("cuda", "cuda:1").of("cpu") == "cuda:1"


def test_torchrun_says_who_leads() -> None:
    assert Share.from_environment({}) == Share()
    assert Share.from_environment({"RANK": "1", "WORLD_SIZE": "2"}) == Share(1, 2, leads=False)
    assert Share.from_environment({"RANK": "0", "WORLD_SIZE": "2"}).leads


def test_jobs_take_a_gpu_each_where_there_are_any(two_gpus: None) -> None:
    assert Jobs.of(2, None) == Jobs(("cuda:0", "cuda:1"))
    assert Jobs.of(3, "cpu") == Jobs((None,) * 3, "cpu")
    assert Jobs.of(1, "cuda:1") == Jobs((None,), "cuda:1")
    for n_jobs, device, message in (
        (3, None, "--jobs 3 takes as many GPUs and there are 2"),
        (2, "cuda:1", "--jobs 2 takes a device for each: drop --device cuda:1"),
        (0, None, "--jobs 0 is no number of processes"),
    ):
        with pytest.raises(RequestError, match=message):
            Jobs.of(n_jobs, device)


def test_a_process_whose_parent_has_gone_is_abandoned() -> None:
    assert not Share().is_abandoned()
    assert not Share(parent=os.getppid()).is_abandoned()
    assert Share(parent=-1).is_abandoned()
