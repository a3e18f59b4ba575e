import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluators
from detectron2.structures import Boxes, Instances

from mask2former.errors import ConfigError, DatasetError
from mask2former.evaluation import (
    InstanceEvaluator,
    PanopticEvaluator,
    SemanticEvaluator,
    build_evaluator,
)
from mask2former.evaluation.instance import score_instances
from mask2former.evaluation.instance_evaluator import instances_of_panoptic


def kinds(evaluator):
    members = evaluator._evaluators if isinstance(evaluator, DatasetEvaluators) else [evaluator]
    return [type(member) for member in members]


def test_panoptic_sets_get_what_the_model_predicts(sample_cfg, tmp_path):
    test = sample_cfg.MODEL.MASK_FORMER.TEST
    everything = [PanopticEvaluator, InstanceEvaluator, SemanticEvaluator]
    assert kinds(build_evaluator(sample_cfg, "sample_val", str(tmp_path))) == everything
    test.SEMANTIC_ON = test.INSTANCE_ON = False
    assert kinds(build_evaluator(sample_cfg, "sample_val", str(tmp_path))) == everything[:1]
    test.PANOPTIC_ON = False
    with pytest.raises(ConfigError, match=r"sample_val .*cannot be evaluated"):
        build_evaluator(sample_cfg, "sample_val", str(tmp_path))


def test_unknown_types_are_refused(sample_cfg, tmp_path):
    with pytest.raises(ConfigError, match="evaluator_type None"):
        build_evaluator(sample_cfg, "no_such_set", str(tmp_path))
    MetadataCatalog.remove("no_such_set")


def test_ground_truth_scores_full_marks(sample_cfg, sample_root, tmp_path):
    """Boxes, masks and classes of the annotations themselves, as predictions."""
    sample_cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = False
    evaluator = build_evaluator(sample_cfg, "sample_val", str(tmp_path), boundary=True)
    evaluator.reset()
    contiguous = MetadataCatalog.get("sample_val").thing_dataset_id_to_contiguous_id
    from pycocotools.coco import COCO

    truth = COCO(str(sample_root / "annotations" / "instances_val.json"))
    for record in DatasetCatalog.get("sample_val"):
        size = (record["height"], record["width"])
        anns = [
            a for a in truth.loadAnns(truth.getAnnIds([record["image_id"]])) if not a["iscrowd"]
        ]
        instances = Instances(size)
        masks = [torch.from_numpy(truth.annToMask(a)).bool() for a in anns]
        instances.pred_masks = torch.stack(masks) if masks else torch.zeros(0, *size).bool()
        boxes = torch.tensor([a["bbox"] for a in anns], dtype=torch.float32).view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        instances.pred_boxes = Boxes(boxes)
        instances.scores = torch.ones(len(anns))
        instances.pred_classes = torch.tensor([contiguous[a["category_id"]] for a in anns]).long()
        semantic = torch.from_numpy(semantic_truth(record)).long()
        scores = torch.nn.functional.one_hot(semantic.clamp(max=9), 10)[..., :9].permute(2, 0, 1)
        evaluator.process([record], [{"instances": instances, "sem_seg": scores}])
    results = evaluator.evaluate()
    assert results["segm"]["AP"] == pytest.approx(100)
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["boundary"]["AP"] == pytest.approx(100)
    assert results["sem_seg"]["mIoU"] == results["sem_seg"]["BoundaryIoU"] == pytest.approx(100)


def semantic_truth(record):
    from mask2former.data.picture import read_label_map

    return read_label_map(record["sem_seg_file_name"])


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("coco_panoptic_seg", [PanopticEvaluator, InstanceEvaluator, SemanticEvaluator]),
        ("ade20k_panoptic_seg", [PanopticEvaluator, InstanceEvaluator, SemanticEvaluator]),
        (
            "mapillary_vistas_panoptic_seg",
            [PanopticEvaluator, InstanceEvaluator, SemanticEvaluator],
        ),
        ("sem_seg", [SemanticEvaluator]),
        ("coco", [InstanceEvaluator]),
    ],
)
def test_published_types(sample_cfg, copy_of_sample, tmp_path, kind, expected):
    name = copy_of_sample(evaluator_type=kind)
    evaluator = build_evaluator(sample_cfg, name, str(tmp_path), boundary=True)
    assert kinds(evaluator) == expected


@pytest.fixture
def copy_of_sample(sample_root):
    """Register the sample's validation set once more, with other metadata."""
    name = "test_copy_of_sample"

    def register(**changes):
        sample = MetadataCatalog.get("sample_val").as_dict()
        MetadataCatalog.get(name).set(**{**sample, "name": name, **changes})
        DatasetCatalog.register(name, lambda: DatasetCatalog.get("sample_val"))
        return name

    yield register
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_a_panoptic_set_needs_no_instances_json(copy_of_sample, tmp_path):
    name = copy_of_sample(json_file=str(tmp_path / "nowhere.json"))
    evaluator = InstanceEvaluator(dataset_name=name)
    figures = evaluator.evaluate()
    assert figures["segm"]["AP"] == 0 and len(evaluator.truth["annotations"]) > 0


def test_instances_json_and_things_of_panoptic_are_one_truth(sample_root):
    """The sample has both; without the json the truth comes from the PNG files."""
    derived = instances_of_panoptic("sample_val")
    given = json.loads((sample_root / "annotations" / "instances_val.json").read_text())

    def objects(content):
        return sorted((a["image_id"], a["category_id"], a["area"]) for a in content["annotations"])

    assert objects(derived) == objects(given)
    categories = {c["id"]: c["name"] for c in given["categories"]}
    assert {c["id"]: c["name"] for c in derived["categories"]} == categories
    results = [{**a, "score": 1.0} for a in derived["annotations"] if not a["iscrowd"]]
    for iou_type in ("bbox", "segm", "boundary"):
        assert score_instances(derived, results, iou_type)["AP"] == pytest.approx(1)


def test_no_predictions_at_all(sample_cfg, tmp_path):
    sample_cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON = False
    evaluator = build_evaluator(sample_cfg, "sample_val", str(tmp_path))
    evaluator.reset()
    for record in DatasetCatalog.get("sample_val"):
        instances = Instances((record["height"], record["width"]))
        instances.pred_masks = torch.zeros(0, record["height"], record["width"]).bool()
        instances.pred_boxes = Boxes(torch.zeros(0, 4))
        instances.scores, instances.pred_classes = torch.zeros(0), torch.zeros(0).long()
        empty = torch.zeros(record["height"], record["width"], dtype=torch.int32)
        evaluator.process([record], [{"instances": instances, "panoptic_seg": (empty, [])}])
    results = evaluator.evaluate()
    assert results["panoptic_seg"]["PQ"] == 0


@pytest.fixture
def coco_set(tmp_path):
    """Register a COCO instances set of one object; the object's id is 0, as many tools have it."""
    name = "test_coco_set"
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 8, "width": 8}],
        "annotations": [
            {"id": 0, "image_id": 1, "category_id": 30, "bbox": [0, 0, 4, 4], "area": 16,
             "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]}
        ],
        "categories": [{"id": 30, "name": "nut"}, {"id": 70, "name": "date"}],
    }  # fmt: skip
    (tmp_path / "instances.json").write_text(json.dumps(content))
    MetadataCatalog.get(name).set(
        json_file=str(tmp_path / "instances.json"),
        evaluator_type="coco",
        thing_classes=["nut", "date"],
        thing_dataset_id_to_contiguous_id={30: 0, 70: 1},
    )
    yield name
    MetadataCatalog.remove(name)


def test_objects_of_id_0_count(sample_cfg, coco_set, tmp_path):
    evaluator = build_evaluator(sample_cfg, coco_set, str(tmp_path))
    evaluator.reset()
    instances = Instances((8, 8))
    instances.pred_masks = torch.zeros(1, 8, 8).bool()
    instances.pred_masks[:, :4, :4] = True
    instances.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, 4.0, 4.0]]))
    instances.scores, instances.pred_classes = torch.ones(1), torch.zeros(1).long()
    evaluator.process([{"image_id": 1}], [{"instances": instances}])
    results = evaluator.evaluate()
    assert results["segm"]["AP-nut"] == results["bbox"]["AP-nut"] == pytest.approx(100)
    saved = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert saved[0]["category_id"] == 30 and saved[0]["bbox"] == [0, 0, 4, 4]


def test_an_instances_json_of_other_categories_is_refused(sample_cfg, coco_set, tmp_path):
    metadata = MetadataCatalog.get(coco_set)
    path = tmp_path / "instances.json"
    content = json.loads(path.read_text())
    content["categories"].append({"id": 90, "name": "table"})
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"instances\.json .*test_coco_set .*\[90\]"):
        build_evaluator(sample_cfg, metadata.name, str(tmp_path))
