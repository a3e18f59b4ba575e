import pytest

from mask2former.errors import ConfigError
from mask2former.inference.predictor import metadata_of


def test_classes_of_the_data_set(sample_cfg):
    assert metadata_of(sample_cfg).name == "sample_val"
    sample_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES += 1
    with pytest.raises(
        ConfigError, match="data set sample_val has .* classes, the model .*NUM_CLA"
    ):
        metadata_of(sample_cfg)


def test_without_a_data_set(sample_cfg):
    sample_cfg.DATASETS.TRAIN = sample_cfg.DATASETS.TEST = ()
    sample_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
    metadata = metadata_of(sample_cfg)
    assert metadata.thing_classes == metadata.stuff_classes == ["class 0", "class 1", "class 2"]
    assert metadata_of(sample_cfg) is metadata  # again: harmless
