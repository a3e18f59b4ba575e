"""MaskFormer: backbone -> head -> losses in training, segmentations in inference.

Shapes: B pictures; (H, W) the padded batch; (h, w) a picture before padding; Q queries; K classes.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone, build_sem_seg_head
from detectron2.structures import ImageList
from detectron2.utils.memory import retry_if_cuda_oom
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from ..memory import MOST_FREE, hand_back_memory
from .convolution import use_cpu_convolutions
from .criterion import SetCriterion
from .matcher import HungarianMatcher
from .postprocessing import instance_inference, panoptic_inference, semantic_inference
from .row_maps import RowMaps

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@META_ARCH_REGISTRY.register()
class MaskFormer(nn.Module):
    """Mask classification for semantic, instance and panoptic segmentation (Mask2Former)."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        criterion: SetCriterion,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int,
        thing_ids: Collection[int],
        semantic_on: bool,
        instance_on: bool,
        panoptic_on: bool,
        sem_seg_postprocess_before_inference: bool,
        object_mask_threshold: float,
        overlap_threshold: float,
        test_topk_per_image: int,
        test_precision: str = "float32",
        test_low_memory: bool = False,
    ) -> None:
        """
        Args:
            test_precision: what inference computes in: float32, bfloat16 or float16.
            test_low_memory: hand free memory back to the system before results take theirs.
            pixel_mean, pixel_std: per channel, in the units of the input pictures.
            size_divisibility: pictures are padded to a multiple of this; negative: what the
                backbone asks for.
            thing_ids: contiguous ids of the countable classes.
            semantic_on, instance_on, panoptic_on: which segmentations inference makes.
            sem_seg_postprocess_before_inference: resize the mask logits to the output, then form
                semantic scores; otherwise form the scores first and resize those.
            object_mask_threshold, overlap_threshold: see :func:`panoptic_inference`.
            test_topk_per_image: most instances of a picture.
        """
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        if size_divisibility < 0:
            size_divisibility = backbone.size_divisibility
        self.size_divisibility = size_divisibility
        self.thing_ids = frozenset(thing_ids)
        self.semantic_on = semantic_on
        self.instance_on = instance_on
        self.panoptic_on = panoptic_on
        self.sem_seg_postprocess_before_inference = sem_seg_postprocess_before_inference
        self.object_mask_threshold = object_mask_threshold
        self.overlap_threshold = overlap_threshold
        self.test_topk_per_image = test_topk_per_image
        if test_precision not in PRECISIONS:
            raise ConfigError(
                f"TEST.PRECISION is {test_precision!r}; it must be one of {list(PRECISIONS)}"
            )
        self.test_precision = PRECISIONS[test_precision]
        self.test_low_memory = test_low_memory
        use_cpu_convolutions(self)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        test = cfg.MODEL.MASK_FORMER.TEST
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "criterion": build_criterion(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "size_divisibility": cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY,
            "thing_ids": thing_ids_of(cfg),
            "semantic_on": test.SEMANTIC_ON,
            "instance_on": test.INSTANCE_ON,
            "panoptic_on": test.PANOPTIC_ON,
            "sem_seg_postprocess_before_inference": (
                test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE or test.PANOPTIC_ON or test.INSTANCE_ON
            ),
            "object_mask_threshold": test.OBJECT_MASK_THRESHOLD,
            "overlap_threshold": test.OVERLAP_THRESHOLD,
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "test_precision": cfg.TEST.PRECISION,
            "test_low_memory": cfg.TEST.LOW_MEMORY,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(
        self, batched_inputs: Sequence[Mapping[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """
        Args:
            batched_inputs: per picture
                ``image``: (C, h, w), channels and units as ``pixel_mean``;
                ``instances`` (training): ``gt_classes`` (N,) int64 contiguous ids and
                ``gt_masks`` (N, h, w) bool tensor or Detectron2 ``BitMasks``;
                ``ignored`` (training, optional): (h, w) bool, pixels without a label;
                ``height``, ``width`` (inference, optional): size of the output, by default h, w.

        Returns:
            In training the weighted losses by name, see :class:`SetCriterion`. In inference per
            picture, as far as switched on:
            ``sem_seg``: (K, height, width) class scores;
            ``panoptic_seg``: (height, width) int32 segment ids and a list of segments;
            ``instances``: :class:`detectron2.structures.Instances`.
            See :mod:`.postprocessing` for their fields.
        """
        images = self._batch([x["image"] for x in batched_inputs])
        if self.training:
            outputs = self.sem_seg_head(self.backbone(images.tensor))
            return self.criterion(outputs, self.prepare_targets(batched_inputs, images))
        predictions = self._predict(images)
        del images
        # Full-size masks of a large picture may not fit on a GPU; then the CPU makes them.
        inference = retry_if_cuda_oom(self.inference)
        return [
            inference(prediction, (x.get("height", height), x.get("width", width)))
            for prediction, x in zip(predictions, batched_inputs, strict=True)
            for height, width in [prediction.image_size]
        ]

    def predict(self, images: Sequence[Tensor]) -> list["QueryPrediction"]:
        """Classes and masks of pictures (C, h, w), channels and units as ``pixel_mean``."""
        return self._predict(self._batch(images))

    def _batch(self, images: Sequence[Tensor]) -> ImageList:
        """Pictures normalised, and padded to one size."""
        normalized = [(x.to(self.device) - self.pixel_mean) / self.pixel_std for x in images]
        batch = ImageList.from_tensors(normalized, self.size_divisibility)
        if self.device.type == "cpu":  # where convolutions are faster so
            batch.tensor = batch.tensor.contiguous(memory_format=torch.channels_last)
        return batch

    def _predict(self, images: ImageList) -> list["QueryPrediction"]:
        outputs = self.query_outputs(images.tensor)
        self._tidy()
        class_logits, mask_logits = outputs["pred_logits"], outputs["pred_masks"]
        if mask_logits.dtype in (torch.float16, torch.bfloat16):  # areas overflow, scores tie
            class_logits, mask_logits = class_logits.float(), mask_logits.float()
        padded_size = tuple(images.tensor.shape[-2:])
        return [
            QueryPrediction(*logits, padded_size, image_size)
            for *logits, image_size in zip(
                class_logits, mask_logits, images.image_sizes, strict=True
            )
        ]

    def query_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """The head's outputs in inference, of a batch (B, C, H, W) as :meth:`_batch` makes it."""
        with self.autocast():
            return self.sem_seg_head(self.backbone(images))

    def _tidy(self) -> None:
        """On a CPU, hand back memory that is free: all of it if it is scarce, else an excess."""
        if self.device.type == "cpu":
            hand_back_memory(0 if self.test_low_memory else MOST_FREE)

    def autocast(self) -> AbstractContextManager:
        """What inference runs in: nothing, or the autocast of ``TEST.PRECISION``."""
        if self.test_precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.test_precision)

    def prepare_targets(
        self, batched_inputs: Sequence[Mapping[str, Any]], images: ImageList
    ) -> list[dict[str, Tensor]]:
        """Ground truth as the criterion takes it: ``labels`` (N,), ``masks`` (N, H, W) bool, and
        ``ignored`` (H, W) bool if the inputs have it.
        """
        height, width = images.tensor.shape[-2:]
        targets = []
        for x in batched_inputs:
            instances = x["instances"].to(self.device)
            masks = getattr(instances.gt_masks, "tensor", instances.gt_masks).bool()
            padding = (0, width - masks.shape[2], 0, height - masks.shape[1])
            target = {"labels": instances.gt_classes, "masks": F.pad(masks, padding)}
            if "ignored" in x:
                target["ignored"] = F.pad(x["ignored"].to(self.device), padding, value=True)
            targets.append(target)
        return targets

    def inference(
        self, prediction: "QueryPrediction", output_size: tuple[int, int]
    ) -> dict[str, Any]:
        """The segmentations of one picture, (height, width) large."""
        class_logits, mask_logits = prediction.class_logits, prediction.mask_logits
        resize = prediction.resize_to(output_size)
        result: dict[str, Any] = {}
        if self.semantic_on:
            result["sem_seg"] = self.semantic_scores(prediction, output_size).whole()
        if self.panoptic_on:
            result["panoptic_seg"] = panoptic_inference(
                class_logits,
                mask_logits,
                resize,
                thing_ids=self.thing_ids,
                object_mask_threshold=self.object_mask_threshold,
                overlap_threshold=self.overlap_threshold,
            )
        self._tidy()
        if self.instance_on:
            result["instances"] = instance_inference(
                class_logits,
                mask_logits,
                resize,
                topk=self.test_topk_per_image,
                # As published: stuff is no instance where the model also segments stuff.
                thing_ids=self.thing_ids if self.panoptic_on else None,
            )
        return result

    def semantic_scores(
        self, prediction: "QueryPrediction", output_size: tuple[int, int]
    ) -> RowMaps:
        """K class scores at every pixel, resized before or after they are formed."""
        if self.sem_seg_postprocess_before_inference:
            masks = prediction.resize_to(output_size)(prediction.mask_logits)
            return semantic_inference(prediction.class_logits, masks)
        scores = semantic_inference(prediction.class_logits, prediction.unpadded())
        return scores.resize(output_size)


class QueryPrediction(NamedTuple):
    """What the model says of one picture: Q pairs of class and mask.

    Attributes:
        class_logits: (Q, K + 1).
        mask_logits: (Q, h', w'), of the padded picture.
        padded_size: (H, W) of that.
        image_size: (h, w) of the picture before padding.
    """

    class_logits: Tensor
    mask_logits: Tensor
    padded_size: tuple[int, int]
    image_size: tuple[int, int]

    @property
    def device(self) -> torch.device:
        return self.mask_logits.device

    def to(self, device: torch.device | str) -> "QueryPrediction":
        """On another device; Detectron2 asks for it where a GPU's memory is not enough."""
        return self._replace(
            class_logits=self.class_logits.to(device), mask_logits=self.mask_logits.to(device)
        )

    def unpadded(self, mask_logits: Tensor | None = None) -> RowMaps:
        """Mask logits, by default all of them, at the size of the picture."""
        maps = RowMaps.of(self.mask_logits if mask_logits is None else mask_logits)
        return maps.resize(self.padded_size).crop(self.image_size)

    def resize_to(self, size: tuple[int, int]) -> Callable[[Tensor], RowMaps]:
        """What brings mask logits to another (height, width), see :mod:`.postprocessing`."""
        return lambda mask_logits: self.unpadded(mask_logits).resize(size)


def build_criterion(cfg: CfgNode) -> SetCriterion:
    """The losses and, with the same weights, the matching costs."""
    mask_former = cfg.MODEL.MASK_FORMER
    matcher = HungarianMatcher(
        cost_class=mask_former.CLASS_WEIGHT,
        cost_mask=mask_former.MASK_WEIGHT,
        cost_dice=mask_former.DICE_WEIGHT,
        num_points=mask_former.TRAIN_NUM_POINTS,
    )
    return SetCriterion(
        num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        matcher=matcher,
        weight_dict={
            "loss_ce": mask_former.CLASS_WEIGHT,
            "loss_mask": mask_former.MASK_WEIGHT,
            "loss_dice": mask_former.DICE_WEIGHT,
        },
        eos_coef=mask_former.NO_OBJECT_WEIGHT,
        deep_supervision=mask_former.DEEP_SUPERVISION,
        num_points=mask_former.TRAIN_NUM_POINTS,
        oversample_ratio=mask_former.OVERSAMPLE_RATIO,
        importance_sample_ratio=mask_former.IMPORTANCE_SAMPLE_RATIO,
    )


def thing_ids_of(cfg: CfgNode) -> list[int]:
    """Contiguous thing ids of the data set that inference is about, or of the training set.

    A set that does not tell counts all its classes as things.
    """
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        ids = MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id")
        if ids is not None:
            return sorted(ids.values())
    return list(range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES))
