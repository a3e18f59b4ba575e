"""The compiled operator against float64 grid_sample, closed forms and numerical derivatives."""

import math
import shutil

import pytest
import torch

import mask2former_ops
from mask2former_ops import ms_deform_attn, ms_deform_attn_reference

SHAPES = [(6, 5), (3, 4), (1, 1)]
INF, NAN = math.inf, math.nan


@pytest.fixture(scope="module", autouse=True)
def _compiled():
    status = mask2former_ops.backend("cpu")
    if status.name == "pytorch" and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        pytest.skip("no C++ compiler on PATH, so the operator cannot be built")
    assert status.name == "compiled", status.reason


def make_inputs(
    batch=2, queries=7, heads=3, channels=8, points=2, shapes=SHAPES, dtype=torch.float64
):
    """Random value, locations in [-0.4, 1.4], attention weights that sum to 1."""
    pixels = sum(h * w for h, w in shapes)
    value = torch.randn(batch, pixels, heads, channels, dtype=torch.float64)
    grid = (batch, queries, heads, len(shapes), points)
    locations = torch.rand(*grid, 2, dtype=torch.float64) * 1.8 - 0.4
    weights = torch.rand(*grid, dtype=torch.float64).flatten(3).softmax(-1).view(grid)
    other = dtype if dtype == torch.float64 else torch.float32
    return value.to(dtype), locations.to(other), weights.to(other)


def outputs_and_gradients(function, inputs, shapes, grad):
    inputs = [t.detach().clone().requires_grad_() for t in inputs]
    output = function(inputs[0], shapes, inputs[1], inputs[2])
    return [output.detach(), *torch.autograd.grad(output, inputs, grad.to(output.dtype))]


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float64, 1e-12),
        (torch.float32, 2e-5),
        (torch.bfloat16, 8e-3),  # half a unit in the last place of the output is 2**-9
        (torch.float16, 1e-3),
    ],
)
@pytest.mark.parametrize("channels", [1, 6, 8, 16, 32, 45, 64])
def test_output_and_gradients_are_those_of_grid_sample(dtype, tolerance, channels):
    inputs = make_inputs(channels=channels, dtype=dtype)
    grad = torch.randn(2, 7, 3 * channels, dtype=torch.float64).to(dtype)
    # the oracle sees the rounded inputs, in float64
    expected = outputs_and_gradients(
        ms_deform_attn_reference, [t.double() for t in inputs], SHAPES, grad
    )
    actual = outputs_and_gradients(ms_deform_attn, inputs, SHAPES, grad)
    for result, oracle, like in zip(actual, expected, [inputs[0], *inputs]):
        assert result.dtype == like.dtype
        error = (result.double() - oracle).abs().max()
        assert error <= tolerance * oracle.abs().max()


def test_numerical_derivatives():
    value, locations, weights = (
        t.requires_grad_() for t in make_inputs(batch=1, queries=2, heads=2, channels=5)
    )
    assert torch.autograd.gradcheck(
        lambda v, x, a: ms_deform_attn(v, SHAPES, x, a), (value, locations, weights)
    )


def test_linear_ramp_is_interpolated_exactly():
    """The image 3 x - 2 y + 1 has this very value between its pixel centres."""
    height, width = 9, 13
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    value = (3.0 * x - 2.0 * y + 1).double().view(1, -1, 1, 1)
    points = torch.rand(1, 50, 1, 1, 1, 2, dtype=torch.float64)
    points = points * torch.tensor([width - 1.0, height - 1.0])  # in pixels, between the centres
    locations = (points + 0.5) / torch.tensor([width, height])
    actual = ms_deform_attn(value, [(height, width)], locations, torch.ones(1, 50, 1, 1, 1))
    expected = 3 * points[..., 0] - 2 * points[..., 1] + 1
    torch.testing.assert_close(actual.flatten(), expected.flatten())


def test_pixel_centre_returns_the_pixel():
    value = torch.randn(1, 12, 2, 8)
    x, y = torch.arange(4), torch.arange(3)
    grid = torch.stack(torch.meshgrid((x + 0.5) / 4, (y + 0.5) / 3, indexing="xy"), -1)
    locations = grid.view(1, 12, 1, 1, 1, 2).expand(-1, -1, 2, -1, -1, -1)
    actual = ms_deform_attn(value, [(3, 4)], locations, torch.ones(1, 12, 2, 1, 1))
    torch.testing.assert_close(actual, value.flatten(2), atol=1e-6, rtol=0)


def test_halfway_over_the_border_counts_half():
    """A sample on the edge of a 1 x 1 level has half of its pixel; at the corner, a quarter."""
    value = torch.full((1, 1, 1, 1), 8.0)
    locations = torch.tensor([[0.5, 0.5], [0.0, 0.5], [0.5, 1.0], [1.0, 0.0], [1.5, 0.5]])
    actual = ms_deform_attn(
        value, [(1, 1)], locations.view(1, 5, 1, 1, 1, 2), torch.ones(1, 5, 1, 1, 1)
    )
    assert actual.flatten().tolist() == [8, 4, 4, 2, 0]


@pytest.mark.parametrize("bad", [NAN, INF, -INF, 1e30, -1e30, 3e9, 1e3])
@pytest.mark.parametrize("axis", [0, 1])
def test_locations_far_away_or_not_finite_count_as_zero(bad, axis):
    value, locations, weights = make_inputs(dtype=torch.float32)
    locations[0, 2, 1, 0, 1, axis] = bad
    without = weights.clone()
    without[0, 2, 1, 0, 1] = 0
    harmless = locations.clone()
    harmless[0, 2, 1, 0, 1] = 0.5
    grad = torch.randn(2, 7, 24)
    actual = outputs_and_gradients(ms_deform_attn, (value, locations, weights), SHAPES, grad)
    expected = outputs_and_gradients(ms_deform_attn, (value, harmless, without), SHAPES, grad)
    torch.testing.assert_close(actual[:2], expected[:2])
    assert actual[2][0, 2, 1, 0, 1].tolist() == [0, 0]
    assert actual[3][0, 2, 1, 0, 1] == 0


def test_a_value_that_is_not_finite_stays_where_it_is():
    value, locations, weights = make_inputs(dtype=torch.float32)
    expected = ms_deform_attn(value, SHAPES, locations, weights)
    value[0, :, 1] = NAN
    actual = ms_deform_attn(value, SHAPES, locations, weights).unflatten(-1, (3, 8))
    assert actual[0, :, 1].isnan().any()
    actual[0, :, 1] = expected.unflatten(-1, (3, 8))[0, :, 1]
    assert torch.equal(actual.flatten(2), expected)


@pytest.mark.parametrize("sizes", [{"queries": 0}, {"batch": 0}, {"channels": 0}, {"heads": 0}])
def test_nothing_to_do(sizes):
    inputs = make_inputs(**sizes)
    batch, queries, heads = inputs[1].shape[:3]
    grad = torch.zeros(batch, queries, heads * inputs[0].shape[3])
    output, *gradients = outputs_and_gradients(ms_deform_attn, inputs, SHAPES, grad)
    assert output.shape == grad.shape
    for gradient, tensor in zip(gradients, inputs):
        assert torch.equal(gradient, torch.zeros_like(tensor))


def test_more_samples_than_a_block():
    """Rows of 300 samples, and 2,000 rows of one: both ends of the blocking."""
    for sizes in ({"points": 100}, {"queries": 700, "points": 1, "shapes": [(6, 5)]}):
        inputs, shapes = make_inputs(**sizes), sizes.get("shapes", SHAPES)
        grad = torch.randn(2, inputs[1].shape[1], 24, dtype=torch.float64)
        actual = outputs_and_gradients(ms_deform_attn, inputs, shapes, grad)
        expected = outputs_and_gradients(ms_deform_attn_reference, inputs, shapes, grad)
        torch.testing.assert_close(actual, expected)


def test_inputs_that_are_not_contiguous():
    value, locations, weights = make_inputs()
    strided = (
        value.transpose(1, 2).contiguous().transpose(1, 2),
        locations.movedim(-1, 0).contiguous().movedim(0, -1),
        weights.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0),
    )
    assert not any(t.is_contiguous() for t in strided)
    grad = torch.randn(2, 24, 7, dtype=torch.float64).transpose(1, 2)
    actual = outputs_and_gradients(ms_deform_attn, strided, SHAPES, grad)
    expected = outputs_and_gradients(
        ms_deform_attn, (value, locations, weights), SHAPES, grad.contiguous()
    )
    torch.testing.assert_close(actual, expected)


def test_same_bits_for_every_run_and_number_of_threads():
    shapes = [(40, 41), (20, 21)]
    inputs = make_inputs(queries=500, shapes=shapes, dtype=torch.float32)
    grad = torch.randn(2, 500, 24)
    threads = torch.get_num_threads()
    runs = []
    try:
        for count in (1, 2, 3, 3):
            torch.set_num_threads(count)
            runs.append(outputs_and_gradients(ms_deform_attn, inputs, shapes, grad))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(map(torch.equal, run, runs[0]))


def test_locations_and_weights_of_another_type_are_converted():
    value, locations, weights = make_inputs(dtype=torch.bfloat16)
    halves = locations.bfloat16().requires_grad_(), weights.bfloat16().requires_grad_()
    output = ms_deform_attn(value, SHAPES, *halves)
    assert torch.equal(output, ms_deform_attn(value, SHAPES, *(t.float() for t in halves)))
    output.float().sum().backward()
    assert all(t.grad.dtype == torch.bfloat16 for t in halves)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = ms_deform_attn(value.float(), SHAPES, *halves)
    assert mixed.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda v, s, x, a: (v, torch.tensor(s), x, a), TypeError, "spatial_shapes is a tensor"),
        (lambda v, s, x, a: (v.long(), s, x, a), TypeError, "value is torch.int64"),
        (lambda v, s, x, a: (v[0], s, x, a), ValueError, r"value has shape \(43, 3, 8\)"),
        (lambda v, s, x, a: (v[:, 1:], s, x, a), ValueError, "42 pixels.*spatial_shapes"),
        (lambda v, s, x, a: (v, s, x[..., 0], a), ValueError, "sampling_locations has shape"),
        (
            lambda v, s, x, a: (v, s, x[:1], a),
            ValueError,
            r"sampling_locations has shape \(1, 7.*expected \(2, 7",
        ),
        (
            lambda v, s, x, a: (v, s, x, a[..., :1]),
            ValueError,
            r"attention_weights has shape \(2, 7, 3, 3, 1\), expected \(2, 7, 3, 3, 2\)",
        ),
        (lambda v, s, x, a: (v, s, x.to("meta"), a), ValueError, "sampling_locations on meta"),
    ],
)
def test_errors_name_the_argument(change, error, message):
    value, locations, weights = make_inputs()
    with pytest.raises(error, match=message):
        ms_deform_attn(*change(value, SHAPES, locations, weights))


OPERATOR_ERRORS = [
    (lambda v, s, x, a: (v, [*s[:-1], 2], x, a), "43 pixels, spatial_shapes 44"),
    (lambda v, s, x, a: (v, s[:-2], x, a), "spatial_shapes has 4 numbers"),
    (lambda v, s, x, a: (v, [-6, -5, *s[2:]], x, a), r"a level of size \(-6, -5\)"),
    (lambda v, s, x, a: (v, s, x[:, :6], a), r"attention_weights has shape \(2, 7"),
    (lambda v, s, x, a: (v, s, x.float(), a), "must be float64"),
    (lambda v, s, x, a: (v, s, x[..., :0, :], a[..., :0]), "levels times points is 0"),
]


@pytest.mark.parametrize(("change", "message"), OPERATOR_ERRORS)
def test_the_operator_itself_checks_what_it_relies_on(change, message):
    """Code that calls torch.ops directly must get an error rather than read out of bounds."""
    value, locations, weights = make_inputs()
    flat = [size for shape in SHAPES for size in shape]
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mask2former.ms_deform_attn(*change(value, flat, locations, weights))
    grad = torch.zeros(2, 7, 24, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mask2former.ms_deform_attn_backward(
            grad, *change(value, flat, locations, weights), False
        )


def test_an_error_of_the_operator_is_not_hidden():
    """It must not turn into a slow run of the reference, which can do 1,025 samples."""
    value, locations, weights = make_inputs(points=1025, shapes=[(2, 2)])
    with pytest.raises(RuntimeError, match="levels times points is 1025"):
        ms_deform_attn(value, [(2, 2)], locations, weights)


def test_no_second_derivative():
    inputs = [t.requires_grad_() for t in make_inputs()]
    output = ms_deform_attn(inputs[0], SHAPES, *inputs[1:])
    grads = torch.autograd.grad(output.square().sum(), inputs, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        grads[1].sum().backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_registration(dtype):
    """Schema, fake implementation, autograd and tracing agree with what the kernels do."""
    inputs = [t.requires_grad_() for t in make_inputs(dtype=dtype)]
    flat = [size for shape in SHAPES for size in shape]
    forward = torch.ops.mask2former.ms_deform_attn.default
    torch.library.opcheck(forward, (inputs[0], flat, *inputs[1:]))
    grad, (value, *samples) = torch.randn(2, 7, 24).to(dtype), (t.detach() for t in inputs)
    backward = torch.ops.mask2former.ms_deform_attn_backward.default
    torch.library.opcheck(backward, (grad, value, flat, *samples, False))


class OneLevel(torch.nn.Module):
    """Takes a (B, H, W, M, D) picture, so that the level's shape is dynamic."""

    def forward(self, picture, locations, weights):
        shapes = [(picture.shape[1], picture.shape[2])]
        return ms_deform_attn(picture.flatten(1, 2), shapes, locations, weights).tanh()


def one_level_inputs(height, width):
    value, *samples = make_inputs(shapes=[(height, width)], dtype=torch.float32)
    return value.unflatten(1, (height, width)), *samples


def test_compile_without_graph_break_nor_recompilation():
    torch.compiler.reset()
    module, graphs = OneLevel(), []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(module, backend=count, fullgraph=True, dynamic=True)
    for size in ((4, 6), (5, 9), (8, 3)):
        inputs = one_level_inputs(*size)
        torch.testing.assert_close(compiled(*inputs), module(*inputs))
    assert len(graphs) == 1
    assert any("ms_deform_attn" in str(node.target) for node in graphs[0].graph.nodes)


def test_compile_with_gradients():
    torch.compiler.reset()
    module, inputs = OneLevel(), one_level_inputs(4, 6)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    expected, actual = (
        torch.autograd.grad(f(*leaves).sum(), leaves)
        for f in (module, compiled)
        for leaves in [[t.clone().requires_grad_() for t in inputs]]
    )
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("strict", [True, False])
def test_export_with_dynamic_sizes(strict):
    height, width = (torch.export.Dim(name, min=2, max=64) for name in "hw")
    module = OneLevel()
    program = torch.export.export(
        module,
        one_level_inputs(4, 6),
        dynamic_shapes=({1: height, 2: width}, {}, {}),
        strict=strict,
    )
    assert "mask2former.ms_deform_attn" in str(program.graph)
    inputs = one_level_inputs(7, 5)
    torch.testing.assert_close(program.module()(*inputs), module(*inputs))


@pytest.mark.gpu
def test_cuda_gives_the_same():
    inputs = make_inputs(dtype=torch.float32)
    grad = torch.randn(2, 7, 24)
    expected = outputs_and_gradients(ms_deform_attn, inputs, SHAPES, grad)
    actual = outputs_and_gradients(ms_deform_attn, [t.cuda() for t in inputs], SHAPES, grad.cuda())
    torch.testing.assert_close([t.cpu() for t in actual], expected)


@pytest.mark.gpu
@pytest.mark.parametrize("channels", [5, 8, 32])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_cuda_against_the_reference(dtype, channels):
    """Vectors of channels and single ones; rows of a power of two lanes and of others."""
    assert mask2former_ops.backend("cuda").name == "compiled"
    inputs = [t.cuda() for t in make_inputs(dtype=dtype, channels=channels)]
    grad = torch.randn(2, 7, inputs[0].shape[2] * channels, device="cuda").to(dtype)
    exact = outputs_and_gradients(
        ms_deform_attn_reference, [t.double() for t in inputs], SHAPES, grad.double()
    )
    actual = outputs_and_gradients(ms_deform_attn, inputs, SHAPES, grad)
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5}.get(dtype, 2e-2)
    for ours, true in zip(actual, exact):
        assert (ours.double() - true).abs().max() <= tolerance * true.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_is_deterministic_if_asked(dtype):
    """Thousands of samples on few pixels, in whatever order: the same bits, and the right ones."""
    inputs = [t.cuda() for t in make_inputs(dtype=dtype, channels=32, queries=2000)]
    grad = torch.randn(2, 2000, inputs[0].shape[2] * 32, device="cuda").to(dtype)
    exact = outputs_and_gradients(
        ms_deform_attn_reference, [t.double() for t in inputs], SHAPES, grad.double()
    )
    torch.use_deterministic_algorithms(True)
    try:
        runs = [outputs_and_gradients(ms_deform_attn, inputs, SHAPES, grad) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0]))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for ours, true in zip(runs[0], exact):
        assert (ours.double() - true).abs().max() <= tolerance * true.abs().max()
