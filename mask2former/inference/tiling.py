"""Pictures too large for the memory, or with details too small for the model's usual size.

Overlapping tiles are segmented one after the other, and joined on one map of the whole picture, in
one of two ways. With an overview, the whole picture at the model's usual size comes first: it knows
what tiles are parts of. Tiles add and sharpen the things that they have wholly in sight. Without,
the map is made of tiles alone: stuff of one class is one segment; a thing that two tiles saw is
one, if both marked mostly the same pixels of what they share.
"""

import dataclasses
import functools
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from ..analysis import analyze
from ..errors import UserError
from ..memory import hand_back_memory, keep_freed_memory
from .canvas import Canvas, Tile
from .prediction import Prediction, Semantic
from .predictor import Options, Predictor

LEAST_TILE, LARGEST_TILE, TILE_STEP = 256, 2048, 64
# Beyond the tensors that the model makes: working memory of the convolutions, what the allocator
# holds back, the segments of a tile.
MEMORY_FACTOR = 1.6
# A PNG's colours, in two copies; drawing the overlay (measured, at the most it has as sides).
WRITING_BYTES_PER_PIXEL, DRAWING_BYTES = 3 + 4, 500_000_000


def tiles_of(size: tuple[int, int], tile: int, overlap: int) -> list[Tile]:
    """Tiles of ``tile`` pixels a side that cover (height, width), row by row.

    Neighbours share ``overlap`` pixels or more: all tiles of a picture are equally large.
    """
    rows, columns = (_starts(side, tile, overlap) for side in size)
    return [
        Tile(
            top,
            left,
            min(top + tile, size[0]),
            min(left + tile, size[1]),
            _border(rows, i, tile),
            _border(columns, j, tile),
        )
        for i, top in enumerate(rows)
        for j, left in enumerate(columns)
    ]


def _starts(side: int, tile: int, overlap: int) -> list[int]:
    if side <= tile:
        return [0]
    count = math.ceil((side - overlap) / (tile - overlap))
    return [round(i * (side - tile) / (count - 1)) for i in range(count)]


def _border(starts: Sequence[int], i: int, tile: int) -> int:
    """The middle of what tile i shares with the one before it."""
    return (starts[i - 1] + tile + starts[i]) // 2 if i else 0


def segment_in_tiles(
    predictor: Predictor,
    image: np.ndarray,
    options: Options | None = None,
    *,
    tile: int = 1024,
    overlap: int | None = None,
    scale: float = 1.0,
    overview: bool = True,
    most_pixels: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Prediction:
    """Segment a picture part by part.

    Args:
        image: (H, W, C), as :meth:`Predictor.read` gives it.
        options: ``panoptic`` and ``semantic`` are made if they are among the tasks; a panoptic
            segmentation stands in for ``instance``, whose masks would fill the memory.
            ``minimum_area`` counts in the whole picture, ``clean_up`` within tiles.
        tile: side of a tile in pixels of the picture.
        overlap: pixels that neighbours share; a quarter of a tile by default. What is smaller is
            wholly in sight of a tile.
        scale: pixels of the model for one of the picture.
        overview: begin the panoptic segmentation with the whole picture at the size that the config
            tests at.
        most_pixels: that the model sees of it, at a smaller size if need be.
        progress: called with the number of tiles done and of all.
    """
    overlap = tile // 4 if overlap is None else overlap
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap is {overlap}, expected 0 to {tile - 1}, less than the tile")
    options = options or predictor.options
    size = image.shape[:2]
    panoptic_on = bool({"panoptic", "instance"} & set(options.tasks))
    tasks = ["panoptic"] * panoptic_on + ["semantic"] * ("semantic" in options.tasks)
    in_tile = dataclasses.replace(options, tasks=tuple(tasks), minimum_area=0)
    canvas = Canvas(size) if panoptic_on else None
    labels = np.zeros(size, np.int32) if "semantic" in tasks else None
    if canvas is not None and overview:
        whole = predictor.run(
            image,
            dataclasses.replace(in_tile, tasks=("panoptic",), clean_up=0),
            most_pixels=most_pixels,
        )
        canvas.begin(whole.panoptic)
    tiles = tiles_of(size, tile, overlap)
    for number, part in enumerate(tiles, start=1):
        prediction = _segment(predictor, image[part.place], scale, in_tile)
        if canvas is not None and overview:
            canvas.add_things(part, prediction.panoptic)
        elif canvas is not None:
            canvas.add(part, prediction.panoptic)
        if labels is not None:
            own = (slice(part.own_top, part.bottom), slice(part.own_left, part.right))
            cut = (slice(part.own_top - part.top, None), slice(part.own_left - part.left, None))
            labels[own] = prediction.semantic.labels[cut]
        if progress is not None:
            progress(number, len(tiles))
    hand_back_memory()  # for those who write and draw the result
    return Prediction(
        *size,
        panoptic=canvas and canvas.finish(predictor.categories, options.minimum_area),
        semantic=None if labels is None else Semantic(labels, predictor.categories),
    )


def _segment(predictor: Predictor, image: np.ndarray, scale: float, options: Options) -> Prediction:
    height, width = image.shape[:2]
    resized = np.ascontiguousarray(image)
    if scale != 1:
        new_size = max(1, round(width * scale)), max(1, round(height * scale))
        method = cv2.INTER_LINEAR if scale > 1 else cv2.INTER_AREA
        resized = cv2.resize(resized, new_size, interpolation=method)
        resized = resized.reshape(*new_size[::-1], -1)  # one channel, which OpenCV drops
    return predictor.segment(predictor.predict(resized), (height, width), options)


# ---- Memory -------------------------------------------------------------------------------------


def largest_tile(
    predictor: Predictor, size: tuple[int, int], max_memory: int, maps: int = 1
) -> int:
    """Side of the largest tile with which a picture of (height, width) stays below ``max_memory``.

    The memory is that of the process (of a model on a GPU, the GPU's), in bytes, with what it holds
    already, with ``maps`` label maps of the picture, and with writing and drawing them later. From
    now on, little of what is freed is kept for later use.

    Raises:
        UserError: it is too little for the least tile.
    """
    bytes_per_pixel = MEMORY_FACTOR * tile_bytes(predictor, 512) / 512**2
    later = 0
    if predictor.model.device.type == "cuda":
        held = torch.cuda.memory_allocated(predictor.model.device)
    else:
        hand_back_memory()
        keep_freed_memory(32 << 20, large_block=8 << 20)  # what is free counts as well
        pixels = size[0] * size[1]
        held = resident_bytes() + 4 * maps * pixels
        later = max(WRITING_BYTES_PER_PIXEL * pixels, DRAWING_BYTES)
    left = max_memory - held
    side = math.isqrt(max(0, int(left / bytes_per_pixel)))
    side = min(side // TILE_STEP * TILE_STEP, LARGEST_TILE)
    if side < LEAST_TILE or left < later:
        needed = held + max(bytes_per_pixel * LEAST_TILE**2, later)
        raise UserError(
            f"a picture of {size[1]} x {size[0]} pixels takes {needed / 1e9:.1f} GB with this "
            f"model, even in tiles; allow more than {max_memory / 1e9:.1f} GB (--max-memory)"
        )
    return side


@functools.lru_cache(maxsize=1)  # a video's frames ask again and again
def tile_bytes(predictor: Predictor, side: int) -> int:
    """What the tensors of the model take at most, for a tile of this side."""
    model = predictor.model
    network = nn.Sequential(model.backbone, model.sem_seg_head)
    channels = len(model.pixel_mean)
    return analyze(network, (1, channels, side, side)).peak_bytes


def resident_bytes() -> int:
    """The process's memory now (where the system does not tell, the most so far)."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
