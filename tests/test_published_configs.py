"""The published configurations: same settings, same parameters.

published/configs.json holds each file's settings as flat keys, relative to the defaults;
published/state_dicts.json the parameters of four models as [name, shape, values of each # in name].
"""

import itertools
import json
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from mask2former import get_maskformer2_cfg, load_config
from mask2former.config import _leaf_keys

ROOT = Path(__file__).resolve().parent.parent
FACTS = Path(__file__).parent / "published"
FOLDERS = json.loads((FACTS / "configs.json").read_text())
PUBLISHED = {
    f"{folder}/{name}": {**facts["common"], **settings}
    for folder, facts in FOLDERS.items()
    for name, settings in facts["configs"].items()
}
STATE_DICTS = json.loads((FACTS / "state_dicts.json").read_text())


def flat(cfg: CfgNode) -> dict:
    values = {}
    for key in _leaf_keys(cfg):
        value = cfg
        for part in key.split("."):
            value = value[part]
        values[key] = list(value) if isinstance(value, tuple) else value
    return values


@pytest.mark.parametrize("path", PUBLISHED)
def test_same_settings_as_published(path):
    expected = {**flat(get_maskformer2_cfg()), **PUBLISHED[path]}
    assert flat(load_config(ROOT / path)) == expected


def test_all_published_configs_are_here():
    assert len(PUBLISHED) == 47


def build_without_memory(path: Path) -> nn.Module:
    with torch.device("meta"):
        return build_model(load_config(path, ["DATASETS.CATALOG", "", "MODEL.DEVICE", "meta"]))


def configs_that_build() -> list[Path]:
    fragments = ("catalog_nuts.yaml", "res512.yaml", "res640.yaml")
    files = (ROOT / "configs").rglob("*.yaml")
    return sorted(p for p in files if p.name not in fragments and p.parent.name != "backbones")


@pytest.mark.parametrize("path", configs_that_build(), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_config_builds(path):
    model = build_without_memory(path)
    num_classes = load_config(path, ["DATASETS.CATALOG", ""]).MODEL.SEM_SEG_HEAD.NUM_CLASSES
    assert len(model.sem_seg_head.predictor.class_embed.bias) == num_classes + 1


@pytest.mark.parametrize("path", STATE_DICTS)
def test_same_parameters_as_published(path):
    expected = {}
    for pattern, shape, values in STATE_DICTS[path]:
        for indices in itertools.product(*values):
            expected[pattern.replace("#", "{}").format(*indices)] = shape
    model = build_without_memory(ROOT / path)
    assert {name: list(x.shape) for name, x in model.state_dict().items()} == expected
