"""Pictures too large for the memory, or with details too small for the model's usual size.

Overlapping tiles are segmented one after the other, and joined on one map of the whole picture, in
one of two ways. With an overview, the whole picture at the model's usual size comes first: it knows
what tiles are parts of. Tiles add the things that they have wholly in sight, and sharpen those that
the overview knows if they see more of their pixels. Without,
the map is made of tiles alone: stuff of one class is one segment; a thing that two tiles saw is
one, if both marked mostly the same pixels of what they share.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from ..memory import hand_back_memory
from .canvas import Canvas, Tile
from .prediction import Prediction, Semantic
from .predictor import Options, Predictor


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
        options: ``panoptic`` and ``semantic`` are made if they are among the tasks. Instead of
            instances, whose masks would fill the memory, there are the things of a panoptic
            segmentation, alone if that is not among the tasks.
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
        seen = dataclasses.replace(in_tile, tasks=("panoptic",), clean_up=0)
        small = predictor.resized(image, most_pixels)
        whole = predictor.segment(predictor.predict(small), size, seen).panoptic
        canvas.begin(whole, sharpen=scale * max(size) >= max(small.shape[:2]) + 1)
    add = canvas and (canvas.add_things if overview else canvas.add)
    tiles = tiles_of(size, tile, overlap)
    for number, part in enumerate(tiles, start=1):
        prediction = _segment(predictor, image[part.place], scale, in_tile)
        if add is not None:
            add(part, prediction.panoptic)
        if labels is not None:
            labels[part.own] = prediction.semantic.labels[part.own_within]
        if progress is not None:
            progress(number, len(tiles))
    hand_back_memory()  # for those who write and draw the result
    return Prediction(
        *size,
        panoptic=canvas
        and canvas.finish(
            predictor.categories, options.minimum_area, things_only="panoptic" not in options.tasks
        ),
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
