"""Memory on CPUs that is taken again, instead of being handed back to the system.

The system clears it page by page when it comes back: on a virtual machine that can be more work
than what is written into it. On Linux the GNU C library decides; others stay as they are.
"""

import ctypes
import os

# In training, blocks from here on are never kept: the process would grow by a third, as versions of
# the library before 2.38 do not find all of what torch has freed (its blocks are aligned). Two
# pictures of 1024 x 1024 have tokens of 42 MB; versions before 2.35 keep blocks of 32 MB at most.
LARGE_BLOCK_IN_TRAINING = 48 << 20
ALL_OF_IT = -1  # at the end of the heap: each step of training takes it again
KEPT_IN_INFERENCE = 1 << 30  # the network and the results of one picture
MOST_FREE = 3 << 29  # what is free between blocks in use, beyond that


def keep_freed_memory(kept: int = KEPT_IN_INFERENCE, *, large_block: int | None = None) -> None:
    """Let the process keep what is freed. Limits that the environment sets stay.

    Args:
        kept: bytes of it at the end of the heap, see :func:`hand_back_memory`, or ``ALL_OF_IT``;
            the library's own limit is some tens of megabytes here.
        large_block: bytes from which a block is not kept; None: ``kept``, as far as the library
            can.
    """
    names = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
    if any(name in os.environ for name in names):
        return
    if not _call_library("mallopt", -3, large_block or kept):  # M_MMAP_THRESHOLD
        _call_library("mallopt", -3, 32 << 20)
    _call_library("mallopt", -1, kept)  # M_TRIM_THRESHOLD


def share_one_heap() -> None:
    """Let the threads of a server that are yet to come share one heap.

    Otherwise each of many threads keeps some tens of megabytes of its own, whichever worked last.
    """
    if "MALLOC_ARENA_MAX" not in os.environ and "GLIBC_TUNABLES" not in os.environ:
        _call_library("mallopt", -8, 1)  # M_ARENA_MAX


def hand_back_memory(most: int = 0) -> None:
    """Hand what is free, and kept, back to the system, if that is more than ``most`` bytes.

    A limit of :func:`keep_freed_memory` is about the end of the heap alone: a block in use, however
    small, keeps all that is free below it.
    """
    if not most or _free_bytes() > most:
        _call_library("malloc_trim", 0)


class _MallInfo(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks"),
            *("fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def _free_bytes() -> int:
    """Of the heaps; 0 from libraries that do not tell, which keep no large blocks either."""
    function = None if os.name == "nt" else getattr(ctypes.CDLL(None), "mallinfo2", None)
    if function is None:
        return 0
    function.restype = _MallInfo
    return function().fordblks


def _call_library(name: str, *arguments: int) -> int:
    """What a function of the GNU C library returns; 0 if the library here is another."""
    function = None if os.name == "nt" else getattr(ctypes.CDLL(None), name, None)
    return 0 if function is None else function(*arguments)
