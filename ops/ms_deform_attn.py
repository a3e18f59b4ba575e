"""Multi-scale deformable attention: the functions, and their operators' fake and autograd formulas.

B pictures, S pixels of all levels together, Q queries, M heads, D channels of a head, L levels,
P points.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .library import backend, use_compiled
from .reference import ms_deform_attn_reference

_VALUE_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Sum over levels and points of attention weight times value at the sampled location.

    Equation 3 of Zhu et al., Deformable DETR (ICLR 2021), without its two projections. The location
    (x, y) is the point (x * W - 0.5, y * H - 0.5) of a level whose pixel centres have integer
    coordinates; values in between are bilinear, those outside are 0. A sample whose location is NaN
    or infinite counts as 0. Values are expected to be finite: one that is not may spread, on GPUs,
    to queries with a sample outside. Gradients flow to all three tensors, once (no double
    backward).

    Args:
        value: (B, S, M, D) in float32, float64, bfloat16 or float16. Sums are float32, or float64
            for float64.
        spatial_shapes: (H, W) of each of the L levels, as Python ints; S is the sum of H * W.
        sampling_locations: (B, Q, M, L, P, 2), x and y in [0, 1] of the level. Other types than
            float32 (float64 for float64 values) are converted; bfloat16 cannot tell apart the
            pixels of a level wider than 256, so keep locations in float32 under autocast.
        attention_weights: (B, Q, M, L, P), converted likewise.

    Returns:
        (B, Q, M * D), in the dtype of ``value``.

    Raises:
        TypeError: ``spatial_shapes`` is a tensor, or ``value`` has another dtype.
        ValueError: the shapes or devices do not fit together.
    """
    _check(value, spatial_shapes, sampling_locations, attention_weights)
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    locations, weights = sampling_locations.to(dtype), attention_weights.to(dtype)
    if use_compiled(value.device.type):
        sizes = [size for shape in spatial_shapes for size in shape]
        return torch.ops.mask2former.ms_deform_attn(value, sizes, locations, weights)
    return ms_deform_attn_reference(value, spatial_shapes, locations, weights)


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """`ms_deform_attn` at point + offset with softmax(logits), neither of which reaches memory.

    Equations 2 and 3 of Zhu et al. have the offsets in pixels, as the projection of a query makes
    them.

    Args:
        value, spatial_shapes: as there.
        reference_points: (Q, 2), x and y in [0, 1] of the picture.
        sampling_offsets: (B, Q, M, L, P, 2), added to them, x and y in pixels of the level.
        attention_logits: (B, Q, M, L, P); the softmax is over the L * P of a query and head.

    Returns and raises what `ms_deform_attn` does; errors call the offsets ``sampling_locations``
    and the logits ``attention_weights``.
    """
    _check(value, spatial_shapes, sampling_offsets, attention_logits)
    if reference_points.shape != (sampling_offsets.shape[1], 2):
        raise ValueError(
            f"reference_points has shape {tuple(reference_points.shape)}, expected "
            f"{(sampling_offsets.shape[1], 2)} (Q, 2)"
        )
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    raw = [t.to(dtype) for t in (reference_points, sampling_offsets, attention_logits)]
    if use_compiled(value.device.type):
        sizes = [size for shape in spatial_shapes for size in shape]
        return torch.ops.mask2former.ms_deform_attn_fused(value, sizes, *raw)
    return ms_deform_attn_reference(value, spatial_shapes, *_finish(*raw, spatial_shapes))


def _finish(
    reference_points: Tensor,
    offsets: Tensor,
    logits: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
) -> tuple[Tensor, Tensor]:
    """Sampling locations and attention weights."""
    locations = reference_points[:, None, None, None] + offsets / _sizes(spatial_shapes, offsets)
    return locations, logits.flatten(3).softmax(-1).view(logits.shape)


def _sizes(spatial_shapes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """(L, 1, 2): width and height of each level."""
    # Sizes, not their reciprocals: torch.export keeps these variable.
    sizes = torch.tensor([(width, height) for height, width in spatial_shapes], device=like.device)
    return sizes.to(like.dtype)[:, None]


def _check(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    if isinstance(spatial_shapes, Tensor):
        raise TypeError(
            "spatial_shapes is a tensor; pass (height, width) of each level as Python ints, for "
            "example spatial_shapes.tolist(): reading them from a device would wait for it"
        )
    if value.dtype not in _VALUE_DTYPES:
        raise TypeError(f"value is {value.dtype}, expected one of {_VALUE_DTYPES}")
    if value.dim() != 4:
        raise ValueError(f"value has shape {tuple(value.shape)}, expected (B, S, M, D)")
    if sampling_locations.dim() != 6:
        raise ValueError(
            f"sampling_locations has shape {tuple(sampling_locations.shape)}, "
            "expected (B, Q, M, L, P, 2)"
        )
    batch, pixels, heads, _ = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    if pixels != sum(height * width for height, width in spatial_shapes):
        raise ValueError(
            f"value has shape {tuple(value.shape)}, whose {pixels} pixels are not those of "
            f"spatial_shapes {tuple(spatial_shapes)}"
        )
    expected = (batch, queries, heads, len(spatial_shapes), points)
    if sampling_locations.shape != (*expected, 2):
        raise ValueError(
            f"sampling_locations has shape {tuple(sampling_locations.shape)}, expected "
            f"{(*expected, 2)} (B, Q, M, L, P, 2) for value {tuple(value.shape)} and "
            f"{len(spatial_shapes)} levels"
        )
    if attention_weights.shape != expected:
        raise ValueError(
            f"attention_weights has shape {tuple(attention_weights.shape)}, expected {expected} "
            f"(B, Q, M, L, P) for sampling_locations {tuple(sampling_locations.shape)}"
        )
    if not value.device == sampling_locations.device == attention_weights.device:
        raise ValueError(
            f"value is on {value.device}, sampling_locations on {sampling_locations.device}, "
            f"attention_weights on {attention_weights.device}; expected one device"
        )


def _forward_fake(
    value: Tensor, spatial_shapes: list[int], locations: Tensor, weights: Tensor
) -> Tensor:
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


def _backward_fake(
    grad: Tensor,
    value: Tensor,
    spatial_shapes: list[int],
    locations: Tensor,
    weights: Tensor,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(t.new_empty(t.shape) for t in (value, locations, weights))


def _save(ctx, inputs: tuple, output: Tensor) -> None:
    value, ctx.spatial_shapes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    value, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = torch.ops.mask2former.ms_deform_attn_backward(
        grad,
        value,
        ctx.spatial_shapes,
        locations,
        weights,
        torch.are_deterministic_algorithms_enabled(),
    )
    return grad_value, None, grad_locations, grad_weights


def _fused_fake(
    value: Tensor, spatial_shapes: list[int], reference: Tensor, offsets: Tensor, logits: Tensor
) -> Tensor:
    return _forward_fake(value, spatial_shapes, offsets, logits)


def _save_fused(ctx, inputs: tuple, output: Tensor) -> None:
    value, ctx.spatial_shapes, reference, offsets, logits = inputs
    ctx.save_for_backward(value, reference, offsets, logits)


def _fused_backward_fake(
    grad: Tensor,
    value: Tensor,
    spatial_shapes: list[int],
    reference: Tensor,
    offsets: Tensor,
    logits: Tensor,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward_fake(grad, value, spatial_shapes, offsets, logits, deterministic)


def _fused_backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    value, *raw = ctx.saved_tensors
    grad_value, grad_offsets, grad_logits = torch.ops.mask2former.ms_deform_attn_fused_backward(
        grad, value, ctx.spatial_shapes, *raw, torch.are_deterministic_algorithms_enabled()
    )
    grad_reference = None
    if ctx.needs_input_grad[2]:  # points are in [0, 1], offsets in pixels
        shapes = list(zip(ctx.spatial_shapes[::2], ctx.spatial_shapes[1::2], strict=True))
        grad_reference = (grad_offsets * _sizes(shapes, grad_offsets)).sum((0, 2, 3, 4))
    return grad_value, None, grad_reference, grad_offsets, grad_logits


def _double_backward(ctx, *grads: Tensor) -> None:
    raise NotImplementedError("ms_deform_attn has no second derivative")


if backend("cpu").name == "compiled":
    torch.library.register_fake("mask2former::ms_deform_attn", _forward_fake)
    torch.library.register_fake("mask2former::ms_deform_attn_fused", _fused_fake)
    torch.library.register_fake("mask2former::ms_deform_attn_backward", _backward_fake)
    torch.library.register_fake("mask2former::ms_deform_attn_fused_backward", _fused_backward_fake)
    torch.library.register_autograd("mask2former::ms_deform_attn", _backward, setup_context=_save)
    torch.library.register_autograd(
        "mask2former::ms_deform_attn_fused", _fused_backward, setup_context=_save_fused
    )
    torch.library.register_autograd("mask2former::ms_deform_attn_backward", _double_backward)
    torch.library.register_autograd("mask2former::ms_deform_attn_fused_backward", _double_backward)
