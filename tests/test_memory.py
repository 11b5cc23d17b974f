import subprocess
import sys

import pytest
import torch

from owl_compress.errors import RequestError
from owl_compress.memory import memory_errors


def test_peak_host_memory_grows_with_what_is_held() -> None:
    # In a process of its own: what earlier tests held at once would hide what is held here.
    code = """
from owl_compress.memory import peak_host_bytes
before = peak_host_bytes()
held = bytearray(2**27)  # zeroed lazily: touch every page
held[::4096] = b"x" * len(held[::4096])
del held
print(before, peak_host_bytes())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 2**22  # the interpreter alone is more
    assert after - before == pytest.approx(2**27, abs=2**22)  # the kernel counts pages in batches


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
