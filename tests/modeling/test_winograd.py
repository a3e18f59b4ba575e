"""Against torch's own convolution, in float64 and float32."""

import pytest
import torch
from detectron2.layers import get_norm
from detectron2.modeling import build_model
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mask2former.modeling import winograd
from mask2former.modeling.winograd import Conv3x3, winograd_convolution


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 9), (13, 22), (3, 700), (700, 3)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_convolution_and_gradients(size, with_bias):
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True) if with_bias else None
    expected = F.conv2d(x, weight, bias, padding=1)
    actual = winograd_convolution(x, weight, bias)
    torch.testing.assert_close(actual, expected, check_stride=False)
    inputs = (x, weight, bias) if with_bias else (x, weight)
    slope = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(actual, inputs, slope),
        torch.autograd.grad(expected, inputs, slope),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_rounding_errors():
    x, weight = torch.randn(1, 256, 40, 60).relu(), torch.randn(256, 256, 3, 3) / 48
    exact = F.conv2d(x.double(), weight.double(), padding=1)

    errors = winograd_convolution(x, weight) - exact
    # torch's own have 2e-7 to 6e-7, depending on the processor
    assert (errors.square().mean() / exact.square().mean()).sqrt() < 2.4e-6


def layer(channels=winograd.FEWEST_CHANNELS):
    return Conv3x3(channels, bias=False, norm=get_norm("GN", channels), activation=F.relu_)


@pytest.fixture
def count(monkeypatch):
    """How often it is taken instead of torch's convolution."""
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return winograd_convolution(*arguments)

    monkeypatch.setattr(winograd, "winograd_convolution", counted)
    monkeypatch.setattr(winograd, "_MEASURED", True)
    return calls


def test_the_layer_is_detectron2s(count):
    conv = layer()
    x = torch.randn(1, winograd.FEWEST_CHANNELS, 9, 14)
    actual = conv(x)
    assert len(count) == 1
    expected = super(Conv3x3, conv).forward(x)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4, check_stride=False)
    one, other = (torch.autograd.grad(y.square().sum(), conv.weight)[0] for y in (actual, expected))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * other.abs().max().item())


@torch.no_grad()
def test_elsewhere_it_is_torchs_convolution(count):
    x = torch.randn(1, winograd.FEWEST_CHANNELS, 9, 14)
    with torch.autocast("cpu", torch.bfloat16):
        layer()(x)
    layer().bfloat16()(x.bfloat16())
    layer().double()(x.double())
    layer(32)(x[:, :32])
    torch.compile(layer(), backend="eager", fullgraph=True)(x)
    graph = torch.export.export(layer(), (x,)).graph
    assert any("conv2d" in str(node.target) for node in graph.nodes)
    assert not count


@pytest.mark.parametrize("norm", ["GN", ""])
def test_the_model_is_the_same(tiny_cfg, monkeypatch, count, norm):
    """The pixel decoder's output, and the gradients of what is in and below the convolution."""
    tiny_cfg.MODEL.SEM_SEG_HEAD.NORM = norm
    model = build_model(tiny_cfg)
    images = torch.randn(2, 3, 64, 96)

    def outcome(fewest):
        monkeypatch.setattr(winograd, "FEWEST_CHANNELS", fewest)
        model.zero_grad()
        features = model.sem_seg_head.pixel_decoder(model.backbone(images))[0]
        features.square().mean().backward()
        layer = model.sem_seg_head.pixel_decoder.layer_1
        below = model.sem_seg_head.pixel_decoder.adapter_1
        return features, layer.weight.grad, below.weight.grad

    expected = outcome(1000)
    assert not count
    actual = outcome(1)
    assert len(count) == 2  # forward, and backward to what is below
    for one, other in zip(actual, expected, strict=True):
        scale = other.abs().max().item()
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * scale, check_stride=False)


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_one_gradient_alone(frozen):
    x, weight = torch.randn(1, 3, 6, 9), torch.randn(4, 3, 3, 3)
    learned = weight if frozen == "x" else x
    learned.requires_grad_()
    ours, theirs = winograd_convolution(x, weight), F.conv2d(x, weight, padding=1)
    slope = torch.randn_like(theirs)
    torch.testing.assert_close(
        *(torch.autograd.grad(y, learned, slope)[0] for y in (ours, theirs)), rtol=1e-3, atol=1e-4
    )


def test_registration():
    x = torch.randn(1, 4, 6, 5, requires_grad=True)
    weight, bias = torch.randn(3, 4, 3, 3, requires_grad=True), torch.randn(3)
    torch.library.opcheck(winograd_convolution, (x, weight, bias))


def test_it_counts_as_the_convolution():
    x, weight = torch.randn(2, 4, 6, 5), torch.randn(3, 4, 3, 3)
    with FlopCounterMode(display=False) as expected:
        F.conv2d(x, weight, padding=1)
    with FlopCounterMode(display=False) as actual:
        winograd_convolution(x, weight)
    assert actual.get_total_flops() == expected.get_total_flops() == 2 * 2 * 30 * 3 * 4 * 9
