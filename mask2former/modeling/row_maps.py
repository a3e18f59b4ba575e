"""Maps at full size, computed some rows at a time.

Hundreds of masks at the size of a picture fill gigabytes, and no cache. What inference needs of
them is sums, maxima and comparisons, so a band of rows is enough at a time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mask2former_ops import resize_rows, source_rows

# Elements of a band. On a CPU it stays in the cache; on a GPU it is large enough to be busy with.
BAND_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}
LEAST_ROWS = 8  # of a band: matrix products need some width


@dataclass(frozen=True)
class RowMaps:
    """``count`` maps of ``size`` (height, width); ``rows(start, stop)`` computes these rows, and
    ``write(start, stop, out)``, where there is one, computes them in place.

    Bilinear resizing is that of :func:`torch.nn.functional.interpolate` without aligned corners.
    """

    rows: Callable[[int, int], Tensor]
    count: int
    size: tuple[int, int]
    device: torch.device
    write: Callable[[int, int, Tensor], object] | None = None

    @classmethod
    def of(cls, maps: Tensor) -> "RowMaps":
        """Maps (n, h, w) that are there."""
        rows = lambda start, stop: maps[:, start:stop]  # noqa: E731
        return cls(rows, len(maps), tuple(maps.shape[1:]), maps.device)

    def crop(self, size: tuple[int, int]) -> "RowMaps":
        """The top left (height, width) of the maps."""
        if size == self.size:
            return self
        return RowMaps(
            lambda start, stop: self.rows(start, stop)[..., : size[1]],
            self.count,
            size,
            self.device,
        )

    def map(self, function: Callable[[Tensor, Tensor], object], count: int) -> "RowMaps":
        """Maps that ``function`` writes: from (n, rows, width), of any rows, to as many maps as
        ``count``, of the same dtype."""

        def rows(start: int, stop: int) -> Tensor:
            band = self.rows(start, stop)
            out = band.new_empty(count, *band.shape[1:])
            function(band, out)
            return out

        def write(start: int, stop: int, out: Tensor) -> None:
            function(self.rows(start, stop), out)

        return RowMaps(rows, count, self.size, self.device, write)

    def resize(self, size: tuple[int, int]) -> "RowMaps":
        """Maps of another (height, width)."""
        if size == self.size:
            return self

        def rows(start: int, stop: int) -> Tensor:
            first, last = source_rows(self.size[0], (start, stop), size[0])
            band = self.rows(first, last)
            return resize_rows(band, first, self.size[0], (start, stop), size)

        return RowMaps(rows, self.count, size, self.device)

    def bands(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows: which, and the (n, rows, width) maps there."""
        for start, stop in self._parts():
            yield slice(start, stop), self.rows(start, stop)

    def whole(self) -> Tensor:
        """(n, height, width)."""
        whole = None
        for start, stop in self._parts():
            if whole is not None and self.write is not None:
                self.write(start, stop, whole[:, start:stop])
                continue
            band = self.rows(start, stop)
            if whole is None:  # the dtype is known from now on
                whole = band.new_empty(self.count, *self.size)
            whole[:, start:stop] = band
        return whole

    def _parts(self) -> Iterator[tuple[int, int]]:
        """First and last row, exclusive, of the bands."""
        height, width = self.size
        elements = BAND_ELEMENTS.get(self.device.type, BAND_ELEMENTS["cuda"])
        step = max(LEAST_ROWS, elements // max(1, self.count * width))
        for start in range(0, height, step):
            yield start, min(start + step, height)
