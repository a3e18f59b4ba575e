"""Convolutions of a model: which of them are done how, and that they stay what they were."""

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, get_norm
from detectron2.modeling import build_model
from torch import nn
from torch.nn import functional as F

from mask2former.modeling import convolution
from mask2former.modeling.convolution import CPUConv2d, group_norm_, use_cpu_convolutions
from mask2former_ops import backend, plain, winograd_convolution

compiled = pytest.mark.skipif(backend("cpu").name != "compiled", reason="there is no compiled op")
SIZE = (16, 18)


def layer(channels=32, out_channels=32, kernel_size=3, *, padding=1, **options):
    conv = Conv2d(channels, out_channels, kernel_size, padding=padding, **options)
    use_cpu_convolutions(conv)
    return conv


@pytest.fixture
def count(monkeypatch):
    """How often it is taken instead of torch's convolution."""
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return winograd_convolution(*arguments)

    monkeypatch.setattr(convolution, "winograd_convolution", counted)
    monkeypatch.setattr(convolution, "_WIDE_VECTORS", True)
    monkeypatch.setattr(convolution, "_FAST_BFLOAT16", False)
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


@torch.no_grad()
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_group_norms_are_those_of_float64_and_in_place(affine, memory_format):
    norm = nn.GroupNorm(4, 32, affine=affine)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(3, 32, 17, 23) * torch.rand(3, 32, 1, 1) + 10 * torch.randn(3, 32, 1, 1)
    x = x.contiguous(memory_format=memory_format)
    expected = norm.double()(x.double())
    normalised = group_norm_(x, norm.float())
    assert normalised.data_ptr() == x.data_ptr()
    torch.testing.assert_close(x.double(), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("batch", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_group_norms_of_layers_are_detectron2s(monkeypatch, batch, dtype):
    in_place = []
    monkeypatch.setattr(
        convolution, "group_norm_", lambda x, norm: in_place.append(x) or group_norm_(x, norm)
    )
    conv = layer(kernel_size=1, padding=0, bias=False, norm=get_norm("GN", 32)).to(dtype)
    x = torch.randn(batch, 32, 5, 7, dtype=dtype)
    expected = Conv2d.forward(conv, x)
    torch.testing.assert_close(conv(x), expected, check_stride=False)
    assert bool(in_place) == (batch > 0 and dtype == torch.float32)
    in_place.clear()
    torch.compiler.reset()  # of the layers before, or it gives up
    compiled = torch.compile(conv, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(compiled, expected, check_stride=False)
    with torch.enable_grad():
        conv(x)
    torch.jit.trace(conv, torch.randn(1, 32, 5, 7, dtype=dtype), check_trace=False)
    assert not in_place


@compiled
@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"padding": 2, "dilation": 2},
        {"padding": 0},
        {"kernel_size": 1, "padding": 0},
        {"groups": 2},
        {"channels": 30},
        {"out_channels": 30},
    ],
)
def test_others_are_torchs(count, options):
    conv = layer(**options)
    x = torch.randn(1, conv.in_channels, *SIZE)
    torch.testing.assert_close(conv(x), Conv2d.forward(conv, x), rtol=0, atol=0)
    assert not count


@compiled
@torch.no_grad()
def test_padding_is_zeros_as_in_detectron2(count):
    conv, x = layer(padding_mode="reflect"), torch.randn(1, 32, *SIZE)
    expected = Conv2d.forward(conv, x)
    torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-4, check_stride=False)
    assert len(count) == 1


def test_only_detectron2s_change():
    model = nn.Sequential(Conv2d(32, 64, 3), nn.Sequential(layer()), nn.Conv2d(32, 32, 3))
    names = list(model.state_dict())
    use_cpu_convolutions(model)
    kinds = [type(m) for m in model.modules()]
    assert kinds.count(CPUConv2d) == 2 and kinds.count(nn.Conv2d) == 1
    assert list(model.state_dict()) == names


def frozen_norm():
    torch.manual_seed(0)
    norm = FrozenBatchNorm2d(32)
    for buffer in norm.buffers():
        buffer.copy_(torch.rand_like(buffer) + 0.5)
    return norm


@compiled
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "kernel_size, dtype, tolerance",
    [(1, torch.float64, 1e-10), (3, torch.float64, 1e-10), (3, torch.float32, 1e-5)],
)
def test_a_frozen_batch_norm_scales_the_weights(count, kernel_size, dtype, tolerance, bias):
    """Output and gradients are those of the norm after the convolution."""
    norm = frozen_norm()
    options = {"bias": bias, "norm": norm, "activation": F.relu_}
    conv = layer(kernel_size=kernel_size, padding=kernel_size // 2, **options).to(dtype)
    called = []
    norm.register_forward_hook(lambda *_: called.append(norm))
    x = torch.randn(2, 32, *SIZE, dtype=dtype, requires_grad=True)
    leaves = [x, *conv.parameters()]

    def outcome(forward):
        out = forward(x)
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    actual = outcome(conv)
    assert not called and len(count) == (dtype == torch.float32)
    for one, other in zip(actual, outcome(lambda x: Conv2d.forward(conv, x)), strict=True):
        scale = other.abs().max().item()
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * scale, check_stride=False)
    assert called


@torch.no_grad()
def test_a_frozen_batch_norm_of_another_type():
    norm = frozen_norm()
    x = torch.randn(2, 32, *SIZE)
    exact = Conv2d.forward(conv := layer(norm=norm), x)
    conv.bfloat16()
    conv.norm = norm.float()
    actual = conv(x.bfloat16())
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.float(), exact, rtol=0, atol=0.02 * exact.abs().max().item())


@torch.no_grad()
def test_other_norms_stay():
    class Doubled(FrozenBatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    conv, x = layer(norm=Doubled(32)), torch.randn(2, 32, *SIZE)
    expected = Conv2d.forward(conv, x)
    torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-4, check_stride=False)


@compiled
@torch.no_grad()
def test_elsewhere_it_is_torchs_convolution(count, monkeypatch):
    conv, x = layer(), torch.randn(1, 32, *SIZE)
    layer().double()(x.double())
    conv(x[..., :3])  # few pixels
    conv(x[:0])
    conv(x[0])
    torch.compiler.reset()
    torch.compile(conv, backend="eager", fullgraph=True)(x)
    graph = torch.export.export(conv, (x,)).graph
    assert any("conv2d" in str(node.target) for node in graph.nodes)
    with plain():
        conv(x)
    with torch.autocast("cpu", torch.float16):
        assert conv(x).dtype == torch.float16
    monkeypatch.setattr(convolution, "_FAST_BFLOAT16", True)
    layer().bfloat16()(x.bfloat16())
    monkeypatch.setattr(convolution, "_WIDE_VECTORS", False)
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
    assert isinstance(decoder.layer_1, CPUConv2d)
    assert any(isinstance(m, CPUConv2d) for m in model.backbone.modules())

    def outcome(fewest):
        monkeypatch.setattr(convolution, "FEWEST_PIXELS", fewest)
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
