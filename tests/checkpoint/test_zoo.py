import hashlib
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog

from mask2former import load_config
from mask2former.checkpoint import find_model, list_models, zoo
from mask2former.data import class_names
from mask2former.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize("model", list_models().values(), ids=lambda model: model.name)
def test_models_and_configs_agree(model):
    cfg = load_config(ROOT / model.config)
    assert list(cfg.DATASETS.TEST) == [model.dataset]
    assert len(class_names(model.dataset)) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    size = {"Swin-T": "tiny", "Swin-S": "small", "Swin-B": "base", "Swin-L": "large"}
    backbone = model.name.rpartition("/")[2]
    assert size.get(backbone[:6], backbone) in model.config
    assert ("IN21k" in backbone) == ("IN21k" in model.config)


def test_the_documentation_lists_every_model():
    text = (ROOT / "docs" / "MODEL_ZOO.md").read_text()
    for model in list_models().values():
        assert f"`zoo://{model.name}`" in text and model.url in text
        assert f"| {model.id} |" in text


def test_models_by_name_and_by_file():
    model = find_model("zoo://coco/panoptic/R50")
    assert model.file_name == "model_final_94dc52.pkl"
    assert find_model("/somewhere/model_final_94dc52.pkl") is model
    assert find_model("output/model_final.pth") is None
    with pytest.raises(ConfigError, match=r"zoo://coco/panoptic/Swin-L_IN21k.*MODEL_ZOO"):
        find_model("zoo://coco/panoptic/Swin-L")
    assert MetadataCatalog.get(model.dataset).evaluator_type == "coco_panoptic_seg"


@pytest.fixture
def model(tmp_path):
    """A model whose address is a local file, named after its checksum."""
    (tmp_path / "net").mkdir()
    digits = hashlib.md5(b"weights").hexdigest()[:6]
    path = tmp_path / "net" / f"model_final_{digits}.pkl"
    path.write_bytes(b"weights")
    return zoo.ZooModel("a/b/c", "x.yaml", "d", {}, "", "1", str(path))


def test_fetching_checks_the_file(model):
    assert zoo.fetch(model) == model.url
    Path(model.url).write_bytes(b"other weights")
    with pytest.raises(ConfigError, match="is damaged: its MD5 begins with"):
        zoo.fetch(model)


def test_without_a_network(model, monkeypatch, tmp_path):
    def unreachable(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(zoo.PathManager, "get_local_path", unreachable)
    with pytest.raises(ConfigError, match=r"zoo://a/b/c cannot be fetched \(no route\).*_ZOO"):
        zoo.fetch(model)
    monkeypatch.setenv("MASK2FORMER_ZOO", str(tmp_path / "net"))
    assert zoo.fetch(model) == model.url
