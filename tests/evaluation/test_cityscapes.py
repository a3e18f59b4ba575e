"""Cityscapes' own scripts on a tiny tree in their layout, through the evaluators."""

import importlib.util

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from PIL import Image

from mask2former.data.panoptic_png import id2rgb
from mask2former.errors import ConfigError
from mask2former.evaluation import build_evaluator
from mask2former.evaluation.report import save_json

ROAD, CAR = 7, 26  # Cityscapes' label ids; their train ids are 0 and 13
NAMES = "road sidewalk building wall fence pole trafficlight trafficsign vegetation terrain sky "
NAMES = [*NAMES.split(), "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]

needs_scripts = pytest.mark.skipif(
    importlib.util.find_spec("cityscapesscripts") is None, reason="cityscapesscripts is missing"
)


@pytest.fixture
def city(tmp_path):
    """A registered panoptic set of one picture: road above, one car of 64 x 128 below."""
    folder = tmp_path / "gtFine" / "aachen"
    folder.mkdir(parents=True)
    stem = "aachen_000000_000019"
    labels = np.full((128, 128), ROAD, np.uint8)
    labels[64:] = CAR
    Image.fromarray(labels).save(folder / f"{stem}_gtFine_labelIds.png")
    instances = np.where(labels == CAR, CAR * 1000, ROAD).astype(np.uint16)
    Image.fromarray(instances).save(folder / f"{stem}_gtFine_instanceIds.png")
    panoptic = tmp_path / "panoptic"
    panoptic.mkdir()
    Image.fromarray(id2rgb(instances.astype(np.int32))).save(panoptic / "a.png")
    infos = [
        {"id": ROAD, "category_id": ROAD, "area": 8192, "iscrowd": 0},
        {"id": CAR * 1000, "category_id": CAR, "area": 8192, "iscrowd": 0},
    ]
    content = {
        "images": [{"id": stem, "file_name": f"{stem}.png", "height": 128, "width": 128}],
        "annotations": [{"image_id": stem, "file_name": "a.png", "segments_info": infos}],
        "categories": [
            {"id": ROAD, "name": "road", "isthing": 0},
            {"id": CAR, "name": "car", "isthing": 1},
        ],
    }
    save_json(content, tmp_path / "panoptic.json")
    record = {"file_name": f"leftImg8bit/aachen/{stem}_leftImg8bit.png", "image_id": stem}
    name = "test_city"
    DatasetCatalog.register(name, lambda: [record])
    MetadataCatalog.get(name).set(
        evaluator_type="cityscapes_panoptic_seg",
        gt_dir=str(tmp_path / "gtFine"),
        panoptic_json=str(tmp_path / "panoptic.json"),
        panoptic_root=str(panoptic),
        thing_classes=NAMES,  # of all classes, as in Detectron2
        stuff_classes=NAMES,
        thing_dataset_id_to_contiguous_id={CAR: 13},
        stuff_dataset_id_to_contiguous_id={ROAD: 0},
    )
    yield name, record
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@needs_scripts
@pytest.mark.parametrize("rows, iou", [(64, 1.0), (48, 0.75)])
def test_official_scores(tiny_cfg, city, tmp_path, rows, iou):
    """A predicted car of ``rows`` of the true 64 rows; the road takes the rest."""
    name, record = city
    evaluator = build_evaluator(tiny_cfg, name, str(tmp_path / "out"))
    evaluator.reset()
    car = torch.zeros(128, 128, dtype=torch.bool)
    car[128 - rows :] = True
    semantic = torch.zeros(19, 128, 128)
    semantic[0], semantic[13] = (~car).float(), car.float()
    instances = Instances((128, 128))
    instances.pred_masks, instances.scores = car[None], torch.ones(1)
    instances.pred_classes = torch.tensor([13])
    segments = [
        {"id": 1, "category_id": 0, "isthing": False},
        {"id": 2, "category_id": 13, "isthing": True},
    ]
    output = {
        "sem_seg": semantic,
        "instances": instances,
        "panoptic_seg": ((1 + car.int()).int(), segments),
    }
    evaluator.process([record], [output])
    results = evaluator.evaluate()
    road = 64 / (128 - rows)
    assert results["sem_seg"]["IoU"] == pytest.approx(100 * (iou + road) / 2)
    # COCO's ten thresholds, of which an IoU of 0.75 reaches 0.5 to 0.7.
    assert results["segm"]["AP"] == pytest.approx(100 if iou == 1 else 50, abs=1e-3)
    assert results["segm"]["AP50"] == pytest.approx(100, abs=1e-3)
    assert results["panoptic_seg"]["PQ_th"] == pytest.approx(100 * iou)
    assert results["panoptic_seg"]["PQ_st"] == pytest.approx(100 * road)


def test_missing_scripts_are_named(tiny_cfg, city, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="test_city .*pip install cityscapesscripts"):
        build_evaluator(tiny_cfg, city[0], str(tmp_path))
