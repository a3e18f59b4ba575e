import json
import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mask2former.data.catalog import register_dataset
from mask2former.data.panoptic_png import id2rgb, rgb2id
from mask2former.errors import DatasetError
from mask2former.evaluation import PanopticEvaluator, panoptic_quality

THING = {"id": 5, "name": "cat", "isthing": 1}
STUFF = {"id": 9, "name": "sky", "isthing": 0}


@pytest.fixture
def write(tmp_path):
    """Write panoptic annotations of one 4 x 4 picture; returns the json and the folder."""

    def write(name, ids, segments, categories=(THING, STUFF), image_id=3):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        ids = np.array(ids, dtype=np.int32)
        Image.fromarray(id2rgb(ids)).save(folder / "a.png")
        infos = [
            {
                "id": i,
                "category_id": c,
                "area": int((ids == i).sum()),
                "iscrowd": 0,
                "bbox": [0, 0, 4, 4],
            }
            for i, c in segments.items()
        ]
        content = {
            "images": [{"id": image_id, "file_name": "a.jpg", "height": 4, "width": 4}],
            "annotations": [{"image_id": image_id, "file_name": "a.png", "segments_info": infos}],
            "categories": list(categories),
        }
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        return path, folder

    return write


TRUTH = [[1, 1, 2, 2]] * 4
PREDICTION = [[1, 1, 1, 2]] * 4  # IoU of the cat 8/12, of the sky 4/8


def compare(truth, prediction):
    return panoptic_quality(truth[0], prediction[0], truth[1], prediction[1])


def test_hand_worked_case(write):
    result = compare(write("gt", TRUTH, {1: 5, 2: 9}), write("pred", PREDICTION, {1: 5, 2: 9}))
    # The cat matches (IoU 2/3 > 1/2): PQ = SQ = 2/3, RQ = 1. The sky's IoU of 1/2 is no match.
    assert result["Things"] == pytest.approx({"pq": 2 / 3, "sq": 2 / 3, "rq": 1.0, "n": 1})
    assert result["Stuff"] == pytest.approx({"pq": 0, "sq": 0, "rq": 0, "n": 1})
    assert result["All"]["pq"] == pytest.approx(1 / 3)
    assert result["per_class"]["cat"]["pq"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("kind, other", [("Things", "Stuff"), ("Stuff", "Things")])
def test_sets_of_things_or_stuff_only(write, kind, other):
    category = THING if kind == "Things" else STUFF
    truth = write("gt", [[1] * 4] * 4, {1: category["id"]}, [category])
    result = compare(truth, write("pred", [[1] * 4] * 4, {1: category["id"]}))
    assert result[kind]["pq"] == result["All"]["pq"] == 1
    assert math.isnan(result[other]["pq"])


def test_misfits_are_named(write, tmp_path):
    truth = write("gt", TRUTH, {1: 5, 2: 9})
    other = write("other", TRUTH, {1: 5, 2: 9}, image_id=4)
    with pytest.raises(DatasetError, match=r"other\.json has no prediction .* image id 3"):
        compare(truth, other)
    with pytest.raises(DatasetError, match=r"pred\.json: segment 1 of image id 3 .* 77"):
        compare(truth, write("pred", TRUTH, {1: 77, 2: 9}))
    with pytest.raises(DatasetError, match=r"pred\.json .*image 3: .*segment 2"):  # in the PNG only
        compare(truth, write("pred", TRUTH, {1: 5}))
    with pytest.raises(DatasetError, match=r"a\.png of image id 3 .*does not exist"):
        panoptic_quality(truth[0], truth[0], truth[1], tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"none\.json does not exist"):
        panoptic_quality(truth[0], tmp_path / "none.json", truth[1], truth[1])


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["annotations"].append(c["annotations"][0]), "two annotations of image id 3"),
        (
            lambda c: c["annotations"][0]["segments_info"].append({"id": 1, "category_id": 9}),
            "segment 1 of image id 3 is listed twice",
        ),
        (lambda c: c["annotations"][0]["segments_info"][0].pop("category_id"), "'category_id'"),
    ],
)
@pytest.mark.parametrize("side", ["gt", "pred"])
def test_ambiguous_annotations_are_refused(write, side, change, message):
    """Scored as they are, most of these would give a number, and a wrong one."""
    files = {name: write(name, TRUTH, {1: 5, 2: 9}) for name in ("gt", "pred")}
    edit(files[side][0], change)
    with pytest.raises(DatasetError, match=rf"{side}\.json.*{message}"):
        compare(files["gt"], files["pred"])


def test_truth_of_unknown_categories_is_refused(write):
    """It would be left out of the score in silence."""
    truth = write("gt", TRUTH, {1: 5, 2: 77})
    with pytest.raises(DatasetError, match=r"gt\.json: segment 2 of image id 3 has category_id 77"):
        compare(truth, write("pred", TRUTH, {1: 5, 2: 9}))
    truth = write("gt", TRUTH, {1: 5, 2: 9}, [THING, {"id": 9, "name": "sky"}])
    with pytest.raises(DatasetError, match=r"gt\.json: category .*sky.* isthing"):
        compare(truth, truth)


def test_pictures_of_other_sizes_and_binary_files_are_named(write):
    truth = write("gt", TRUTH, {1: 5, 2: 9})
    with pytest.raises(DatasetError, match=r"pred\.json .*image 3: .*4×4 .*4×3"):
        compare(truth, write("pred", [[1, 1, 2]] * 4, {1: 5, 2: 9}))
    with pytest.raises(DatasetError, match=r"a\.png is no valid JSON"):
        compare(truth, (truth[1] / "a.png", truth[1]))


def test_crowds_and_void_are_no_false_positives(write):
    truth = write("gt", [[1, 1, 2, 0]] * 4, {1: 5, 2: 9})
    edit(truth[0], lambda c: c["annotations"][0]["segments_info"][0].update(iscrowd=1))
    # Segment 1 lies in the crowd and segment 3 on void: neither counts. The sky matches.
    prediction = write("pred", [[1, 1, 2, 3]] * 4, {1: 5, 2: 9, 3: 5})
    result = compare(truth, prediction)
    assert result["Stuff"]["pq"] == 1 and result["Stuff"]["n"] == 1
    assert result["Things"]["n"] == 0 and math.isnan(result["Things"]["pq"])


def test_image_ids_may_be_names(write):
    """As in Cityscapes; hotcoco wants numbers."""
    truth = write("gt", TRUTH, {1: 5, 2: 9}, image_id="aachen_000000")
    prediction = write("pred", PREDICTION, {1: 5, 2: 9}, image_id="aachen_000000")
    assert compare(truth, prediction)["Things"]["pq"] == pytest.approx(2 / 3)
    with pytest.raises(DatasetError, match=r"pred\.json .*image aachen_000000: .*4×4"):
        compare(truth, write("pred", [[1, 1, 2]] * 4, {1: 5, 2: 9}, image_id="aachen_000000"))


def test_known_numbers(shared_data):
    coco = shared_data / "coco"
    expected = json.loads((coco / "EXPECTED_PQ.json").read_text())
    gt_json = coco / "annotations" / "panoptic_val2017.json"
    truth = (gt_json, gt_json.with_suffix(""))
    shifted = (coco / "pred_shift8" / "predictions.json", coco / "pred_shift8" / "panoptic_png")
    for prediction, name in ((truth, "GT vs GT"), (shifted, "shift8")):
        result = compare(truth, prediction)
        for group, figures in expected[name].items():
            assert result[group] == pytest.approx(figures, abs=1e-6)


@pytest.fixture
def coco_5(shared_data):
    """The five COCO pictures as a registered data set."""
    root = shared_data / "coco"
    entry = {
        "format": "coco_panoptic",
        "image_root": str(root / "val2017"),
        "panoptic_json": str(root / "annotations" / "panoptic_val2017.json"),
        "panoptic_root": str(root / "annotations" / "panoptic_val2017"),
    }
    register_dataset("test_coco_5", entry)
    return root


def test_evaluator_reproduces_the_known_numbers(coco_5, tmp_path):
    expected = json.loads((coco_5 / "EXPECTED_PQ.json").read_text())["shift8"]
    predictions = json.loads((coco_5 / "pred_shift8" / "predictions.json").read_text())
    predictions = {a["image_id"]: a for a in predictions["annotations"]}
    contiguous = MetadataCatalog.get("test_coco_5").stuff_dataset_id_to_contiguous_id
    things = set(MetadataCatalog.get("test_coco_5").thing_dataset_id_to_contiguous_id)
    evaluator = PanopticEvaluator(dataset_name="test_coco_5", output_dir=tmp_path)
    for record in DatasetCatalog.get("test_coco_5"):
        annotation = predictions[record["image_id"]]
        png = Image.open(coco_5 / "pred_shift8" / "panoptic_png" / annotation["file_name"])
        ids = torch.from_numpy(rgb2id(np.asarray(png)))
        segments = [
            {
                "id": s["id"],
                "category_id": contiguous[s["category_id"]],
                "isthing": s["category_id"] in things,
            }
            for s in annotation["segments_info"]
        ]
        evaluator.process([record], [{"panoptic_seg": (ids, segments)}])
    figures = evaluator.evaluate()["panoptic_seg"]
    for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for key in ("pq", "sq", "rq"):
            expected_figure = 100 * expected[group][key]
            assert figures[key.upper() + suffix] == pytest.approx(expected_figure, abs=1e-4)
    assert (tmp_path / "predictions.json").is_file()
    assert len(list((tmp_path / "panoptic_png").iterdir())) == 5


def test_evaluator_decodes_labels_without_segments(sample_root):
    """class * label_divisor + instance, as Panoptic-DeepLab gives it."""
    metadata = MetadataCatalog.get("sample_val")
    evaluator = PanopticEvaluator(dataset_name="sample_val")
    for record in DatasetCatalog.get("sample_val"):
        ids = rgb2id(np.asarray(Image.open(record["pan_seg_file_name"])))
        labels = np.full(ids.shape, -1, dtype=np.int64)
        for instance, segment in enumerate(record["segments_info"]):
            if not segment["iscrowd"]:
                mask = ids == segment["id"]
                labels[mask] = segment["category_id"] * metadata.label_divisor + instance
        evaluator.process([record], [{"panoptic_seg": (torch.from_numpy(labels), None)}])
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] == pytest.approx(100)


@pytest.fixture
def two_folders(tmp_path):
    """A registered set whose two pictures, of different contents, are x/a.jpg and y/a.jpg."""
    name = "test_two_folders"
    images = {1: ("x/a.png", TRUTH), 2: ("y/a.png", PREDICTION)}
    annotations = []
    for image_id, (file_name, ids) in images.items():
        path = tmp_path / "gt" / file_name
        path.parent.mkdir(parents=True)
        ids = np.array(ids, dtype=np.int32)
        Image.fromarray(id2rgb(ids)).save(path)
        infos = [
            {"id": i, "category_id": c, "area": int((ids == i).sum()), "iscrowd": 0}
            for i, c in ((1, 5), (2, 9))
        ]
        annotations.append({"image_id": image_id, "file_name": file_name, "segments_info": infos})
    content = {"annotations": annotations, "categories": [THING, STUFF]}
    (tmp_path / "gt.json").write_text(json.dumps(content))
    MetadataCatalog.get(name).set(
        panoptic_json=str(tmp_path / "gt.json"),
        panoptic_root=str(tmp_path / "gt"),
        thing_dataset_id_to_contiguous_id={5: 0},
        stuff_dataset_id_to_contiguous_id={5: 0, 9: 1},
    )
    yield name
    MetadataCatalog.remove(name)


SEGMENTS = [
    {"id": 1, "category_id": 0, "isthing": True},
    {"id": 2, "category_id": 1, "isthing": False},
]


def test_pictures_of_one_name_are_kept_apart(two_folders, tmp_path):
    evaluator = PanopticEvaluator(dataset_name=two_folders, output_dir=tmp_path / "kept")
    for _ in range(2):  # a second evaluation of the same evaluator starts afresh
        evaluator.reset()
        for image_id, folder, ids in ((1, "x", TRUTH), (2, "y", PREDICTION)):
            record = {"image_id": image_id, "file_name": f"{folder}/a.jpg"}
            output = {"panoptic_seg": (torch.tensor(ids, dtype=torch.int32), SEGMENTS)}
            evaluator.process([record], [output])
        figures = evaluator.evaluate()["panoptic_seg"]
        assert figures["PQ"] == figures["PQ-cat"] == figures["PQ-sky"] == 100
    names = sorted(path.name for path in (tmp_path / "kept" / "panoptic_png").iterdir())
    assert names == ["a.png", "a_2.png"]


def test_a_new_name_may_be_taken_too(two_folders, tmp_path):
    """x/a.jpg would become a_2.png, which another picture already is."""
    evaluator = PanopticEvaluator(dataset_name=two_folders, output_dir=tmp_path / "kept")
    evaluator.reset()
    for image_id, name in ((7, "a_2"), (1, "a"), (2, "a")):
        output = {"panoptic_seg": (torch.tensor(TRUTH, dtype=torch.int32), SEGMENTS)}
        evaluator.process([{"image_id": image_id, "file_name": f"{name}.jpg"}], [output])
    evaluator.evaluate()
    names = sorted(path.name for path in (tmp_path / "kept" / "panoptic_png").iterdir())
    assert names == ["a.png", "a_2.png", "a_2_2.png"]


@pytest.mark.parametrize("class_id, isthing", [(7, False), (1, True)])
def test_classes_that_the_set_does_not_have_are_named(two_folders, class_id, isthing):
    evaluator = PanopticEvaluator(dataset_name=two_folders)
    segments = [{"id": 1, "category_id": class_id, "isthing": isthing}]
    output = {"panoptic_seg": (torch.ones(4, 4, dtype=torch.int32), segments)}
    with pytest.raises(DatasetError, match=rf"class {class_id} as .*test_two_folders"):
        evaluator.process([{"image_id": 1, "file_name": "x/a.jpg"}], [output])
