import logging
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from mask2former.checkpoint import load_weights, read_state_dict
from mask2former.checkpoint.adapt import match_classes
from mask2former.checkpoint.names import detect_layout, to_current_names
from mask2former.errors import ConfigError, DatasetError
from mask2former.inference import Predictor
from mask2former.trainer import Trainer, evaluate

PREDICTOR = "sem_seg_head.predictor."


@pytest.fixture
def build(tiny_cfg):
    def build(seed=0, **changes):
        cfg = tiny_cfg.clone()
        cfg.merge_from_list([x for pair in changes.items() for x in pair])
        torch.manual_seed(seed)
        return build_model(cfg)

    return build


def save(path, content):
    if path.suffix == ".pkl":
        arrays = {name: tensor.numpy() for name, tensor in content.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "third_party"}))
    else:
        torch.save(content, path)
    return str(path)


def first_names(state):
    """The names of the published code's first version."""

    def old(name):
        name = name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.")
        return name.replace("query_feat", "static_query")

    return {old(name): tensor for name, tensor in state.items()}


def with_metadata(state, version):
    state = OrderedDict(state)
    state._metadata = OrderedDict({"sem_seg_head": {"version": version}})
    return state


LAYOUTS = {
    "plain.pth": lambda state: dict(state),
    "metadata.pth": lambda state: {"model": with_metadata(state, 2)},
    "metadata of version 1, new names.pth": lambda state: {"model": with_metadata(state, 1)},
    "v1.pth": lambda state: {"model": first_names(state)},
    "v1 with metadata.pth": lambda state: {"model": with_metadata(first_names(state), 2)},
    "numpy.pkl": lambda state: state,
    "numpy v1.pkl": first_names,
    "ddp.pth": lambda state: {"model": {f"module.{n}": t for n, t in state.items()}},
    "lightning.pth": lambda state: {"state_dict": {f"model.{n}": t for n, t in state.items()}},
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_layout_loads_whole(build, tmp_path, kind):
    source, model = build(seed=1), build(seed=2)
    path = save(tmp_path / kind, LAYOUTS[kind](source.state_dict()))
    report = load_weights(model, path, complete=True)
    assert all(loaded == total > 0 for loaded, total in report.loaded.values())
    assert not (report.missing or report.unexpected or report.mismatched)
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_safetensors(build, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    source, model = build(seed=1), build(seed=2)
    safetensors.save_file(source.state_dict(), tmp_path / "x.safetensors")
    load_weights(model, str(tmp_path / "x.safetensors"), complete=True)
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_what_is_missing_left_over_or_of_another_shape(build, tmp_path, caplog):
    state = build(seed=1).state_dict()
    name = f"{PREDICTOR}mask_embed.layers.0.weight"
    del state[f"{PREDICTOR}decoder_norm.bias"]
    state[name] = state[name][:5]
    state["sem_seg_head.predictor.extra"] = torch.zeros(1)
    path = save(tmp_path / "x.pth", state)
    with caplog.at_level(logging.INFO, logger="mask2former"):
        report = load_weights(build(), path)
    assert report.missing == [f"{PREDICTOR}decoder_norm.bias"]
    assert report.unexpected == ["sem_seg_head.predictor.extra"]
    assert list(report.mismatched) == [name]
    loaded, total = report.loaded["sem_seg_head.predictor"]
    assert total - loaded == 32 + 32 * 32
    assert report.loaded["backbone"][0] == report.loaded["backbone"][1]
    assert "100.0 %" in caplog.text and "decoder_norm.bias" in caplog.text
    with pytest.raises(ConfigError, match=r"x\.pth does not hold this model.*2 parameters"):
        load_weights(build(), path, complete=True)


def test_backbones_alone(build, tmp_path):
    """As Detectron2's ImageNet weights: without the prefix, with a classifier."""
    source = build(seed=1).backbone.state_dict()
    content = {n: t for n, t in source.items() if "num_batches" not in n}
    content |= {"fc1000.weight": torch.zeros(3, 4)}
    path = save(tmp_path / "R-50.pkl", content)
    model = build(seed=2)
    report = load_weights(model, path)
    assert report.loaded["backbone"][0] == report.loaded["backbone"][1] > 0
    assert report.loaded["sem_seg_head.predictor"][0] == 0
    for name, tensor in content.items():
        if name != "fc1000.weight":
            assert torch.equal(model.backbone.state_dict()[name], tensor)
    with pytest.raises(ConfigError, match="nothing of the heads"):
        load_weights(model, path, complete=True)


@pytest.mark.parametrize("kind", ["bare", "blobs", "author"])
def test_weights_of_detectron(tmp_path, kind):
    """Caffe2's names, with or without an author."""
    blobs = {
        "conv1_w": np.full((8, 3, 7, 7), 2, "f4"),
        "res2_0_branch2a_w": np.full((8, 8, 1, 1), 3, "f4"),
        "conv1_w_momentum": np.zeros((8, 3, 7, 7), "f4"),
    }
    content = {"bare": blobs, "blobs": {"blobs": blobs}}.get(kind)
    content = content or {"model": blobs, "__author__": "Caffe2"}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    names = ("backbone.stem.conv1.weight", "backbone.res2.0.conv1.weight")
    shapes = ((8, 3, 7, 7), (8, 8, 1, 1))
    model_state = {name: torch.zeros(shape) for name, shape in zip(names, shapes, strict=True)}
    state = to_current_names(read_state_dict(tmp_path / "x.pkl"), model_state)
    assert {name: tensor.mean().item() for name, tensor in state.items()} == {
        names[0]: 2,
        names[1]: 3,
    }


def test_the_weight_of_no_object_is_the_configurations(build, tmp_path):
    path = save(tmp_path / "x.pth", build().state_dict())
    model = build(**{"MODEL.MASK_FORMER.NO_OBJECT_WEIGHT": 0.5})
    report = load_weights(model, path, complete=True)
    assert model.criterion.empty_weight[-1] == 0.5
    assert not report.unexpected


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 9}, "number 6, .*NUM_OBJECT_QUERIES is 9"),
        ({"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 3}, "is for 9, .*NUM_CLASSES is 3"),
        ({"MODEL.MASK_FORMER.HIDDEN_DIM": 64}, "parameters are missing or have another shape"),
    ],
)
def test_a_refusal_names_the_key(build, tmp_path, changes, message):
    path = save(tmp_path / "x.pth", build().state_dict())
    with pytest.raises(ConfigError, match=message):
        load_weights(build(**changes), path, complete=True)


def test_layouts_are_told_by_names():
    assert detect_layout(["model.pixel_level_module.encoder.x"]) == "huggingface"
    assert detect_layout(["module.sem_seg_head.x", "module.backbone.y"]) == "mask2former"
    assert detect_layout(["conv1.weight", "layer1.0.conv1.weight"]) == "torchvision"
    swin = ["layers.0.blocks.0.attn.qkv.weight"]
    assert detect_layout([*swin, "layers.0.downsample.norm.weight"]) == "swin"
    assert detect_layout([*swin, "layers.1.downsample.norm.weight"]) == "timm"
    assert detect_layout(["stem.conv1.weight"]) == "detectron2"


def test_rows_of_the_class_head_by_name(build, tmp_path):
    source = build(seed=1, **{"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 4})
    model = build(seed=2, **{"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 3})
    fresh = model.state_dict()[f"{PREDICTOR}class_embed.weight"].clone()
    content = {
        "model": source.state_dict(),
        "class_names": ["cat", "Car", "wall-other-merged", "a"],
    }
    report = load_weights(
        model, save(tmp_path / "x.pth", content), class_names=["wall", "boat", "auto, car"]
    )
    weight = model.state_dict()[f"{PREDICTOR}class_embed.weight"]
    expected = source.state_dict()[f"{PREDICTOR}class_embed.weight"]
    assert torch.equal(weight[[0, 2, 3]], expected[[2, 1, 4]])  # the last is "no object"
    assert torch.equal(weight[1], fresh[1])
    assert report.notes == ["class head: 2 of 3 rows by name (wall, auto, car); 1 new (boat)"]
    assert len(model.criterion.empty_weight) == 4


@pytest.mark.parametrize("names", [None, ["a", "b", "c"]])
def test_a_class_head_without_names_is_initialised_anew(build, tmp_path, names):
    model = build(seed=2, **{"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 3})
    before = model.state_dict()[f"{PREDICTOR}class_embed.bias"].clone()
    path = save(tmp_path / "x.pth", build(seed=1).state_dict())
    report = load_weights(model, path, class_names=names)
    assert torch.equal(model.state_dict()[f"{PREDICTOR}class_embed.bias"], before)
    assert "class head: initialised anew, for 3 classes instead of 9" in report.notes[0]
    with pytest.raises(ConfigError, match=r"class head is for 9, .*NUM_CLASSES is 3"):
        load_weights(model, path, complete=True)


def test_class_names_of_coco_and_ade20k():
    coco = ["person", "car", "wall-brick", "wall-other-merged", "road", "grass-merged"]
    ade = ["wall", "road, route", "car, auto, automobile", "person, individual", "sky"]
    assert match_classes(coco, ade) == [3, 4, 1, 0, None]


@pytest.mark.parametrize("queries", [3, 9])
def test_more_or_fewer_queries(build, tmp_path, queries):
    source = build(seed=1).state_dict()
    model = build(seed=2, **{"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": queries})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_weights(model, save(tmp_path / "x.pth", source))
    kept = min(queries, 6)
    for name in (f"{PREDICTOR}query_feat.weight", f"{PREDICTOR}query_embed.weight"):
        assert torch.equal(model.state_dict()[name][:kept], source[name][:kept])
        assert torch.equal(model.state_dict()[name][kept:], before[name][kept:])
    assert report.notes == [f"queries: {queries} instead of 6; the first {kept} are loaded"]


def test_swin_of_another_window(build, tmp_path):
    swin = {
        "MODEL.BACKBONE.NAME": "D2SwinTransformer",
        "MODEL.SWIN.EMBED_DIM": 12,
        "MODEL.SWIN.DEPTHS": [1, 1, 1, 1],
        "MODEL.SWIN.WINDOW_SIZE": 4,
    }
    name = "backbone.layers.0.blocks.0.attn.relative_position_bias_table"
    state = build(seed=1, **swin).state_dict()
    # A slope stays one when it is resized, away from the edges; cubic weights miss it a little.
    state[name] = torch.arange(7.0).repeat(7)[:, None].repeat(1, 3)
    model = build(seed=2, **{**swin, "MODEL.SWIN.WINDOW_SIZE": 7})
    report = load_weights(model, save(tmp_path / "x.pth", state))
    assert report.notes == ["Swin: 4 bias tables resized to another window size"]
    assert not report.mismatched
    table = model.state_dict()[name][:, 0].view(13, 13)
    slope = (torch.arange(13.0) + 0.5) * 7 / 13 - 0.5
    torch.testing.assert_close(table[:, 3:10], slope[3:10].expand(13, 7), rtol=0, atol=0.05)


def test_training_and_evaluation_use_it(sample_cfg, tmp_path):
    sample_cfg.MODEL.WEIGHTS = save(tmp_path / "x.pth", {"backbone.x": torch.zeros(1)})
    with pytest.raises(ConfigError, match="does not hold this model"):
        evaluate(sample_cfg)
    trainer = Trainer(sample_cfg)
    with pytest.raises(ConfigError, match="nothing in .* fits this model.* are backbone.x, the mo"):
        trainer.resume_or_load()
    trainer.checkpointer.save("saved")
    saved = torch.load(tmp_path / "output" / "saved.pth", weights_only=True)
    assert len(saved["class_names"]) == sample_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    # Inference needs no more than that: the data set may be elsewhere.
    sample_cfg.DATASETS.CATALOG = str(tmp_path / "gone.yaml")
    sample_cfg.DATASETS.TRAIN, sample_cfg.DATASETS.TEST = ("gone_train",), ("gone_val",)
    predictor = Predictor(sample_cfg, tmp_path / "output" / "saved.pth")
    metadata = MetadataCatalog.get("sample_val")
    assert list(predictor.categories) == metadata.stuff_classes
    assert predictor.model.thing_ids == set(metadata.thing_dataset_id_to_contiguous_id.values())
    other = sample_cfg.clone()
    other.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 5
    count = len(metadata.stuff_classes)
    with pytest.raises(ConfigError, match=rf"saved\.pth has {count} .* config 5.*_CLASSES {count}"):
        Predictor(other, tmp_path / "output" / "saved.pth")
    for key, lacks in (("thing_ids", "which classes are things"), ("class_names", "called")):
        del saved[key]
        torch.save(saved, tmp_path / "nameless.pth")
        with pytest.raises(DatasetError, match=rf"gone\.yaml does not exist.*nameless.*{lacks}"):
            Predictor(sample_cfg, tmp_path / "nameless.pth")
    sample_cfg.DATASETS.CATALOG = ""
    predictor = Predictor(sample_cfg, tmp_path / "nameless.pth")
    assert predictor.categories[0] == "class 0"


def test_a_smaller_model_than_that_of_the_file_is_told(build, tmp_path, caplog):
    state = build(**{"MODEL.MASK_FORMER.DEC_LAYERS": 5}).state_dict()
    path = save(tmp_path / "x.pth", state)
    load_weights(build(**{"MODEL.MASK_FORMER.DEC_LAYERS": 5}), path, complete=True)
    assert not caplog.text
    smaller = build(**{"MODEL.MASK_FORMER.DEC_LAYERS": 3})
    load_weights(smaller, path, complete=True)
    assert "parameters that this model has no place for" in caplog.text
    assert "is the config the one" in caplog.text


def test_a_class_head_of_another_width_is_left_as_it_is(build, tmp_path):
    names = [f"class {i}" for i in range(9)]
    path = save(tmp_path / "x.pth", build().state_dict())
    model = build(**{"MODEL.MASK_FORMER.HIDDEN_DIM": 64})
    report = load_weights(model, path, class_names=names, source_class_names=names[::-1])
    assert f"{PREDICTOR}class_embed.weight" in report.mismatched


def test_classes_in_another_order_are_told(build, tmp_path, caplog):
    model = build()
    checkpoint = {"model": model.state_dict(), "class_names": [f"class {i}" for i in range(9)]}
    torch.save(checkpoint, tmp_path / "x.pth")
    other = [f"class {i}" for i in (0, 2, 1, 3, 4, 5, 6, 7, 8)]
    load_weights(model, str(tmp_path / "x.pth"), class_names=other, complete=True)
    assert "class 1 of" in caplog.text and "'class 2' in the data set" in caplog.text
