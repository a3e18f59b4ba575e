import dataclasses
import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from mask2former import load_config
from mask2former.checkpoint import find_model, list_models, read_state_dict, zoo
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
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `zoo://")}
    assert list(rows) == [f"zoo://{name}" for name in list_models()]
    for name, model in list_models().items():
        cells = [cell.strip() for cell in rows[f"zoo://{name}"].split("|")]
        assert [str(value) for value in model.results.values()] == cells[4:-3]
        assert cells[3] == model.schedule and cells[-3] == model.id
        assert f"({model.url})" in cells[-2] and f"(../{model.config})" in cells[2]


def test_models_by_name_and_by_file():
    model = find_model("zoo://coco/panoptic/R50")
    assert model.file_name == "model_final_94dc52.pkl"
    assert find_model("/somewhere/model_final_94dc52.pkl") is model
    assert find_model("output/model_final.pth") is None
    with pytest.raises(ConfigError, match=r"zoo://coco/panoptic/Swin-L_IN21k.*MODEL_ZOO"):
        find_model("zoo://coco/panoptic/Swin-L")
    with pytest.raises(ConfigError, match=r"the nearest are zoo://coco/panoptic/R50 \("):
        find_model("zoo://COCO/panoptic/r50")
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
    assert Path(model.url).exists()  # a user's own file, unlike one of the cache


def test_a_damaged_download_leaves_the_cache(model, monkeypatch):
    cached = Path(model.url)
    monkeypatch.setattr(zoo.PathManager, "get_local_path", lambda url: str(cached))
    model = dataclasses.replace(model, url=f"https://nowhere.invalid/{cached.name}")
    assert zoo.fetch(model) == str(cached)
    cached.write_bytes(b"half")
    with pytest.raises(ConfigError, match="removed from the cache: try again"):
        zoo.fetch(model)
    assert not cached.exists()


def test_names_are_read_from_the_folder(monkeypatch, tmp_path):
    content = pickle.dumps({"model": {"a": np.ones(2, "f4")}, "__author__": "third_party"})
    digits = hashlib.md5(content).hexdigest()[:6]
    (tmp_path / f"model_final_{digits}.pkl").write_bytes(content)
    address = f"https://nowhere.invalid/model_final_{digits}.pkl"
    model = zoo.ZooModel("a/b/c", "x.yaml", "d", {}, "", "1", address)
    monkeypatch.setattr(zoo, "list_models", lambda: {model.name: model})
    monkeypatch.setenv("MASK2FORMER_ZOO", str(tmp_path))
    assert read_state_dict("zoo://a/b/c").state_dict["a"].tolist() == [1, 1]


def test_without_a_network(model, monkeypatch, tmp_path):
    def unreachable(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(zoo.PathManager, "get_local_path", unreachable)
    with pytest.raises(ConfigError, match=r"zoo://a/b/c cannot be fetched \(no route\).*_ZOO"):
        zoo.fetch(model)
    monkeypatch.setenv("MASK2FORMER_ZOO", str(tmp_path / "net"))
    assert zoo.fetch(model) == model.url
