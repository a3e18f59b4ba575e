from pathlib import Path

import pytest
import yaml
from detectron2.config import get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from mask2former import ConfigError, get_maskformer2_cfg, load_config
from mask2former.config import _leaf_keys

ROOT = Path(__file__).resolve().parent.parent


def test_every_added_key_has_a_reader():
    before = get_cfg()
    add_deeplab_config(before)
    known = set(_leaf_keys(before))
    added = set(_leaf_keys(get_maskformer2_cfg())) - known
    assert len(added) > 30
    sources = [p for p in (ROOT / "mask2former").rglob("*.py") if p.name != "config.py"]
    sources = "".join(p.read_text() for p in sources)
    unread = {key for key in added if f".{key.rpartition('.')[2]}" not in sources}
    assert not unread


def test_missing_file():
    with pytest.raises(ConfigError, match=r"config file no/such\.yaml does not exist"):
        load_config("no/such.yaml")


def test_missing_base(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("_BASE_: nowhere.yaml\n")
    with pytest.raises(ConfigError, match=r"x\.yaml: its _BASE_ .*nowhere\.yaml does not exist"):
        load_config(path)


def test_unknown_key_is_named_with_the_one_meant(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("MODEL:\n  MASK_FORMER:\n    NUM_QUERIES: 50\n")
    with pytest.raises(ConfigError, match=r"x\.yaml: unknown key MODEL\.MASK_FORMER\.NUM_QUERIES"):
        load_config(path)
    with pytest.raises(ConfigError, match=r"SOLVER\.MAX_ITR; did you mean SOLVER\.MAX_ITER\?"):
        load_config(ROOT / "configs" / "base.yaml", ["SOLVER.MAX_ITR", "10"])


def test_wrong_type_and_odd_overrides():
    base = ROOT / "configs" / "base.yaml"
    with pytest.raises(ConfigError, match=r"command line: .*SOLVER\.MAX_ITER"):
        load_config(base, ["SOLVER.MAX_ITER", "many"])
    with pytest.raises(ConfigError, match="command line"):
        load_config(base, ["SOLVER.MAX_ITER"])


def test_the_published_way_to_write_sizes(tmp_path):
    path = tmp_path / "x.yaml"
    sizes = '!!python/object/apply:eval ["[int(x * 0.1 * 640) for x in range(5, 21)]"]'
    path.write_text(f"INPUT:\n  MIN_SIZE_TRAIN: {sizes}\n")
    sizes = load_config(path).INPUT.MIN_SIZE_TRAIN
    assert sizes == tuple(int(x * 0.1 * 640) for x in range(5, 21))


def test_broken_yaml_and_yaml_that_runs_code(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("MODEL: [\n")
    with pytest.raises(ConfigError, match=r"x\.yaml"):
        load_config(path)
    marker = tmp_path / "ran"
    path.write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{marker}']\n")
    with pytest.raises(ConfigError, match=r"x\.yaml: line 1 would run code .*os\.mkdir"):
        load_config(path)
    with pytest.raises(yaml.YAMLError):
        get_maskformer2_cfg().merge_from_file(str(path), allow_unsafe=True)
    assert not marker.exists()
