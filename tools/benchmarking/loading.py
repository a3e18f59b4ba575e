"""``benchmark.py loading``: pictures per second of a mapper with large-scale jitter.

Beside it the published order of work: Detectron2's functions, one mask after another, boxes from
masks. Both see the same random numbers, and their outputs are compared.
"""

import argparse
import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pycocotools.mask
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, polygons_to_bitmask

from mask2former import load_config
from mask2former.data import MAPPERS
from mask2former.data.augmentation import build_large_scale_jitter
from mask2former.data.panoptic_png import rgb2id
from mask2former.errors import UserError, positive

from . import Report, add_common_arguments, measure

Mapper = Callable[[dict[str, Any]], dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--dataset", help="default: the first of DATASETS.TRAIN")
    parser.add_argument("--pictures", type=positive, default=20)
    add_common_arguments(parser, repeats=5)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides of the config")


def run(args: argparse.Namespace, report: Report) -> None:
    cfg = load_config(args.config_file, args.opts)
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if not name.endswith("_lsj"):
        raise UserError(
            f"INPUT.DATASET_MAPPER_NAME is {name}; this compares the coco_*_lsj mappers"
        )
    records = DatasetCatalog.get(args.dataset or cfg.DATASETS.TRAIN[0])[: args.pictures]
    mappers = {"Mask2Former": MAPPERS[name](cfg), "published order": published_order(cfg, name)}
    outputs = {key: mapped(mapper, records) for key, mapper in mappers.items()}
    times = {
        key: measure(lambda m=mapper: mapped(m, records), args.repeats)
        for key, mapper in mappers.items()
    }
    report.machine()
    rows = [
        {"": key, f"ms for {len(records)}": time, "a second": 1000 * len(records) / time.median}
        for key, time in times.items()
    ]
    report.table("loading", rows, floats=".1f")
    report.figures("ratio {ratio:.2f}", ratio=rows[0]["a second"] / rows[1]["a second"])
    report_differences(*outputs.values(), report)


def mapped(mapper: Mapper, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    np.random.seed(0)
    return [mapper(record) for record in records]


def report_differences(
    ours: list[dict[str, Any]], theirs: list[dict[str, Any]], report: Report
) -> None:
    pictures = masks = pixels = 0
    for x, y in zip(ours, theirs):
        pictures += not torch.equal(x["image"], y["image"])
        if x["instances"].gt_classes.tolist() != y["instances"].gt_classes.tolist():
            raise UserError(f"{x['file_name']}: the mappers found different objects")
        different = x["instances"].gt_masks ^ y["instances"].gt_masks.bool()
        masks += int(different.flatten(1).any(1).sum())
        pixels += int(different.sum())
    report.figures(
        "{pictures_that_differ} of {pictures} pictures differ, {masks_that_differ} of {masks} "
        "masks,\nin {pixels_that_differ} pixels of {pixels}",
        pictures_that_differ=pictures,
        pictures=len(ours),
        masks_that_differ=masks,
        masks=sum(len(x["instances"]) for x in ours),
        pixels_that_differ=pixels,
        pixels=sum(int(x["instances"].gt_masks.sum()) for x in ours),
    )


def published_order(cfg: CfgNode, name: str) -> Mapper:
    """A plain mapper with Detectron2's functions, in the order that the published ones work in."""
    augmentations = build_large_scale_jitter(cfg, padding=128)
    ground_truth = plain_segments if "panoptic" in name else plain_annotations

    def mapper(record: dict[str, Any]) -> dict[str, Any]:
        record = copy.deepcopy(record)
        image = detection_utils.read_image(record["file_name"], format=cfg.INPUT.FORMAT)
        detection_utils.check_image_size(record, image)
        image, transforms = T.apply_transform_gens(augmentations, image)
        record["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        record["instances"] = ground_truth(record, transforms, image.shape[:2])
        return record

    return mapper


def plain_segments(
    record: dict[str, Any], transforms: T.TransformList, size: tuple[int, int]
) -> detection_utils.Instances:
    png = detection_utils.read_image(record["pan_seg_file_name"], "RGB")
    ids = rgb2id(transforms.apply_segmentation(png))
    segments = [s for s in record["segments_info"] if not s.get("iscrowd", 0)]
    result = detection_utils.Instances(size)
    result.gt_classes = torch.tensor([s["category_id"] for s in segments])
    masks = [torch.from_numpy(np.ascontiguousarray(ids == s["id"])) for s in segments]
    bit_masks = BitMasks(torch.stack(masks) if masks else torch.zeros(0, *size))
    result.gt_masks = bit_masks.tensor
    result.gt_boxes = bit_masks.get_bounding_boxes()
    return result


def plain_annotations(
    record: dict[str, Any], transforms: T.TransformList, size: tuple[int, int]
) -> detection_utils.Instances:
    masks, classes = [], []
    for annotation in record["annotations"]:
        if annotation.get("iscrowd", 0):
            continue
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, list):
            moved = detection_utils.transform_instance_annotations(
                {"bbox_mode": BoxMode.XYXY_ABS, **annotation}, transforms, size
            )["segmentation"]
            moved = [polygon for polygon in moved if len(polygon) >= 6]
            mask = polygons_to_bitmask(moved, *size) if moved else np.zeros(size, bool)
        else:
            mask = transforms.apply_segmentation(pycocotools.mask.decode(segmentation))
        masks.append(torch.from_numpy(np.ascontiguousarray(mask.astype(bool))))
        classes.append(annotation["category_id"])
    bit_masks = BitMasks(torch.stack(masks) if masks else torch.zeros(0, *size))
    boxes = bit_masks.get_bounding_boxes()
    result = detection_utils.Instances(size)
    result.gt_classes = torch.tensor(classes, dtype=torch.int64)
    result.gt_masks, result.gt_boxes = bit_masks.tensor, boxes
    return result[boxes.nonempty()]
