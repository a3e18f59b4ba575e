"""What a picture takes of the memory, and the tiles with which it stays within a budget.

Figures of bytes a pixel were measured on pictures of 12 megapixels.
"""

import math
import os
import sys
import weakref
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from ..analysis import analyze
from ..errors import UserError
from ..memory import hand_back_memory, keep_freed_memory
from .predictor import Options, Predictor
from .visualization import fit_size

LEAST_TILE, LARGEST_TILE, TILE_STEP = 256, 2048, 64
# Beyond the tensors that the model makes: working memory of the convolutions, what the allocator
# holds back.
MEMORY_FACTOR = 1.6
# Of a picture's pixels, in bytes: to decode them; to segment a tile; to clean it up; to write
# PNGs, cut-outs, too; of each instance, while it is found. Of a drawing's, beside its instances.
DECODING, DECODING_WEBP = 14, 24
TILE, CLEANING = 16, 14
WRITING = 11
INSTANCE = 3
DRAWING = 150


@dataclass(frozen=True)
class Budget:
    """How a picture stays within an amount of memory.

    Attributes:
        tile: side of the largest tile, in pixels of the picture.
        model_pixels: the most that the model may see at once.
        whole: whether there is room for the results of the whole picture at once. Instance masks
            may fill the memory even where a tile would be large enough.
    """

    tile: int
    model_pixels: int
    whole: bool


def budget_for(
    predictor: Predictor,
    size: tuple[int, int],
    max_memory: int,
    options: Options,
    *,
    scale: float = 1.0,
) -> Budget:
    """The tiles with which a picture of (height, width), which is read, stays in ``max_memory``.

    The memory is that of the process (of a model on a GPU, the GPU's), in bytes, with what it holds
    already, the label maps of the picture, and with writing and drawing them later.

    Args:
        scale: pixels of the model for one of a tile.

    Raises:
        UserError: it is too little for the least tile.
    """
    maps, per_tile_pixel, later = _costs(predictor, size, options, scale)
    held = _held(predictor)
    left = max_memory - held - maps
    model_side = int(scale * math.sqrt(max(0, left) / per_tile_pixel))
    model_side = min(model_side // TILE_STEP * TILE_STEP, LARGEST_TILE)
    if model_side < LEAST_TILE or left < later:
        needed = maps + max(per_tile_pixel * (LEAST_TILE / scale) ** 2, later)
        raise UserError(_too_little(size, held, needed, max_memory))
    whole = "instance" not in options.tasks or instance_bytes(size, options) <= left
    return Budget(max(1, int(model_side / scale)), model_side**2, whole)


def check_file(
    predictor: Predictor, path: Path, max_memory: int, options: Options, *, scale: float = 1.0
) -> None:
    """Refuse a picture file for which ``max_memory`` is too little, by its header.

    Files that Pillow does not know are left to those who read them.

    Raises:
        UserError: the message tells what it takes.
    """
    if predictor.model.device.type == "cuda":
        return  # max_memory is that of the GPU
    try:
        with Image.open(path) as file:
            size, webp = (file.height, file.width), file.format == "WEBP"
    except (OSError, SyntaxError, ValueError):
        return
    pixels = math.prod(size)
    maps, per_tile_pixel, later = _costs(predictor, size, options, scale)
    held = _held(predictor)
    segmenting = maps + max(per_tile_pixel * (LEAST_TILE / scale) ** 2, later)
    needed = max(pixels * (DECODING_WEBP if webp else DECODING), 3 * pixels + segmenting)
    if held + needed > max_memory:
        raise UserError(f"{path.name}: {_too_little(size, held, needed, max_memory)}")


def _costs(
    predictor: Predictor, size: tuple[int, int], options: Options, scale: float
) -> tuple[int, float, int]:
    """Bytes of the label maps, of a pixel of a tile, and of writing and drawing them."""
    pixels = math.prod(size)
    per_tile_pixel = MEMORY_FACTOR * tensor_bytes_per_pixel(predictor) * scale**2
    if predictor.model.device.type == "cuda":
        return 0, per_tile_pixel, 0
    maps = 4 * pixels * (2 if "semantic" in options.tasks else 1)
    per_tile_pixel += TILE + CLEANING * bool(options.clean_up)
    return maps, per_tile_pixel, max(WRITING * pixels, DRAWING * math.prod(fit_size(size)))


def _held(predictor: Predictor) -> int:
    """Bytes that are taken already. From now on, little of what is freed is kept."""
    if predictor.model.device.type == "cuda":
        return torch.cuda.memory_allocated(predictor.model.device)
    hand_back_memory()
    if not predictor.model.test_low_memory:  # which keeps even less
        keep_freed_memory(32 << 20, large_block=8 << 20)  # what is free counts as well
    return resident_bytes()


def _too_little(size: tuple[int, int], held: float, needed: float, max_memory: int) -> str:
    return (
        f"a picture of {size[1]} x {size[0]} pixels takes {(held + needed) / 1e9:.2f} GB with this "
        f"model, even in tiles, {held / 1e9:.2f} of which the program holds already; --max-memory "
        f"allows {max_memory / 1e9:.2f}"
    )


def instance_bytes(size: tuple[int, int], options: Options) -> int:
    """The most that the instances of a picture of (height, width) take, as found and as drawn."""
    n, pixels, drawn = options.most_instances, math.prod(size), math.prod(fit_size(size))
    return max(INSTANCE * n * pixels, n * pixels + (INSTANCE * n + DRAWING) * drawn)


_bytes_per_pixel: weakref.WeakKeyDictionary[nn.Module, float] = weakref.WeakKeyDictionary()


def tensor_bytes_per_pixel(predictor: Predictor) -> float:
    """What the tensors of the model take at most, for a pixel of a large tile."""
    model, side = predictor.model, 512
    if model not in _bytes_per_pixel:  # a video's frames ask again and again
        network = nn.Sequential(model.backbone, model.sem_seg_head)
        counted = analyze(network, (1, len(model.pixel_mean), side, side))
        _bytes_per_pixel[model] = counted.peak_bytes / side**2
    return _bytes_per_pixel[model]


def resident_bytes() -> int:
    """The process's memory now (where the system does not tell, the most so far)."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
