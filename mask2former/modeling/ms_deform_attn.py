"""Multi-scale deformable attention (Zhu et al., Deformable DETR, ICLR 2021, equation 3)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import mask2former_ops

from .linear import Linear


class MSDeformAttn(nn.Module):
    """Each query attends, per head, to ``n_points`` sampled places in each of ``n_levels`` maps.

    Shapes: B pictures, Q queries, S pixels of all levels together, C = ``d_model`` channels,
    M heads, L levels, P points.
    """

    def __init__(self, *, d_model: int, n_levels: int, n_heads: int, n_points: int) -> None:
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model ({d_model}) must be a multiple of n_heads ({n_heads})")
        self.d_model, self.n_levels, self.n_heads, self.n_points = (
            d_model,
            n_levels,
            n_heads,
            n_points,
        )
        self.sampling_offsets = Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = Linear(d_model, d_model)
        self.output_proj = Linear(d_model, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with head m looking 1, 2, ... P pixels away in the m-th of M directions."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.n_heads) * (2 * math.pi / self.n_heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=-1)  # (M, 2) on the unit circle,
        direction /= direction.abs().amax(dim=-1, keepdim=True)  # then on the unit square
        distance = torch.arange(1, self.n_points + 1)
        offsets = direction[:, None, None] * distance[:, None]  # (M, 1, P, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.n_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """
        Args:
            query: (B, Q, C).
            reference_points: (Q, 2), x and y in [0, 1] of the picture.
            value: (B, S, C), the levels flattened and joined.
            spatial_shapes: (height, width) of each level.

        Returns:
            (B, Q, C).
        """
        batch, num_queries, _ = query.shape
        grid = (batch, num_queries, self.n_heads, self.n_levels, self.n_points)
        with torch.autocast(query.device.type, enabled=False):  # places need the precision
            offsets = self.sampling_offsets(query.float()).view(*grid, 2)
        logits = self.attention_weights(query).view(grid)
        value = self.value_proj(value).unflatten(-1, (self.n_heads, -1))  # (B, S, M, C / M)
        sampled = mask2former_ops.ms_deform_attn_fused(
            value, spatial_shapes, reference_points, offsets, logits
        )
        return self.output_proj(sampled)
