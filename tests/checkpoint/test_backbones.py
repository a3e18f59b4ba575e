"""Backbone weights of torchvision, timm and the official Swin: the features must agree."""

import runpy
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_backbone
from torch.nn import functional as F
from torchvision.models import resnet

from mask2former.checkpoint.swin import from_swin, swin_architecture
from mask2former.checkpoint.torchvision_resnet import from_torchvision_resnet, resnet_depth
from mask2former.config import get_maskformer2_cfg
from mask2former.errors import UserError
from mask2former.modeling.backbone.swin import D2SwinTransformer

# Windows of 3 divide the maps of a 96x192 picture at every stage: where they do not, timm pads
# after shifting, the official code and this backbone before it.
SWIN = {"embed_dim": 24, "depths": [2, 2, 3, 2], "num_heads": [1, 2, 4, 8], "window_size": 3}


def randomize(model):
    """No weight, bias or statistic at the value it starts with, where a mistake could hide."""
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point() and tensor.dim() == 4:
            torch.nn.init.kaiming_normal_(tensor)
        elif tensor.is_floating_point():
            tensor.normal_(std=1.0 if "bias" in name else tensor.shape[-1] ** -0.5)
    return model.eval()


def assert_same(features, expected):
    assert features.shape == expected.shape
    assert (features - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
@torch.no_grad()
def test_torchvision_resnet(depth, norm):
    cfg = get_maskformer2_cfg()
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.NORM = norm
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    if depth == 18:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    reference = randomize(getattr(resnet, f"resnet{depth}")())
    converted = from_torchvision_resnet(reference.state_dict())
    ours = torch.nn.ModuleDict({"backbone": build_backbone(cfg)}).eval()
    keys = ours.load_state_dict(converted, strict=False)
    assert not keys.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in keys.missing_keys)
    assert resnet_depth(reference.state_dict()) == depth

    pictures = torch.randn(1, 3, 65, 94)
    features = ours["backbone"](pictures)
    x = reference.maxpool(reference.relu(reference.bn1(reference.conv1(pictures))))
    for stage in range(1, 5):
        x = getattr(reference, f"layer{stage}")(x)
        assert_same(features[f"res{stage + 1}"], x)


@pytest.fixture
def timm_swin():
    timm = pytest.importorskip("timm")
    from timm.models.swin_transformer import SwinTransformer

    assert int(timm.__version__.partition(".")[0]) >= 1
    model = SwinTransformer(
        img_size=(96, 192), always_partition=True, strict_img_size=False, num_classes=7, **SWIN
    )
    return randomize(model)


def assert_same_features(backbone, timm_swin, pictures):
    """What each stage puts out, before the norms that only the detector has."""
    for i in range(4):
        getattr(backbone, f"norm{i}").reset_parameters()
    features = backbone.eval()(pictures)
    reference = timm_swin.forward_intermediates(pictures, intermediates_only=True)
    assert len(reference) == 4
    for i, expected in enumerate(reference):
        expected = F.layer_norm(expected.permute(0, 2, 3, 1), expected.shape[1:2])
        assert_same(features[f"res{i + 2}"], expected.permute(0, 3, 1, 2))


@torch.no_grad()
def test_timm_swin(timm_swin):
    converted = from_swin(timm_swin.state_dict())
    architecture = swin_architecture(converted)
    assert architecture == SWIN
    ours = torch.nn.ModuleDict({"backbone": D2SwinTransformer(**architecture)})
    keys = ours.load_state_dict(converted, strict=False)
    assert not keys.unexpected_keys
    assert {name.split(".")[1] for name in keys.missing_keys} == {f"norm{i}" for i in range(4)}
    assert_same_features(ours["backbone"], timm_swin, torch.randn(2, 3, 96, 192))


@torch.no_grad()
def test_official_swin(timm_swin):
    """Official files name what this backbone has as it does; timm reads them with its own code."""
    from timm.models.swin_transformer import checkpoint_filter_fn

    backbone = randomize(D2SwinTransformer(**SWIN)).state_dict()
    official = {name: t for name, t in backbone.items() if not name.startswith("norm")}
    excess = {
        "layers.0.blocks.1.attn_mask": torch.zeros(4, 9, 9),
        "norm.weight": torch.ones(192),
        "norm.bias": torch.ones(192),
        "head.weight": torch.ones(7, 192),
        "head.bias": torch.ones(7),
    }
    converted = from_swin(official | excess)
    assert converted.keys() == {f"backbone.{name}" for name in official}

    keys = timm_swin.load_state_dict(checkpoint_filter_fn(official | excess, timm_swin))
    assert not keys.missing_keys
    ours = torch.nn.ModuleDict({"backbone": D2SwinTransformer(**SWIN)})
    ours.load_state_dict(converted, strict=False)
    assert_same_features(ours["backbone"], timm_swin, torch.randn(1, 3, 96, 192))


def test_position_embedding_becomes_a_map():
    """Element (y, x) of the map is the vector of patch y * side + x."""
    embedding = torch.randn(1, 9, 8)
    position = from_swin({"absolute_pos_embed": embedding})["backbone.absolute_pos_embed"]
    assert position.shape == (1, 8, 3, 3)
    assert torch.equal(position[0, :, 1, 2], embedding[0, 5])


def test_other_architectures_are_refused():
    with pytest.raises(UserError, match="layers.0.blocks.0.attn.logit_scale"):
        from_swin({"layers.0.blocks.0.attn.logit_scale": torch.ones(1)})
    with pytest.raises(UserError, match="layer1.0.se.fc1.weight"):
        from_torchvision_resnet({"layer1.0.se.fc1.weight": torch.ones(1)})


@pytest.mark.parametrize("layout", ["torchvision", "timm", "swin"])
def test_the_tool_tells_the_layout_and_verifies(layout, request, tmp_path, monkeypatch, capsys):
    if layout == "torchvision":
        state_dict = randomize(resnet.resnet18()).state_dict()
    elif layout == "timm":
        state_dict = request.getfixturevalue("timm_swin").state_dict()
    else:
        pytest.importorskip("timm")
        state_dict = randomize(D2SwinTransformer(**SWIN)).state_dict()
        state_dict = {name: t for name, t in state_dict.items() if not name.startswith("norm")}
    source, converted = tmp_path / "source.pth", tmp_path / "converted.pth"
    torch.save({"model": state_dict}, source)
    arguments = ["convert_checkpoint.py", source, "--to", "mask2former", "-o", converted]
    monkeypatch.setattr("sys.argv", [str(argument) for argument in arguments])
    tool = Path(__file__).resolve().parents[2] / "tools" / "convert_checkpoint.py"
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(tool), run_name="__main__")
    assert end.value.code == 0
    assert capsys.readouterr().out.count("largest difference") == 4
    assert all(name.startswith("backbone.") for name in torch.load(converted)["model"])
