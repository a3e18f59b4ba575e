import pytest
import torch
from torch import nn

from mask2former.solver import build_optimizer


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.backbone.relative_position_bias_table = nn.Parameter(torch.zeros(2))
        self.head = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
        self.query = nn.Embedding(3, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.tied = self.head[0]


@pytest.fixture
def cfg(tiny_cfg):
    tiny_cfg.SOLVER.BASE_LR = 1e-3
    tiny_cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    tiny_cfg.SOLVER.WEIGHT_DECAY = 0.05
    tiny_cfg.SOLVER.WEIGHT_DECAY_NORM = 0.02
    tiny_cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.01
    return tiny_cfg


def test_learning_rates_and_weight_decays(cfg):
    model = Toy()
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    names = {parameter: name for name, parameter in model.named_parameters()}
    settings = {
        names[p]: (pytest.approx(group["lr"]), group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert settings == {
        "backbone.relative_position_bias_table": (1e-4, 0.0),
        "backbone.0.weight": (1e-4, 0.05),
        "backbone.0.bias": (1e-4, 0.05),
        "backbone.1.weight": (1e-4, 0.02),
        "backbone.1.bias": (1e-4, 0.02),
        "head.0.weight": (1e-3, 0.05),
        "head.0.bias": (1e-3, 0.05),
        "head.1.weight": (1e-3, 0.02),
        "head.1.bias": (1e-3, 0.02),
        "query.weight": (1e-3, 0.01),
    }


def test_full_model_clipping_bounds_all_gradients_together(cfg):
    cfg.SOLVER.OPTIMIZER = "SGD"
    cfg.SOLVER.MOMENTUM = 0.0
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.01
    model = Toy()
    optimizer = build_optimizer(cfg, model)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for p in parameters:
        p.grad = torch.full_like(p, 7.0)
    optimizer.step()
    norm = torch.cat([p.grad.flatten() for p in parameters]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("clip_type, bound", [("value", 0.01), ("norm", 0.01)])
def test_detectron2_clipping_still_works(cfg, clip_type, bound):
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = clip_type
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = bound
    model = Toy()
    optimizer = build_optimizer(cfg, model)
    for p in model.parameters():
        p.grad = torch.full_like(p, 7.0)
    optimizer.step()
    assert model.query.weight.grad.abs().max() <= bound * 1.001


def test_unknown_optimizer(cfg):
    cfg.SOLVER.OPTIMIZER = "LION"
    with pytest.raises(ValueError, match="SOLVER.OPTIMIZER is LION"):
        build_optimizer(cfg, Toy())
