"""Which convolutions of a model it takes, and that they stay what they were."""

import pytest
import torch
from detectron2.layers import Conv2d, get_norm
from detectron2.modeling import build_model
from torch import nn
from torch.nn import functional as F

from mask2former.modeling import conv3x3
from mask2former.modeling.conv3x3 import Conv3x3, use_winograd
from mask2former_ops import backend, plain, winograd_convolution

compiled = pytest.mark.skipif(backend("cpu").name != "compiled", reason="there is no compiled op")
SIZE = (16, 18)


def layer(channels=32, **options):
    conv = Conv2d(channels, channels, 3, padding=1, **options)
    use_winograd(conv)
    return conv


@pytest.fixture
def count(monkeypatch):
    """How often it is taken instead of torch's convolution."""
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return winograd_convolution(*arguments)

    monkeypatch.setattr(conv3x3, "winograd_convolution", counted)
    monkeypatch.setattr(conv3x3, "_WIDE_VECTORS", True)
    monkeypatch.setattr(conv3x3, "_FAST_BFLOAT16", False)
    return calls


@compiled
def test_the_layer_is_detectron2s(count):
    conv = layer(bias=False, norm=get_norm("GN", 32), activation=F.relu_)
    x = torch.randn(1, 32, *SIZE)
    actual = conv(x)
    assert len(count) == 1
    expected = Conv2d.forward(conv, x)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4, check_stride=False)
    one, other = (torch.autograd.grad(y.square().sum(), conv.weight)[0] for y in (actual, expected))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * other.abs().max().item())


def test_which_convolutions_it_takes():
    taken = nn.Sequential(Conv2d(32, 64, 3, padding=1), nn.Sequential(layer()))
    others = nn.ModuleList(
        [
            Conv2d(32, 32, 3, padding=1, stride=2),
            Conv2d(32, 32, 3, padding=2, dilation=2),
            Conv2d(32, 32, 3),
            Conv2d(32, 32, 1),
            Conv2d(32, 32, 3, padding=1, groups=2),
            Conv2d(32, 32, 3, padding=1, padding_mode="reflect"),
            Conv2d(32, 30, 3, padding=1),
            Conv2d(30, 32, 3, padding=1),
            nn.Conv2d(32, 32, 3, padding=1),
        ]
    )
    names = list(taken.state_dict())
    for module in (taken, others):
        use_winograd(module)
    assert [type(m) for m in taken.modules()].count(Conv3x3) == 2
    assert list(taken.state_dict()) == names
    assert not any(isinstance(m, Conv3x3) for m in others.modules())


@compiled
@torch.no_grad()
def test_elsewhere_it_is_torchs_convolution(count, monkeypatch):
    conv, x = layer(), torch.randn(1, 32, *SIZE)
    layer().double()(x.double())
    conv(x[..., :3])  # few pixels
    conv(x[:0])
    conv(x[0])
    torch.compile(conv, backend="eager", fullgraph=True)(x)
    graph = torch.export.export(conv, (x,)).graph
    assert any("conv2d" in str(node.target) for node in graph.nodes)
    with plain():
        conv(x)
    with torch.autocast("cpu", torch.float16):
        assert conv(x).dtype == torch.float16
    monkeypatch.setattr(conv3x3, "_FAST_BFLOAT16", True)
    layer().bfloat16()(x.bfloat16())
    monkeypatch.setattr(conv3x3, "_WIDE_VECTORS", False)
    conv(x)
    assert not count


@compiled
@torch.no_grad()
def test_types_are_those_of_torchs_convolution(count):
    conv, x = layer(), torch.randn(1, 32, *SIZE)
    for one, other in ((conv, x.bfloat16()), (layer().double(), x), (layer().bfloat16(), x)):
        with pytest.raises(RuntimeError):
            one(other)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer().double()(x.double()).dtype == torch.float64
    assert not count


@compiled
def test_bfloat16_in_inference_alone(count):
    conv, x = layer(bias=True), torch.randn(1, 32, *SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16
        assert not count
        with torch.no_grad():
            out = conv(x)
    assert out.dtype == torch.bfloat16 and len(count) == 1
    torch.testing.assert_close(out.float(), conv(x), rtol=2e-2, atol=2e-2, check_stride=False)


@compiled
@pytest.mark.parametrize("norm", ["GN", ""])
def test_the_model_is_the_same(tiny_cfg, monkeypatch, count, norm):
    """The pixel decoder's output, and the gradients of what is in and below its convolution."""
    tiny_cfg.MODEL.SEM_SEG_HEAD.NORM = norm
    model = build_model(tiny_cfg)
    images = torch.randn(2, 3, 64, 96)
    decoder = model.sem_seg_head.pixel_decoder
    assert isinstance(decoder.layer_1, Conv3x3)
    assert any(isinstance(m, Conv3x3) for m in model.backbone.modules())

    def outcome(fewest):
        monkeypatch.setattr(conv3x3, "FEWEST_PIXELS", fewest)
        count.clear()
        model.zero_grad()
        features = decoder(model.backbone(images))[0]
        features.square().mean().backward()
        below = model.backbone.res2[0].conv1
        return features, decoder.layer_1.weight.grad, below.weight.grad

    expected = outcome(10**6)
    assert not count
    actual = outcome(1)
    assert len(count) > 2
    for one, other in zip(actual, expected, strict=True):
        scale = other.abs().max().item()
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * scale, check_stride=False)
