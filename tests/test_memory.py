import mmap
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from owl_compress.errors import RequestError
from owl_compress.memory import memory_errors, page_out


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


@pytest.mark.skipif(sys.platform != "linux", reason="the advice is Linux's")
@pytest.mark.parametrize("wrongly", [0, 100])  # ranges may begin anywhere
def test_pages_of_a_file_leave_memory_and_come_back(wrongly: int, tmp_path: Path) -> None:
    path, pages = tmp_path / "weights", 64
    expected = torch.arange(pages * mmap.PAGESIZE // 4, dtype=torch.float32)
    with path.open("wb") as file:
        file.write(expected.numpy().tobytes())
        file.flush()
        os.fsync(file.fileno())  # what is not on the disk yet stays in memory
    mapped = torch.from_file(str(path), size=len(expected), dtype=torch.float32)
    assert torch.equal(mapped, expected)
    assert resident_pages(path) == pages
    page_out(mapped.data_ptr() + wrongly, mapped.nbytes // 2)
    assert resident_pages(path) <= pages // 2 + 1
    assert torch.equal(mapped, expected)
    mapped[0] = -1.0  # what was written stays, too
    page_out(mapped.data_ptr(), mapped.nbytes)
    assert float(mapped[0]) == -1.0


def resident_pages(path: Path) -> int:
    """Pages of the mappings of a file that are in the memory of this process."""
    found = re.findall(
        rf"{re.escape(str(path))}\n(?:\S+:.*\n)*?Rss:\s+(\d+) kB", Path("/proc/self/smaps").read_text()
    )
    return sum(map(int, found)) * 1024 // mmap.PAGESIZE


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
