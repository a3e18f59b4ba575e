"""Memory on CPUs that is taken again, instead of being handed back to the system.

The system clears it page by page when it comes back: on a virtual machine that can be more work
than what is written into it.
"""

import ctypes
import math
import os
import weakref
from collections.abc import Sequence
from threading import RLock

import torch
from torch import Tensor

# Blocks from here on are never kept by the GNU C library. With a higher limit it grows in training,
# by a fifth: versions before 2.38 do not find what torch has freed, as torch's blocks are aligned.
LARGE_BLOCK = 32 << 20
LARGE_BLOCK_IN_INFERENCE = 128 << 20
KEPT_BY_LIBRARY = 512 << 20
MOST_RESULTS = 1 << 30  # bytes of results that are kept while nobody uses them

_free: list[Tensor] = []
_lock = RLock()  # a garbage collection inside it may give blocks back


def keep_freed_memory(kept: int = KEPT_BY_LIBRARY, *, large_block: int = LARGE_BLOCK) -> None:
    """Let the GNU C library keep what is freed; other libraries stay as they are.

    Its own limit follows the blocks it sees, some tens of megabytes here. Limits that the
    environment sets stay, too.

    Args:
        kept: bytes of it.
        large_block: bytes from which a block is not kept.
    """
    names = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
    if any(name in os.environ for name in names):
        return
    _call_library("mallopt", -3, large_block)  # M_MMAP_THRESHOLD
    _call_library("mallopt", -1, kept)  # M_TRIM_THRESHOLD


def share_one_heap() -> None:
    """Let the threads of a server that are yet to come share one heap of the GNU C library.

    Otherwise each of many threads keeps some tens of megabytes of its own, whichever worked last.
    """
    if "MALLOC_ARENA_MAX" not in os.environ and "GLIBC_TUNABLES" not in os.environ:
        _call_library("mallopt", -8, 1)  # M_ARENA_MAX


def hand_back_memory() -> None:
    """Hand what is free, and kept by the functions here, back to the system."""
    with _lock:
        _free.clear()
    _call_library("malloc_trim", 0)


def _call_library(name: str, *arguments: int) -> None:
    """Call a function of the GNU C library, if it is the one here."""
    function = None if os.name == "nt" else getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)


def empty_result(size: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As :func:`torch.empty`, in memory of an earlier result that is gone, if there is any.

    An evaluation drops hundreds of megabytes after every picture, and needs as much for the next.
    """
    count = math.prod(size)
    num_bytes = count * dtype.itemsize
    if device.type != "cpu" or num_bytes < LARGE_BLOCK:
        return torch.empty(size, dtype=dtype, device=device)
    block = _take(num_bytes)
    if block is None:
        block = torch.empty(num_bytes, dtype=torch.uint8)
    # Every view of the result holds this array, and nothing else does: its end is theirs.
    array = block[:num_bytes].numpy()
    weakref.finalize(array, _give_back, block).atexit = False
    return torch.from_numpy(array).view(dtype).view(*size)


def _take(num_bytes: int) -> Tensor | None:
    with _lock:
        fitting = [i for i, block in enumerate(_free) if num_bytes <= len(block) <= 2 * num_bytes]
        if fitting:
            return _free.pop(min(fitting, key=lambda i: len(_free[i])))
        # Pictures of other sizes than so far: what is kept for those must not add up.
        _free.clear()
    return None


def _give_back(block: Tensor) -> None:
    with _lock:
        if sum(map(len, _free)) + len(block) <= MOST_RESULTS:
            _free.append(block)
