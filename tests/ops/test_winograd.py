"""Against torch's own convolution, in float64."""

import re

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mask2former_ops import backend, winograd_convolution

pytestmark = [
    pytest.mark.skipif(backend("cpu").name != "compiled", reason="there is no compiled operator"),
    pytest.mark.usefixtures("lanes"),
]


def operands(batch, channels, out_channels, height, width):
    x = torch.randn(batch, channels, height, width)
    weight = torch.randn(out_channels, channels, 3, 3) / (9 * channels) ** 0.5
    return x, weight, torch.randn(out_channels)


def close(actual, expected, tolerance=1e-5):
    expected = expected.to(actual.dtype)
    scale = expected.abs().max().item() if expected.numel() else 0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale, check_stride=False)


@pytest.mark.parametrize(
    "sizes",
    [
        (2, 32, 64, 1, 1),
        (1, 32, 32, 4, 4),
        (2, 64, 32, 5, 9),
        (2, 32, 96, 13, 22),
        (1, 32, 32, 3, 700),
        (1, 32, 32, 700, 3),
        (1, 96, 32, 64, 65),
        (0, 32, 32, 4, 4),
    ],
)
@pytest.mark.parametrize("with_bias", [True, False])
def test_convolution_and_gradients(sizes, with_bias):
    inputs = [t.requires_grad_() for t in operands(*sizes)[: 2 + with_bias]]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    actual, expected = winograd_convolution(*inputs), F.conv2d(*exact, padding=1)
    assert actual.shape == expected.shape
    assert actual.is_contiguous(memory_format=torch.channels_last)
    if sizes[0]:
        close(actual, expected)
    slope = torch.randn_like(actual)
    gradients = torch.autograd.grad(actual, inputs, slope)
    for one, other in zip(
        gradients, torch.autograd.grad(expected, exact, slope.double()), strict=True
    ):
        close(one, other)


def test_more_filters_than_are_transformed_at_a_time():
    x, weight, _ = operands(1, 512, 288, 9, 6)
    x.requires_grad_(), weight.requires_grad_()
    exact = [t.detach().double().requires_grad_() for t in (x, weight)]
    actual, expected = winograd_convolution(x, weight), F.conv2d(*exact, padding=1)
    close(actual, expected)
    gradients = torch.autograd.grad(actual.square().sum(), (x, weight))
    for one, other in zip(
        gradients, torch.autograd.grad(expected.square().sum(), exact), strict=True
    ):
        close(one, other)


def test_more_tiles_than_are_added_at_a_time():
    x, weight, _ = operands(2, 32, 32, 150, 170)
    weight.requires_grad_()
    exact = weight.detach().double().requires_grad_()
    slope = torch.randn_like(x)
    actual = torch.autograd.grad(winograd_convolution(x, weight), weight, slope)[0]
    expected = F.conv2d(x.double(), exact, padding=1)
    close(actual, torch.autograd.grad(expected, exact, slope.double())[0])


@torch.no_grad()
def test_any_strides():
    x, weight, bias = operands(2, 32, 64, 7, 10)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    wide = torch.randn(2, 64, 7, 20)
    wide[:, ::2, :, ::2] = x
    turned = weight.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0)
    every_other = torch.stack([bias, bias], 1)[:, 0]
    for one in (x, x.contiguous(memory_format=torch.channels_last), wide[:, ::2, :, ::2]):
        close(winograd_convolution(one, turned, every_other), expected)


@torch.no_grad()
def test_rounding_errors():
    x, weight, _ = operands(1, 256, 256, 40, 60)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    errors = winograd_convolution(x, weight) - exact
    # torch's own have 2e-7 to 9e-7, depending on the processor
    assert (errors.square().mean() / exact.square().mean()).sqrt() < 2.4e-6


@torch.no_grad()
def test_bfloat16_is_rounded_once():
    x, weight, bias = (t.bfloat16() for t in operands(2, 64, 32, 9, 14))
    actual = winograd_convolution(x, weight, bias)
    assert actual.dtype == torch.bfloat16
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    close(actual.double(), exact, 2**-8)


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_one_gradient_alone(frozen):
    x, weight, _ = operands(1, 32, 64, 6, 9)
    learned = weight if frozen == "x" else x
    learned.requires_grad_()
    ours, theirs = winograd_convolution(x, weight), F.conv2d(x, weight, padding=1)
    slope = torch.randn_like(theirs)
    close(*(torch.autograd.grad(y, learned, slope)[0] for y in (ours, theirs)))


def test_threads_change_nothing():
    x, weight, bias = operands(1, 64, 64, 50, 50)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = winograd_convolution(x, weight, bias)
        torch.set_num_threads(3)
        close(winograd_convolution(x, weight, bias), one, 1e-6)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "x, weight, bias, message",
    [
        ((1, 32, 6, 6), (32, 32, 3, 1), None, "does not fit"),
        ((1, 32, 6, 6), (32, 64, 3, 3), None, "does not fit"),
        ((1, 32, 6, 6), (16, 32, 3, 3), None, "multiple of 32"),
        ((1, 16, 6, 6), (32, 16, 3, 3), None, "multiple of 32"),
        ((1, 32, 6, 6), (32, 32, 3, 3), 31, "bias must be 32 float32 numbers"),
    ],
)
def test_wrong_shapes(x, weight, bias, message):
    bias = None if bias is None else torch.zeros(bias)
    with pytest.raises(RuntimeError, match=re.escape(message)):
        winograd_convolution(torch.zeros(x), torch.zeros(weight), bias)


def test_wrong_inputs_of_the_gradient():
    op = torch.ops.mask2former.winograd_conv2d_weight
    for x, grad, message in (
        (torch.zeros(1, 32, 4, 4), torch.zeros(1, 16, 4, 4), "multiple of 32"),
        (torch.zeros(32, 4, 4), torch.zeros(1, 32, 4, 4), "winograd_conv2d_weight: x"),
        (torch.zeros(1, 32, 4, 4), torch.zeros(2, 32, 4, 4), "of the same pictures"),
        (torch.zeros(1, 32, 4, 4), torch.zeros(1, 32, 4, 4).bfloat16(), "must be float32"),
    ):
        with pytest.raises(RuntimeError, match=re.escape(message)):
            op(x, grad)


def test_wrong_types():
    x, weight, _ = operands(1, 32, 32, 6, 6)
    for one, other in ((x.double(), weight.double()), (x, weight.bfloat16())):
        with pytest.raises(RuntimeError, match="float32 or bfloat16|does not fit"):
            winograd_convolution(one, other)


def test_registration():
    x, weight, bias = operands(1, 32, 64, 6, 5)
    x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()
    op = torch.ops.mask2former
    torch.library.opcheck(op.winograd_conv2d, (x, weight, bias, False))
    turned = weight.detach().transpose(0, 1).requires_grad_()
    torch.library.opcheck(op.winograd_conv2d, (x, turned, None, True))
    x, slope = torch.randn(1, 32, 6, 5), torch.randn(1, 64, 6, 5)
    torch.library.opcheck(op.winograd_conv2d_weight, (x, slope))


def test_any_number_of_pictures_is_exported():
    class Module(torch.nn.Module):
        def forward(self, x, weight):
            return winograd_convolution(x, weight)

    x, weight, _ = operands(2, 32, 64, 6, 5)
    sizes = ({0: torch.export.Dim("pictures")}, None)
    exported = torch.export.export(Module(), (x, weight), dynamic_shapes=sizes).module()
    x = torch.cat([x, x[:1]])
    torch.testing.assert_close(exported(x, weight), winograd_convolution(x, weight))


def test_what_follows_is_computed_in_its_place():
    """A view would make autograd copy the gradient of what is computed in the place of a part."""
    x, weight, _ = operands(1, 32, 32, 6, 6)
    out = winograd_convolution(x, weight.requires_grad_())
    assert not out._is_view() and out.is_contiguous(memory_format=torch.channels_last)
    (gradient,) = torch.autograd.grad(out.relu_().sum(), weight)
    expected = F.conv2d(x, weight, padding=1).relu().sum()
    close(gradient, torch.autograd.grad(expected, weight)[0])


def test_there_is_no_second_derivative_of_the_weights():
    x, weight, _ = operands(1, 32, 32, 6, 6)
    weight.requires_grad_()
    loss = winograd_convolution(x, weight).square().sum()
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


def test_it_counts_as_the_convolution():
    x, weight, _ = operands(2, 32, 64, 6, 5)
    x.requires_grad_(), weight.requires_grad_()
    with FlopCounterMode(display=False) as expected:
        F.conv2d(x, weight, padding=1).sum().backward()
    with FlopCounterMode(display=False) as actual:
        winograd_convolution(x, weight).sum().backward()
    assert actual.get_total_flops() == expected.get_total_flops() == 3 * 2 * 2 * 30 * 64 * 32 * 9
