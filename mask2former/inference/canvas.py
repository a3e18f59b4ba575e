"""The map on which the segments of tiles are joined."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .prediction import Panoptic, Segment

SAME_THING = 0.5  # IoU above which two segments are one thing: at most one pair can reach more
NEW_THING = 0.9  # part of a thing that must be free, where the overview has not seen it


@dataclass(frozen=True)
class Tile:
    """A part of a picture, in pixels: rows [top, bottom), columns [left, right).

    Attributes:
        own_top, own_left: where its own part begins; what is above or left of that was segmented
            with another tile, too, and keeps that tile's labels.
    """

    top: int
    left: int
    bottom: int
    right: int
    own_top: int
    own_left: int

    @property
    def place(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def own(self) -> tuple[slice, slice]:
        """Its own part, in the picture."""
        return slice(self.own_top, self.bottom), slice(self.own_left, self.right)

    @property
    def own_within(self) -> tuple[slice, slice]:
        """Its own part, in the tile."""
        return slice(self.own_top - self.top, None), slice(self.own_left - self.left, None)


class Canvas:
    """The segments of all tiles so far, on one map of the picture."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.sharpen = True
        self.ids = np.zeros(size, np.int32)  # 0: none
        # Of each id from 1 on: the segment with its area, and the id that stands for it.
        self.segments: list[dict[str, Any]] = [{"isthing": False}]
        self.parents: list[int] = [0]
        self.stuff: dict[int, int] = {}  # class -> id

    # ---- With an overview ----

    def begin(self, whole: Panoptic, *, sharpen: bool = True) -> None:
        """Start from a segmentation of the whole picture, whose map becomes this one.

        Args:
            sharpen: whether tiles see things more closely, and give them their outlines.
        """
        self.ids, self.sharpen = whole.ids, sharpen
        _relabel(self.ids, self._new_ids(whole))

    def add_things(self, tile: Tile, panoptic: Panoptic) -> None:
        """Add the things that a tile has wholly in sight to what stands for the whole picture.

        One that is mostly a thing of the same class takes its place; another counts if nearly all
        of it is where no thing is.
        """
        there = self.ids[tile.place]
        for segment in panoptic.segments:
            if not segment.isthing or self._is_cut(segment, tile):
                continue
            x0, y0, x1, y1 = segment.box
            mask, under = panoptic.ids[y0:y1, x0:x1] == segment.id, there[y0:y1, x0:x1]
            things = {
                id_: count
                for id_, count in _counts(under[mask]).items()
                if self.segments[id_]["isthing"]
            }
            free = mask & ~np.isin(under, list(things))
            nearest = max(things, key=things.__getitem__, default=0)
            if nearest and self._same(nearest, segment, things[nearest]):
                known = self.segments[nearest]
                known["score"] = max(known["score"], segment.score)
                if self.sharpen:
                    self._leave(nearest, segment, there, panoptic)
                    under[free] = nearest
                    known["area"] += np.count_nonzero(free)
            elif np.count_nonzero(free) > NEW_THING * segment.area:
                under[free] = self._id_of(segment)

    def _is_cut(self, segment: Segment, tile: Tile) -> bool:
        """Whether it touches a side of the tile that is no side of the picture."""
        x0, y0, x1, y1 = segment.box
        height, width = self.ids.shape
        return (
            (y0 == 0 and tile.top > 0)
            or (x0 == 0 and tile.left > 0)
            or (tile.top + y1 == tile.bottom < height)
            or (tile.left + x1 == tile.right < width)
        )

    def _same(self, id_: int, segment: Segment, both: int) -> bool:
        """Whether a thing of the map and one that has ``both`` pixels in common are one."""
        known = self.segments[id_]
        same_class = known["category_id"] == segment.category_id
        return same_class and both > SAME_THING * (known["area"] + segment.area - both)

    def _leave(self, id_: int, segment: Segment, there: np.ndarray, panoptic: Panoptic) -> None:
        """Give what a thing has beside ``segment`` to the stuff that the tile sees there.

        Not to stuff that is nowhere on the map: what is new in such a seam is a mistake.
        """
        stuff = np.zeros(max(s.id for s in panoptic.segments) + 1, np.int32)
        for other in panoptic.segments:
            if not other.isthing:
                stuff[other.id] = self.stuff.get(other.category_id, 0)
        left = (there == id_) & (panoptic.ids != segment.id) & (stuff[panoptic.ids] > 0)
        there[left] = stuff[panoptic.ids[left]]
        self.segments[id_]["area"] -= np.count_nonzero(left)

    # ---- Without ----

    def add(self, tile: Tile, panoptic: Panoptic) -> None:
        """Join all of a tile's segments with those that are there."""
        there = self.ids[tile.place]
        ids = self._new_ids(panoptic)[panoptic.ids]
        for old, new in list(self._shared(tile, there, ids)):
            a, b = sorted((self._root(old), self._root(new)))
            self.parents[b] = a
            self.segments[a]["score"] = max(self.segments[i]["score"] for i in (a, b))
        there[tile.own_within] = ids[tile.own_within]

    def _shared(self, tile: Tile, there: np.ndarray, ids: np.ndarray) -> Iterator[tuple[int, int]]:
        """Old and new things of one class that are mostly the same where both tiles look."""
        # The border is in the middle of what two tiles share.
        seen = np.zeros(ids.shape, bool)
        seen[: 2 * (tile.own_top - tile.top)] = True
        seen[:, : 2 * (tile.own_left - tile.left)] = True
        pairs, counts = np.unique(np.stack([there[seen], ids[seen]]), axis=1, return_counts=True)
        areas: dict[tuple[int, int], int] = {}  # of old, of new (0 for the other), of both
        for (old, new), count in zip(pairs.T.tolist(), counts.tolist()):
            old = self._root(old)
            for key in {(old, new), (old, 0), (0, new)}:
                areas[key] = areas.get(key, 0) + count
        for (old, new), both in areas.items():
            one, other = self.segments[old], self.segments[new]
            if not one["isthing"] or not other["isthing"]:
                continue
            union = areas[old, 0] + areas[0, new] - both
            if one["category_id"] == other["category_id"] and both > SAME_THING * union:
                yield old, new

    # ---- Both ----

    def _new_ids(self, panoptic: Panoptic) -> np.ndarray:
        """The id on the map of each id of a tile."""
        new_ids = np.zeros(max((s.id for s in panoptic.segments), default=0) + 1, np.int32)
        for segment in panoptic.segments:
            new_ids[segment.id] = self._id_of(segment)
        return new_ids

    def _id_of(self, segment: Segment) -> int:
        """That of the stuff's class, or a new one."""
        known = None if segment.isthing else self.stuff.get(segment.category_id)
        if known is not None:
            self.segments[known]["score"] = max(self.segments[known]["score"], segment.score)
            return known
        new = len(self.parents)
        self.parents.append(new)
        self.segments.append(
            {
                "category_id": segment.category_id,
                "isthing": segment.isthing,
                "score": segment.score,
                "area": segment.area,
            }
        )
        if not segment.isthing:
            self.stuff[segment.category_id] = new
        return new

    def _root(self, id_: int) -> int:
        while self.parents[id_] != id_:
            id_ = self.parents[id_]
        return id_

    def finish(
        self, names: Sequence[str], least_area: int, *, things_only: bool = False
    ) -> Panoptic:
        """The segmentation of the whole picture; ids count from 1 on."""
        roots = sorted({self._root(id_) for id_ in range(1, len(self.parents))})
        roots = [root for root in roots if self.segments[root]["isthing"] or not things_only]
        numbers = {root: number for number, root in enumerate(roots, start=1)}
        table = [numbers.get(self._root(i), 0) for i in range(len(self.parents))]
        table = np.array(table, np.int32)
        _relabel(self.ids, table)
        segments = [self.segments[root] | {"id": numbers[root]} for root in roots]
        return Panoptic.of(self.ids, segments, names, least_area=least_area)


def _counts(ids: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(ids, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist()))


def _relabel(ids: np.ndarray, table: np.ndarray) -> None:
    """Line by line: a second map of a huge picture would take as much memory as the first."""
    for row in ids:
        row[:] = table[row]
