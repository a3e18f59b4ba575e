import ctypes
import gc
import os
import subprocess
import sys

import pytest
import torch
from detectron2.modeling import build_model

from mask2former import memory
from mask2former.memory import empty_result

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(memory, "LARGE_BLOCK", 1000)
    monkeypatch.setattr(memory, "MOST_RESULTS", 10_000)
    monkeypatch.setattr(memory, "_free", [])


def test_memory_of_a_result_is_used_again_once_nothing_shows_it():
    result = empty_result((3, 20, 30), torch.float32, CPU).fill_(1)
    address, view = result.data_ptr(), result[1:, :5]
    del result
    gc.collect()
    other = empty_result((3, 20, 30), torch.float32, CPU).zero_()
    assert other.data_ptr() != address and view.eq(1).all()  # the view is still there
    del view, other
    gc.collect()
    again = empty_result((2, 30, 30), torch.bool, CPU)  # too small for a block of four times that
    assert again.shape == (2, 30, 30) and again.dtype == torch.bool
    assert not memory._free
    first = empty_result((3, 20, 30), torch.float32, CPU)
    address = first.data_ptr()
    del first
    gc.collect()
    assert empty_result((2, 20, 30), torch.float32, CPU).data_ptr() == address


def test_little_is_kept():
    results = [empty_result((1500,), torch.float32, CPU) for _ in range(3)]
    del results
    gc.collect()
    assert sum(map(len, memory._free)) == 6000  # a second one is beyond 10,000 bytes
    empty_result((100,), torch.float32, CPU)  # below the least
    assert len(memory._free) == 1


def test_results_of_a_model_are_not_overwritten(monkeypatch, tiny_cfg):
    monkeypatch.setattr(memory, "MOST_RESULTS", 1 << 30)
    model = build_model(tiny_cfg).eval()
    inputs = [[{"image": torch.randint(0, 256, (3, 64, 64))}] for _ in range(4)]
    with torch.no_grad():
        expected = [model(x)[0]["sem_seg"].clone() for x in inputs]
        assert memory._free
        kept = [model(x)[0]["sem_seg"] for x in inputs]
    for result, other in zip(kept, expected, strict=True):
        torch.testing.assert_close(result, other)


FAULTS = """
import resource, torch
from mask2former.memory import keep_freed_memory
keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(5_000_000) for _ in range(10)]
    blocks.clear()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


gnu_only = pytest.mark.skipif(
    sys.platform == "win32" or not hasattr(ctypes.CDLL(None), "mallopt"),
    reason="not the GNU C library",
)


@gnu_only
def test_freed_memory_is_kept_unless_the_environment_says_otherwise():
    def faults(**environment):
        command = [sys.executable, "-c", FAULTS]
        env = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
        return int(subprocess.check_output(command, env=env | environment, text=True))

    pages = 10 * 20_000_000 // os.sysconf("SC_PAGESIZE")
    assert faults() < pages / 4  # a block or two of the ten may not be found again
    assert faults(MALLOC_MMAP_THRESHOLD_="1000000") > pages / 2


HEAPS = """
import ctypes, sys, threading
from mask2former.memory import share_one_heap
if sys.argv[1] == "shared":
    share_one_heap()
together = threading.Barrier(8)
def work():
    block = ctypes.create_string_buffer(100_000)
    together.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
library = ctypes.CDLL(None)
library.malloc_info(0, ctypes.c_void_p.in_dll(library, "stdout"))
library.fflush(None)
"""


@gnu_only
def test_threads_share_one_heap():
    def heaps(argument):
        command = [sys.executable, "-c", HEAPS, argument]
        env = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
        return subprocess.check_output(command, env=env, text=True).count("<heap nr=")

    assert heaps("shared") < heaps("apart")
