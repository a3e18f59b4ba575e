import ctypes
import os
import subprocess
import sys

import pytest
import torch
from detectron2.modeling import build_model

from mask2former import memory
from mask2former.config import adapt_to_machine
from mask2former.memory import MOST_FREE
from mask2former.modeling import fusion, meta_arch
from mask2former.modeling.fusion import prepare_for_inference


@torch.no_grad()
@pytest.mark.parametrize("low", [False, True])
def test_low_memory(low, monkeypatch, tiny_cfg):
    """Freed memory is kept, or handed back before results take theirs; the results are the same."""
    calls, kept = [], []
    monkeypatch.setattr(meta_arch, "hand_back_memory", calls.append)
    monkeypatch.setattr(fusion, "keep_freed_memory", lambda *args, **kwargs: kept.append(args))
    tiny_cfg.TEST.LOW_MEMORY = low
    model = build_model(tiny_cfg).eval()
    decoder = model.sem_seg_head.pixel_decoder
    monkeypatch.setattr(
        fusion, "hand_back_memory", lambda: calls.append(type(decoder.mask_features))
    )
    inputs = [{"image": torch.randint(0, 256, (3, 64, 64))}]
    expected = model(inputs)[0]["sem_seg"]
    calls.clear()
    prepare_for_inference(model)
    assert kept == [(128 << 10,) if low else ()]
    torch.testing.assert_close(model(inputs)[0]["sem_seg"], expected, rtol=1e-4, atol=1e-4)
    # Once prepared, after the network, before instances.
    assert calls == [torch.nn.Identity, *([0, 0] if low else [MOST_FREE, MOST_FREE])]


def test_what_inference_does_not_need_is_not_imported():
    code = (
        "import sys, mask2former; print([m for m in ('scipy', 'matplotlib') if m in sys.modules]); "
        "print(mask2former.inference.TASKS[0], 'Predictor' in dir(mask2former)); "
        "from mask2former import Prediction, Predictor; print(Predictor.__name__)"
    )
    output = subprocess.check_output([sys.executable, "-W", "ignore", "-c", code], text=True)
    assert output.split("\n")[:3] == ["[]", "panoptic True", "Predictor"]


def test_builtin_data_sets_are_known_to_programs_on_detectron2():
    code = (
        "import mask2former; from detectron2.data import MetadataCatalog; "
        "print(len(MetadataCatalog.get('ade20k_panoptic_val').thing_dataset_id_to_contiguous_id))"
    )
    output = subprocess.check_output([sys.executable, "-W", "ignore", "-c", code], text=True)
    assert output.strip() == "100"


FAULTS = """
import resource, sys, torch
from mask2former.memory import ALL_OF_IT, LARGE_BLOCK_IN_TRAINING, keep_freed_memory
if sys.argv[1] == "inference":
    keep_freed_memory()
else:
    keep_freed_memory(ALL_OF_IT, large_block=LARGE_BLOCK_IN_TRAINING)
block, count = map(int, sys.argv[2:])
faults = []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(block // 4) for _ in range(count)]
    blocks.clear()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults) * resource.getpagesize() / (block * count))
"""


gnu_only = pytest.mark.skipif(
    sys.platform == "win32" or not hasattr(ctypes.CDLL(None), "mallopt"),
    reason="not the GNU C library",
)


@gnu_only
def test_freed_memory_is_kept_unless_the_environment_says_otherwise():
    def cleared(*arguments, **environment):
        """The share of the blocks whose pages were new, at best; not all are found at first."""
        command = [sys.executable, "-c", FAULTS, *map(str, arguments)]
        env = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
        return float(subprocess.check_output(command, env=env | environment, text=True))

    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("a GNU C library from before 2.33 keeps no blocks of this size")
    blocks = (60_000_000, 10)
    assert cleared("inference", *blocks) < 0.25
    assert cleared("inference", *blocks, MALLOC_MMAP_THRESHOLD_="1000000") > 0.5
    assert cleared("training", *blocks) > 0.5  # too large
    assert cleared("training", 20_000_000, 20) < 0.25


def test_training_never_hands_back_the_end_of_the_heap(monkeypatch, tiny_cfg):
    for name in ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    calls = []
    monkeypatch.setattr(memory, "_call_library", lambda *call: calls.append(call) or 1)
    adapt_to_machine(tiny_cfg)
    mmap_threshold, trim_threshold = -3, -1  # as malloc.h numbers them; -1 stands for no limit
    assert calls == [("mallopt", mmap_threshold, 48 << 20), ("mallopt", trim_threshold, -1)]


BETWEEN = """
import os, torch
from mask2former.memory import hand_back_memory, keep_freed_memory
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20
keep_freed_memory()
before = resident()
blocks, small = [], []
for _ in range(10):
    blocks.append(torch.ones(5_000_000))
    small.append(bytes(5000))
blocks.clear()
for most in (1 << 30, 16 << 20):
    hand_back_memory(most)
    print(resident() - before)
"""


@gnu_only
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc")
def test_what_is_free_between_blocks_in_use_is_bounded():
    env = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    output = subprocess.check_output([sys.executable, "-c", BETWEEN], env=env, text=True)
    kept, handed_back = map(int, output.split())
    assert kept > 150 and handed_back < 30


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
