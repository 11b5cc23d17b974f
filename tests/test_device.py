import pytest
import torch

from owl_compress.device import (
    memory_errors,
    peak_device_bytes,
    peak_host_bytes,
    resolve_device,
    resolve_dtype,
)
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


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "meta", "cpu:7"])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="unknown device"):
        resolve_device(name)


def test_dtypes_by_name_and_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    for supported, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda *, including_emulation, answer=supported: answer
        )
        assert resolve_dtype("auto", torch.device("cuda")) == expected
    with pytest.raises(RequestError, match="did you mean 'float16'"):
        resolve_dtype("flaot16", torch.device("cpu"))


def test_peak_host_memory_grows_with_what_is_held() -> None:
    before = peak_host_bytes()
    assert before > 50 * 2**20  # torch alone is more
    held = bytearray(before)  # zeroed lazily: touch every page
    held[::4096] = b"x" * len(held[::4096])
    assert peak_host_bytes() > 1.5 * before


def test_peak_device_memory_of_a_cpu_is_zero() -> None:
    assert peak_device_bytes(torch.device("cpu")) == 0


def test_a_real_failed_allocation_becomes_a_request_error() -> None:
    with (
        pytest.raises(RequestError, match=r"out of memory while testing .*: buy more"),
        memory_errors("testing", "buy more"),
    ):
        torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."),
    ],
)
def test_out_of_memory_names_the_remedies(error: Exception) -> None:
    with (
        pytest.raises(RequestError, match=r"^out of memory while measuring.*--batch-size"),
        memory_errors("measuring"),
    ):
        raise error


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_errors("measuring"):
        raise RuntimeError("shapes do not match")
