"""Memory for results of hundreds of megabytes, taken again once a result is gone.

The C library hands blocks this large back to the system when they are freed, and the system clears
them page by page when they are taken again: on a virtual machine more work than what is written
into them. An evaluation drops a result as large as the next one after every picture.
"""

import math
import weakref
from collections.abc import Sequence
from threading import Lock

import torch
from torch import Tensor

LEAST_BYTES = 32 << 20  # smaller blocks stay with the C library
MOST_BYTES = 1 << 30  # that are kept while nobody uses them

_free: list[Tensor] = []
_lock = Lock()


def empty_result(size: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As :func:`torch.empty`, in memory of an earlier result that is gone, if there is any."""
    count = math.prod(size)
    num_bytes = count * dtype.itemsize
    if device.type != "cpu" or num_bytes < LEAST_BYTES:
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
        if sum(map(len, _free)) + len(block) <= MOST_BYTES:
            _free.append(block)
