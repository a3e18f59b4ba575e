import ctypes
import os
import subprocess
import sys

import pytest
import torch
from detectron2.modeling import build_model

from mask2former.modeling import fusion, meta_arch
from mask2former.modeling.fusion import prepare_for_inference


@torch.no_grad()
@pytest.mark.parametrize("low", [False, True])
def test_low_memory(low, monkeypatch, tiny_cfg):
    """Freed memory is kept, or handed back before results take theirs; the results are the same."""
    calls, kept = [], []
    for module in (fusion, meta_arch):
        monkeypatch.setattr(module, "hand_back_memory", lambda: calls.append(1))
    monkeypatch.setattr(fusion, "keep_freed_memory", lambda *args, **kwargs: kept.append(args))
    tiny_cfg.TEST.LOW_MEMORY = low
    model = build_model(tiny_cfg).eval()
    inputs = [{"image": torch.randint(0, 256, (3, 64, 64))}]
    expected = model(inputs)[0]["sem_seg"]
    calls.clear()
    prepare_for_inference(model)
    assert kept == [(128 << 10,) if low else ()]
    torch.testing.assert_close(model(inputs)[0]["sem_seg"], expected, rtol=1e-4, atol=1e-4)
    assert len(calls) == (3 if low else 0)  # once prepared, after the network, before instances


def test_what_inference_does_not_need_is_not_imported():
    code = (
        "import sys, mask2former; print([m for m in ('scipy', 'matplotlib') if m in sys.modules]); "
        "from mask2former import Prediction, Predictor; print(Predictor.__name__)"
    )
    output = subprocess.check_output([sys.executable, "-W", "ignore", "-c", code], text=True)
    assert output.split("\n")[:2] == ["[]", "Predictor"]


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
