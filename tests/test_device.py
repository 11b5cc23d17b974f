import pytest
import torch

from owl_compress.device import find_dtype, own_gpu, peak_device_bytes, resolve_device
from owl_compress.errors import RequestError


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused(no_gpu: None) -> None:
    assert resolve_device("auto") == torch.device("cpu")
    for name in ("cuda", "cuda:0"):
        with pytest.raises(RequestError, match=f"'{name}' is asked for but .*--device cpu"):
            resolve_device(name)


def test_with_gpus_auto_is_the_first_and_others_are_named(two_gpus: None) -> None:
    assert resolve_device("auto").type == "cuda"
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(RequestError, match="the last is 'cuda:1'"):
        resolve_device("cuda:2")


def test_of_several_processes_each_has_the_gpu_of_its_number(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert own_gpu({}) is None
    assert own_gpu({"LOCAL_RANK": "1"}) == "cuda:1"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda:1")
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(RequestError, match="process 2 of torchrun has no GPU: there are 2"):
        own_gpu({"LOCAL_RANK": "2"})


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "meta", "cpu:7"])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="unknown device"):
        resolve_device(name)


def test_dtypes_by_name() -> None:
    assert find_dtype("bfloat16") == torch.bfloat16
    assert find_dtype("auto") == "auto"
    with pytest.raises(RequestError, match="did you mean 'float16'"):
        find_dtype("flaot16")


def test_peak_device_memory_of_a_cpu_is_zero() -> None:
    assert peak_device_bytes(torch.device("cpu")) == 0
