"""Pictures of predictions, drawn by Detectron2's visualizer."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import ColorMode, GenericMask, VisImage, Visualizer
from matplotlib.transforms import Bbox
from PIL import Image, ImageDraw, ImageFont

from ..data.picture import RAW
from .prediction import Prediction

# The visualizer's labels are illegible on small pictures, and it needs gigabytes for huge ones:
# what is drawn has sides in between.
LEAST_SIDE, MOST_SIDE = 480, 2000
OUTLINE = (0.94, 0.94, 0.94)
# Okabe and Ito's colours, told apart in every common form of colour blindness (but black).
SAFE_COLORS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


class PaletteVisualizer(Visualizer):
    """Things in the colours of their classes, all with a white outline; labels within the picture,
    and apart from each other where there is room.

    Detectron2's has things in colours changed at random, which tell neighbours of a class apart.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._labels: list[Bbox] = []

    def _jitter(self, color: Sequence[float]) -> tuple[float, ...]:
        return tuple(color)

    def draw_polygon(
        self, segment: np.ndarray, color: Any, edge_color: Any = None, alpha: float = 0.5
    ) -> VisImage:
        return super().draw_polygon(segment, color, edge_color or OUTLINE, alpha)

    def draw_binary_mask(self, binary_mask: np.ndarray, *args: Any, **style: Any) -> VisImage:
        output = super().draw_binary_mask(binary_mask, *args, **style)
        mask = GenericMask(binary_mask.astype(np.uint8), self.output.height, self.output.width)
        if mask.has_holes:  # painted without an outline
            for polygon in mask.polygons:
                self.draw_polygon(polygon.reshape(-1, 2), OUTLINE, alpha=0)
        return output

    def draw_text(self, text: str, position: Sequence[float], **style: Any) -> VisImage:
        output = super().draw_text(text, position, **style)
        drawn = output.ax.texts[-1]
        extent, whole = drawn.get_window_extent(output.canvas.get_renderer()), output.fig.bbox
        right = max(0, -extent.x0) - max(0, extent.x1 - whole.width)
        up = max(0, -extent.y0) - max(0, extent.y1 - whole.height)
        moves = (up + lines * 1.2 * extent.height for lines in (0, -1, 1, -2, 2, -3, 3))
        places = [extent.translated(right, move) for move in moves]
        free = [
            place
            for place in places
            if place.y0 > -1  # pixel
            and place.y1 < whole.height + 1
            and not place.count_overlaps(self._labels)
        ]
        place = (free or places)[0]
        self._labels.append(place)
        right, up = place.x0 - extent.x0, place.y0 - extent.y0
        drawn.set_position((position[0] + right / output.scale, position[1] - up / output.scale))
        return output


def drawing_metadata(
    metadata: Metadata, categories: Sequence[str], *, color_blind_safe: bool = False
) -> Metadata:
    """Names and colours of all classes, as things and as stuff, for :func:`draw_prediction`.

    The colours are the data set's own where it has one for each class. There are seven safe ones;
    more classes take turns, lighter and darker.
    """
    count = len(categories)
    colors = metadata.get("stuff_colors") or metadata.get("thing_colors") or ()
    if color_blind_safe:
        shades = (1.0, 0.65, 1.35)
        colors = [
            tuple(min(255, round(shades[i // 7 % 3] * c)) for c in SAFE_COLORS[i % 7])
            for i in range(count)
        ]
    elif len(colors) != count:
        colors = [tuple(map(int, color)) for color in np.resize(colormap(rgb=True), (count, 3))]
    names = [name.replace("$", r"\$") for name in categories]  # matplotlib reads $...$ as formulas
    return Metadata(
        thing_classes=names,
        stuff_classes=names,
        thing_colors=list(colors),
        stuff_colors=list(colors),
    )


def draw_prediction(
    image: np.ndarray, prediction: Prediction, metadata: Metadata, task: str | None = None
) -> np.ndarray:
    """Draw a segmentation over its picture.

    Args:
        image: (h, w, 3) uint8 RGB.
        metadata: of :func:`drawing_metadata`.
        task: ``panoptic``, ``instance`` or ``semantic``; by default the first that there is.

    Returns:
        (H, W, 3) uint8 RGB, of the same proportions; at least ``LEAST_SIDE`` on the short side as
        long as the long one is below ``MOST_SIDE``.
    """
    image = fit(image)
    size = image.shape[:2]
    if prediction.panoptic is not None and task in (None, "panoptic"):
        segments = [
            {"id": s.id, "category_id": s.category_id, "isthing": s.isthing, "score": s.score}
            for s in prediction.panoptic.segments
        ]
        return draw_panoptic(image, fit_labels(prediction.panoptic.ids, size), segments, metadata)
    visualizer = PaletteVisualizer(image, metadata, instance_mode=ColorMode.SEGMENTATION)
    if prediction.instances is not None and task in (None, "instance"):
        found = prediction.instances
        drawn = Instances(size)
        drawn.pred_masks = np.empty((len(found), *size), np.uint8)
        for mask, drawn_mask in zip(found.masks, drawn.pred_masks):
            drawn_mask[:] = fit_labels(mask, size)
        drawn.scores = torch.from_numpy(found.scores)
        drawn.pred_classes = torch.from_numpy(found.classes)
        return visualizer.draw_instance_predictions(drawn).get_image()
    if prediction.semantic is None:
        raise ValueError(f"the prediction has no {task or 'segmentation'} to draw")
    return visualizer.draw_sem_seg(fit_labels(prediction.semantic.labels, size)).get_image()


def classes_in(prediction: Prediction) -> list[int]:
    """The contiguous classes that :func:`draw_prediction` draws by default, in ascending order."""
    if prediction.panoptic is not None:
        return sorted({segment.category_id for segment in prediction.panoptic.segments})
    if prediction.instances is not None:
        return np.unique(prediction.instances.classes).tolist()
    labels = np.unique(prediction.semantic.labels).tolist()
    return [label for label in labels if label < len(prediction.semantic.categories)]


def legend(
    classes: Sequence[int], metadata: Metadata, height: int, *, columns: int | None = None
) -> np.ndarray:
    """Colours and names of classes, in columns of (``height``, W, 3) uint8 RGB on white.

    Args:
        columns: by default as many as are needed; of fewer, the last line says that some are left
            out. W depends on this number alone.
    """
    size = int(np.clip(height // 32, 12, 32))
    font, line, margin = ImageFont.load_default(size), size * 3 // 2, size // 2
    per_column = max(1, (height - 2 * margin) // line)
    names = [metadata.stuff_classes[i].replace(r"\$", "$") for i in classes]
    width = round(max(map(font.getlength, metadata.stuff_classes))) + 2 * line
    columns = columns or max(1, -(-len(classes) // per_column))
    room = columns * per_column
    if len(names) > room:
        left_out = len(names) - room + 1
        names[room - 1 :] = [f"and {left_out} more"]
    strip = Image.new("RGB", (columns * width, height), "white")
    draw = ImageDraw.Draw(strip)
    for i, (class_id, name) in enumerate(zip(classes, names)):  # as many as there are names
        x, y = i // per_column * width + margin, margin + i % per_column * line
        color = tuple(map(int, metadata.stuff_colors[class_id]))
        draw.rectangle((x, y, x + size, y + size), fill=color, outline="black")
        draw.text((x + line, y), name, font=font, fill="black")
    return np.asarray(strip)


def displayable(image: np.ndarray, image_format: str) -> np.ndarray:
    """A picture as :func:`read_picture` gives it, as (h, w, 3) uint8 RGB.

    Of a ``raw`` one, the first three channels (or the first) between their 1 % and 99 % quantiles;
    of huge pictures, those of some of their pixels.
    """
    if image_format != RAW:
        return image if image_format == "RGB" else image[:, :, ::-1]
    shown = image[:, :, :3] if image.shape[2] >= 3 else image[:, :, [0, 0, 0]]
    step = -(-max(shown.shape[:2]) // MOST_SIDE)
    low, high = np.quantile(shown[::step, ::step], (0.01, 0.99), axis=(0, 1)).astype(np.float32)
    result = np.empty(shown.shape, np.uint8)
    for row, values in zip(result, shown):  # the whole picture would be in memory several times
        row[:] = ((values - low) / np.maximum(high - low, 1e-9) * 255).clip(0, 255)
    return result


def draw_panoptic(
    image: np.ndarray, ids: np.ndarray, segments: Sequence[Mapping[str, Any]], metadata: Metadata
) -> np.ndarray:
    """Draw segment ids (h, w) over a picture (h, w, 3) of the same size; RGB uint8."""
    ids = torch.from_numpy(ids.astype(np.int32))
    drawn = PaletteVisualizer(image, metadata).draw_panoptic_seg(ids, [dict(s) for s in segments])
    return drawn.get_image()


def fit(image: np.ndarray) -> np.ndarray:
    """Resize a picture whose sides are not between ``LEAST_SIDE`` and ``MOST_SIDE``."""
    image = np.ascontiguousarray(image)
    size = fit_size(image.shape[:2])
    if size == image.shape[:2]:
        return image
    method = cv2.INTER_CUBIC if size > image.shape[:2] else cv2.INTER_AREA
    return cv2.resize(image, size[::-1], interpolation=method)


def fit_size(size: tuple[int, int]) -> tuple[int, int]:
    """What :func:`fit` makes of (height, width)."""
    scale = max(1.0, LEAST_SIDE / min(size))
    scale = min(scale, MOST_SIDE / max(size))
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


def fit_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a label map to (height, width) without mixing labels."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for new, old in zip(size, labels.shape)
    )
    return labels[rows[:, None], columns]


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]], *, headings: Sequence[str] = (), cell: int = 300
) -> np.ndarray:
    """Lay pictures out in a grid: each row's pictures beside each other, on white.

    Args:
        rows: (h, w, 3) uint8 pictures of any size.
        headings: of the columns, plain ASCII.
        cell: side of a cell in pixels; pictures are shrunk to fit.

    Returns:
        (H, W, 3) uint8.
    """
    margin, top = 6, 30 if headings else 6
    columns = max(len(row) for row in rows)
    sheet = np.full(
        (len(rows) * (cell + margin) + top, columns * (cell + margin) + margin, 3),
        255,
        dtype=np.uint8,
    )
    for j, heading in enumerate(headings):
        origin = (margin + j * (cell + margin), 20)
        cv2.putText(
            sheet, heading, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA
        )
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            scale = cell / max(picture.shape[:2])
            picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            height, width = picture.shape[:2]
            y = top + i * (cell + margin) + (cell - height) // 2
            x = margin + j * (cell + margin) + (cell - width) // 2
            sheet[y : y + height, x : x + width] = picture
    return sheet
