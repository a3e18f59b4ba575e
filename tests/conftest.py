"""Fixtures: a small model, a small data set, real data if it is there."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

if importlib.util.find_spec("mask2former_ops") is None:
    # Tests run from a checkout that is not installed too: setup.py maps this name to ops/.
    spec = importlib.util.spec_from_file_location("mask2former_ops", ROOT / "ops" / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["mask2former_ops"] = module
    spec.loader.exec_module(module)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def shared_data():
    """Real pictures and known scores, kept beside the project; not part of it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    return folder


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def tiny_cfg():
    """The quickstart's model, smaller still, on the CPU; untrained."""
    from mask2former.config import get_maskformer2_cfg

    cfg = get_maskformer2_cfg()
    cfg.merge_from_file(str(ROOT / "configs" / "quickstart.yaml"))
    cfg.DATASETS.CATALOG = ""
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = cfg.MODEL.SEM_SEG_HEAD.MASK_DIM = 32
    cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS = 1
    cfg.MODEL.MASK_FORMER.HIDDEN_DIM = 32
    cfg.MODEL.MASK_FORMER.DIM_FEEDFORWARD = 64
    cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 6
    cfg.MODEL.MASK_FORMER.TRAIN_NUM_POINTS = 64
    cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST = 96
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    return cfg


@pytest.fixture(scope="session")
def sample_root(tmp_path_factory):
    """A sample data set of a few pictures; its catalog registers sample_train and sample_val."""
    from mask2former.data.catalog import register_catalog
    from mask2former.data.sample import generate_sample_dataset

    root = tmp_path_factory.mktemp("data") / "sample"
    generate_sample_dataset(root, num_train=6, num_val=4)
    register_catalog(root / "catalog.yaml")
    return root


@pytest.fixture
def sample_cfg(tiny_cfg, sample_root, tmp_path):
    """``tiny_cfg`` on the sample data set."""
    tiny_cfg.DATASETS.CATALOG = str(sample_root / "catalog.yaml")
    tiny_cfg.DATASETS.TRAIN = ("sample_train",)
    tiny_cfg.DATASETS.TEST = ("sample_val",)
    tiny_cfg.OUTPUT_DIR = str(tmp_path / "output")
    return tiny_cfg
