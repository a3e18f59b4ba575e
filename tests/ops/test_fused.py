"""The fused operator against the reference, in float64, and against the unfused one."""

import math
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import mask2former_ops
from mask2former_ops import ms_deform_attn, ms_deform_attn_fused, ms_deform_attn_reference

SHAPES = [(6, 5), (3, 4), (1, 1)]
HEADS, POINTS, QUERIES = 3, 2, 7

needs_compiled = pytest.mark.skipif(
    mask2former_ops.backend("cpu").name != "compiled", reason="there is no compiled op"
)


def make_inputs(dtype=torch.float64, channels=8):
    """Value, reference points, offsets, logits."""
    value = torch.randn(2, 43, HEADS, channels, dtype=torch.float64)
    reference = torch.rand(QUERIES, 2, dtype=torch.float64)
    grid = (2, QUERIES, HEADS, len(SHAPES), POINTS)
    offsets = 1.5 * torch.randn(*grid, 2, dtype=torch.float64)
    logits = 3 * torch.randn(grid, dtype=torch.float64)
    other = dtype if dtype == torch.float64 else torch.float32
    return value.to(dtype), reference.to(other), offsets.to(other), logits.to(other)


def fused(value, reference, offsets, logits):
    return ms_deform_attn_fused(value, SHAPES, reference, offsets, logits)


def locations_of(reference, offsets):
    sizes = torch.tensor([(width, height) for height, width in SHAPES], device=offsets.device)
    return reference[:, None, None, None] + offsets / sizes[:, None]


def in_steps(value, reference, offsets, logits):
    locations = locations_of(reference, offsets)
    weights = logits.flatten(3).softmax(-1).view(logits.shape)
    return ms_deform_attn_reference(value, SHAPES, locations, weights)


def outputs_and_gradients(function, inputs, grad):
    inputs = [t.detach().clone().requires_grad_() for t in inputs]
    output = function(*inputs)
    return [output.detach(), *torch.autograd.grad(output, inputs, grad.to(output.dtype))]


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_compiled), False])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)],
)
def test_output_and_gradients(monkeypatch, dtype, tolerance, compiled):
    if not compiled:
        module = sys.modules["mask2former_ops.ms_deform_attn"]  # the package has its function so
        monkeypatch.setattr(module, "use_compiled", lambda device: False)
    inputs = make_inputs(dtype)
    grad = torch.randn(2, QUERIES, HEADS * 8, dtype=torch.float64).to(dtype)
    expected = outputs_and_gradients(in_steps, [t.double() for t in inputs], grad)
    actual = outputs_and_gradients(fused, inputs, grad)
    for result, oracle, like in zip(actual, expected, [inputs[0], *inputs]):
        assert result.dtype == like.dtype
        assert (result.double() - oracle).abs().max() <= tolerance * oracle.abs().max()


def test_softmax_over_the_whole_range_of_float32():
    """Two levels of one pixel, 1 and 0: the output is the softmax, however large the logits."""
    logits = torch.cat([torch.linspace(-120, 0, 999), torch.tensor([3e38, -3e38, 88.0, 1e-30])])
    chosen = torch.stack([logits, torch.zeros_like(logits)], dim=-1)  # against 0
    value = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    grid = (1, len(logits), 1, 2, 1)
    actual = ms_deform_attn_fused(
        value,
        [(1, 1), (1, 1)],
        torch.full((len(logits), 2), 0.5),
        torch.zeros(*grid, 2),
        chosen.view(grid),
    )
    expected = chosen.double().softmax(-1)[:, 0]
    error = (actual.flatten() - expected).abs() / expected.clamp(min=1e-31)  # then, absolutely
    assert error.max() < 5e-7


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_logit_that_is_not_finite_spoils_its_row_alone(bad):
    value, reference, offsets, logits = make_inputs(torch.float32)
    offsets *= 0  # every sample counts
    expected = fused(value, reference, offsets, logits)
    logits[1, 3, 2, 0, 1] = bad
    actual = fused(value, reference, offsets, logits).unflatten(-1, (HEADS, -1))
    assert actual[1, 3, 2].isnan().all()
    actual[1, 3, 2] = expected.unflatten(-1, (HEADS, -1))[1, 3, 2]
    assert torch.equal(actual.flatten(2), expected)


def test_equals_the_unfused_operator():
    value, reference, offsets, logits = make_inputs(torch.float32, channels=32)
    locations = locations_of(reference, offsets)
    weights = logits.flatten(3).softmax(-1).view(logits.shape)
    expected = ms_deform_attn(value, SHAPES, locations, weights)
    torch.testing.assert_close(fused(value, reference, offsets, logits), expected)


def test_errors_name_the_argument():
    value, reference, offsets, logits = make_inputs()
    with pytest.raises(ValueError, match=r"reference_points has shape \(6, 2\), expected \(7, 2\)"):
        fused(value, reference[1:], offsets, logits)
    with pytest.raises(ValueError, match="attention_weights has shape"):
        fused(value, reference, offsets, logits[..., :1])


@needs_compiled
def test_the_operator_itself_checks_the_reference_points():
    value, reference, offsets, logits = make_inputs()
    flat = [size for shape in SHAPES for size in shape]
    operator = torch.ops.mask2former.ms_deform_attn_fused
    with pytest.raises(RuntimeError, match=r"reference_points has shape \(6, 2\)"):
        operator(value, flat, reference[1:], offsets, logits)
    with pytest.raises(RuntimeError, match="type and device of sampling_offsets"):
        operator(value, flat, reference.float(), offsets, logits)


@needs_compiled
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_registration(dtype):
    value, *others = (t.requires_grad_() for t in make_inputs(dtype))
    flat = [size for shape in SHAPES for size in shape]
    operator = torch.ops.mask2former.ms_deform_attn_fused.default
    torch.library.opcheck(operator, (value, flat, *others))


def test_compile_with_gradients():
    torch.compiler.reset()
    inputs = make_inputs(torch.float32)
    grad = torch.randn(2, QUERIES, HEADS * 8)
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    expected = outputs_and_gradients(fused, inputs, grad)
    torch.testing.assert_close(outputs_and_gradients(compiled, inputs, grad), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [5, 32])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_cuda(dtype, channels):
    inputs = [t.cuda() for t in make_inputs(dtype, channels)]
    grad = torch.randn(2, QUERIES, HEADS * channels, device="cuda").to(dtype)
    exact = outputs_and_gradients(in_steps, [t.double() for t in inputs], grad.double())
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5}.get(dtype, 2e-2)
    for ours, true in zip(outputs_and_gradients(fused, inputs, grad), exact):
        assert (ours.double() - true).abs().max() <= tolerance * true.abs().max()


@needs_compiled
def test_plain_is_for_its_block_and_thread():
    from mask2former_ops.library import use_compiled

    with mask2former_ops.plain():
        assert not use_compiled("cpu")
        with ThreadPoolExecutor() as other:
            assert other.submit(use_compiled, "cpu").result()
    assert use_compiled("cpu")
