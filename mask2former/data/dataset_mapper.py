"""From a record of a data set to what the model takes.

One class reads and augments pictures; one subclass a task says where the ground truth comes from.
The names of ``INPUT.DATASET_MAPPER_NAME`` are in :data:`MAPPERS`.
"""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import Instances
from fvcore.transforms.transform import PadTransform, TransformList
from torch import Tensor

from ..errors import DatasetError
from .augmentation import build_large_scale_jitter, build_resize_augmentation
from .masks import masks_of, transform_masks, transform_segments
from .panoptic_png import rgb2id
from .picture import RAW, apply_label_map, read_label_map, read_picture

logger = logging.getLogger(__name__)

Masks = tuple[list[int], np.ndarray, np.ndarray | None]
"""Classes (contiguous ids), their (n, h, w) masks; the (h, w) pixels without a label, if asked."""


class PictureMapper:
    """Reads and resizes the picture of a record, for inference."""

    @configurable
    def __init__(
        self,
        *,
        augmentations: Sequence[T.Augmentation],
        image_format: str,
        num_channels: int = 3,
    ) -> None:
        """
        Args:
            image_format: of :func:`read_picture`.
            num_channels: C, that the model takes.
        """
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.num_channels = num_channels

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        size = (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        return {
            "augmentations": [T.ResizeShortestEdge(size[0], size[1])],
            "image_format": cfg.INPUT.FORMAT,
            "num_channels": len(cfg.MODEL.PIXEL_MEAN),
        }

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Add ``image`` (C, h, w), uint8 or for ``raw`` pictures float32, and ``height``, ``width``
        of the picture as stored.

        Raises:
            DatasetError: the picture cannot be read or has another size than the record says.
        """
        record = copy.copy(record)
        aug_input = T.AugInput(self.read(record))
        self.augmentations(aug_input)
        record["image"] = to_tensor(aug_input.image)
        return record

    def read(self, record: dict[str, Any]) -> np.ndarray:
        """Read the picture and compare its size with the record's, or add it there."""
        image = read_picture(record["file_name"], self.image_format)
        height, width, channels = image.shape
        if channels != self.num_channels:
            raise DatasetError(
                f"{record['file_name']} has {channels} channels, and the model takes "
                f"{self.num_channels}: give MODEL.PIXEL_MEAN and PIXEL_STD a value for each channel"
            )
        expected = (record.setdefault("height", height), record.setdefault("width", width))
        if expected != (height, width):
            raise DatasetError(
                f"{record['file_name']} (image id {record.get('image_id')}) is {width} x {height} "
                f"pixels, but its annotations say {expected[1]} x {expected[0]}; correct width and "
                "height there, or replace the picture"
            )
        return image


class TrainingMapper(PictureMapper):
    """Reads, augments and pads a picture together with its masks. Base of the tasks' mappers."""

    # Whether the crop is chosen by the classes in it, for which the semantic label map is read.
    crop_by_category = True
    # What label maps and masks get beyond the picture; None: the label of ignored pixels.
    label_padding: int | None = 0

    @configurable
    def __init__(
        self,
        *,
        augmentations: Sequence[T.Augmentation],
        image_format: str,
        num_channels: int = 3,
        ignore_label: int,
        num_classes: int,
        size_divisibility: int,
        picture_padding: float = 128,
        reads_semantic: bool,
        marks_ignored: bool = False,
    ) -> None:
        """
        Args:
            picture_padding: what pictures get beyond their border.
            marks_ignored: say which pixels have no label.
            reads_semantic: let the semantic label map take part in the augmentation.
            ignore_label: of semantic label maps; what padding gets there.
            size_divisibility: pad pictures at the right and bottom to this size in pixels; as
                published it is a size, not a divisor. Not positive: do not pad.
        """
        super().__init__(
            augmentations=augmentations, image_format=image_format, num_channels=num_channels
        )
        self.picture_padding = picture_padding
        self.ignore_label = ignore_label
        self.num_classes = num_classes
        self.size_divisibility = size_divisibility
        self.reads_semantic = reads_semantic
        self.marks_ignored = marks_ignored
        self.last_good: dict[str, Any] | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {
            "augmentations": cls.build_augmentations(cfg),
            "image_format": cfg.INPUT.FORMAT,
            "num_channels": len(cfg.MODEL.PIXEL_MEAN),
            "picture_padding": picture_padding(cfg),
            "ignore_label": ignore_label(cfg),
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "size_divisibility": cfg.INPUT.SIZE_DIVISIBILITY,
            "reads_semantic": (
                cls.crop_by_category
                and cfg.INPUT.CROP.ENABLED
                and cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA < 1.0
            ),
            "marks_ignored": cfg.MODEL.MASK_FORMER.EXCLUDE_IGNORED,
        }

    @classmethod
    def build_augmentations(cls, cfg: CfgNode) -> list[T.Augmentation]:
        return build_resize_augmentation(
            cfg, crop_by_category=cls.crop_by_category, ignore_label=ignore_label(cfg)
        )

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Add ``image`` (C, h, w) and ``instances``: ``gt_classes`` (n,) int64
        and ``gt_masks`` (n, h, w) bool; if asked for, ``ignored`` (h, w) bool.

        One bad file does not end a long run: it is logged, and the last good record takes its
        place. (Detectron2's loader would draw another for None, but 0.6 cannot since Python 3.11.)

        Raises:
            DatasetError: the record cannot be used, and there was no good one before it.
        """
        try:
            mapped = self.map(copy.copy(record))
        except DatasetError as error:
            if self.last_good is None:
                raise
            logger.error("left out of training: %s", error)
            return self.map(copy.copy(self.last_good))
        self.last_good = record
        return mapped

    def map(self, record: dict[str, Any]) -> dict[str, Any]:
        image = self.read(record)
        semantic = None
        if self.reads_semantic:
            semantic = self.read_semantic(record)
        aug_input = T.AugInput(image, sem_seg=semantic)
        transforms = self.augmentations(aug_input)
        padding = self.padding(aug_input.image.shape[:2])
        aug_input.transform(padding)
        transforms = TransformList([transforms, padding])
        classes, masks, ignored = self.masks(record, aug_input, transforms)
        record["image"] = to_tensor(aug_input.image)
        record["instances"] = self.instances(aug_input.image.shape[:2], classes, masks)
        if self.marks_ignored:
            record["ignored"] = torch.from_numpy(ignored)
        for key in ("annotations", "segments_info"):
            record.pop(key, None)
        return record

    def read_semantic(self, record: dict[str, Any]) -> np.ndarray:
        """The semantic label map of a record, (h, w) float64 as Detectron2's augmentations want."""
        if "sem_seg_file_name" not in record:
            raise DatasetError(
                f"{record['file_name']} has no semantic label map (sem_seg_file_name); use a data "
                "set with one, or another INPUT.DATASET_MAPPER_NAME, or, for crops alone, "
                "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA 1.0"
            )
        labels = read_label_map(record["sem_seg_file_name"])
        expected = (record["height"], record["width"])
        if labels.shape != expected:
            raise DatasetError(
                f"{record['sem_seg_file_name']} has shape {labels.shape}, but its picture "
                f"{record['file_name']} is {expected}; a label map has one value for each pixel"
            )
        if "sem_seg_label_map" in record:
            labels = apply_label_map(labels, record["sem_seg_label_map"], self.ignore_label)
        return labels.astype("double")

    def padding(self, size: tuple[int, int]) -> PadTransform:
        """Pads a picture of (height, width) up to ``size_divisibility``."""
        height, width = size
        bottom = max(0, self.size_divisibility - height)
        right = max(0, self.size_divisibility - width)
        labels = self.ignore_label if self.label_padding is None else self.label_padding
        return PadTransform(0, 0, right, bottom, width, height, self.picture_padding, labels)

    def masks(
        self, record: dict[str, Any], aug_input: T.AugInput, transforms: TransformList
    ) -> Masks:
        """The ground truth of the augmented, padded picture."""
        raise NotImplementedError

    def instances(self, size: tuple[int, int], classes: list[int], masks: np.ndarray) -> Instances:
        instances = Instances(size)
        instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
        instances.gt_masks = torch.from_numpy(masks)
        return instances


class SemanticMapper(TrainingMapper):
    """``mask_former_semantic``: one mask for each class of the semantic label map."""

    label_padding = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return super().from_config(cfg) | {"reads_semantic": True}

    def masks(
        self, record: dict[str, Any], aug_input: T.AugInput, transforms: TransformList
    ) -> Masks:
        classes = [int(c) for c in np.unique(aug_input.sem_seg) if c != self.ignore_label]
        if self.num_classes == 1:
            classes = [c for c in classes if c == 0]  # other values: background, no class
        if classes and classes[-1] >= self.num_classes:
            raise DatasetError(
                f"{record['sem_seg_file_name']} has the value {classes[-1]}, but there are the "
                f"classes 0 to {self.num_classes - 1} (MODEL.SEM_SEG_HEAD.NUM_CLASSES); correct "
                "either, or move values with a catalog's label_map"
            )
        masks = masks_of(aug_input.sem_seg, classes)
        return classes, masks, aug_input.sem_seg == self.ignore_label


class PanopticMapper(TrainingMapper):
    """``mask_former_panoptic``: one mask for each segment of the panoptic PNG."""

    def masks(
        self, record: dict[str, Any], aug_input: T.AugInput, transforms: TransformList
    ) -> Masks:
        if "pan_seg_file_name" not in record:
            raise DatasetError(
                f"{record['file_name']} has no panoptic PNG (pan_seg_file_name); use a panoptic "
                "data set, or another INPUT.DATASET_MAPPER_NAME"
            )
        segments = [s for s in record["segments_info"] if not s.get("iscrowd", 0)]
        ids = rgb2id(read_label_map(record["pan_seg_file_name"]))
        if ids.shape != (record["height"], record["width"]):
            raise DatasetError(
                f"{record['pan_seg_file_name']} is {ids.shape[1]} x {ids.shape[0]} pixels, and its "
                f"picture {record['file_name']} {record['width']} x {record['height']}; a panoptic "
                "PNG has the size of its picture"
            )
        masks = transform_segments(ids, [segment["id"] for segment in segments], transforms)
        ignored = ~masks.any(0) if self.marks_ignored else None
        return [segment["category_id"] for segment in segments], masks, ignored


class InstanceMapper(TrainingMapper):
    """``mask_former_instance``: one mask for each annotation: polygons, RLE or bitmap, mixed."""

    crop_by_category = False
    # As published, an object that the crop left out stays, with an empty mask.
    drop_empty = False

    def masks(
        self, record: dict[str, Any], aug_input: T.AugInput, transforms: TransformList
    ) -> Masks:
        annotated = [a for a in record.get("annotations", ()) if "segmentation" in a]
        objects = [a for a in annotated if not a.get("iscrowd", 0)]
        classes = [a["category_id"] for a in objects]
        masks = self.transform(objects, record, aug_input, transforms)
        if self.drop_empty:
            kept = masks.any((1, 2))
            masks = masks[kept]
            classes = [c for c, keep in zip(classes, kept) if keep]
        if not self.marks_ignored:
            return classes, masks, None
        # Padding is no background: it has another value than the picture.
        inside = np.ones((record["height"], record["width"]), np.uint8)
        crowds = [a for a in annotated if a.get("iscrowd", 0)]
        crowds = self.transform(crowds, record, aug_input, transforms)
        return classes, masks, (transforms.apply_segmentation(inside) == 0) | crowds.any(0)

    def transform(
        self,
        annotations: Sequence[dict[str, Any]],
        record: dict[str, Any],
        aug_input: T.AugInput,
        transforms: TransformList,
    ) -> np.ndarray:
        try:
            return transform_masks(
                [annotation["segmentation"] for annotation in annotations],
                transforms,
                original_size=(record["height"], record["width"]),
                size=aug_input.image.shape[:2],
            )
        except ValueError as error:
            raise DatasetError(
                f"{record['file_name']} is {record['width']} x {record['height']} pixels, but "
                f"{error}; correct the mask"
            ) from error


class LargeScaleJitter:
    """What the ``coco_*_lsj`` mappers change: large-scale jitter, which pads by itself."""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return super().from_config(cfg) | {"size_divisibility": 0, "reads_semantic": False}

    @classmethod
    def build_augmentations(cls, cfg: CfgNode) -> list[T.Augmentation]:
        return build_large_scale_jitter(cfg, picture_padding(cfg))


class InstanceLSJMapper(LargeScaleJitter, InstanceMapper):
    """``coco_instance_lsj``."""

    drop_empty = True


class PanopticLSJMapper(LargeScaleJitter, PanopticMapper):
    """``coco_panoptic_lsj``."""


MAPPERS: dict[str, type[TrainingMapper]] = {
    "mask_former_semantic": SemanticMapper,
    "mask_former_panoptic": PanopticMapper,
    "mask_former_instance": InstanceMapper,
    "coco_instance_lsj": InstanceLSJMapper,
    "coco_panoptic_lsj": PanopticLSJMapper,
}


def ignore_label(cfg: CfgNode) -> int:
    """What label maps hold where there is no label: as the training set says, or the config."""
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]) if cfg.DATASETS.TRAIN else None
    default = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    return metadata.get("ignore_label", default) if metadata else default


def picture_padding(cfg: CfgNode) -> float:
    """Grey, as FixedSizeCrop pads; of pictures in other units, the mean of all their channels."""
    return float(np.mean(cfg.MODEL.PIXEL_MEAN)) if cfg.INPUT.FORMAT == RAW else 128


def to_tensor(image: np.ndarray) -> Tensor:
    """(h, w, C) -> (C, h, w) of the same type."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
