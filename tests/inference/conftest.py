"""A predictor whose untrained queries find something."""

import pytest
import torch
from detectron2.modeling import build_model

from mask2former.inference import Predictor


@pytest.fixture
def predictor(sample_cfg, tmp_path):
    """Every query is sure of a class, and masks have edges."""
    torch.manual_seed(6)  # two things in noise, and instances of different scores
    model = build_model(sample_cfg)
    decoder = model.sem_seg_head.predictor
    with torch.no_grad():
        decoder.class_embed.weight.mul_(40)
        decoder.class_embed.bias[-1] = -100  # never "no object"
        decoder.mask_embed.layers[-1].weight.mul_(10)
    path = tmp_path / "weights.pth"
    torch.save({"model": model.state_dict()}, path)
    return Predictor(sample_cfg, path)
