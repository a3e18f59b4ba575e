"""Multi-scale deformable attention in PyTorch's own operators.

It runs on every device and is differentiable: the fallback where there is no compiled operator, and
the oracle that the compiled one is tested against.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """The same as `mask2former_ops.ms_deform_attn`, by one `grid_sample` a level.

    The one difference: the contribution of a location that is NaN or infinite is undefined.
    """
    batch, num_queries, num_heads = sampling_locations.shape[:3]
    # Half precision cannot tell apart the pixels of a wide level, and sums in it are coarse.
    dtype = torch.promote_types(value.dtype, torch.float32)
    levels = value.to(dtype).split([height * width for height, width in spatial_shapes], dim=1)
    grids = 2 * sampling_locations.to(dtype) - 1  # grid_sample counts from -1 to 1
    sampled = []
    for level, (height, width) in enumerate(spatial_shapes):
        maps = levels[level].permute(0, 2, 3, 1).flatten(0, 1)  # (B * M, D, H * W)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B * M, Q, P, 2)
        sampled.append(
            F.grid_sample(
                maps.unflatten(-1, (height, width)),
                grid,
                mode="bilinear",
                padding_mode="zeros",
                align_corners=False,
            )  # (B * M, D, Q, P)
        )
    weights = attention_weights.to(dtype).transpose(1, 2)  # (B, M, Q, L, P)
    weights = weights.reshape(batch * num_heads, 1, num_queries, -1)
    output = (torch.cat(sampled, dim=-1) * weights).sum(-1)  # (B * M, D, Q)
    return output.view(batch, -1, num_queries).transpose(1, 2).contiguous().to(value.dtype)
