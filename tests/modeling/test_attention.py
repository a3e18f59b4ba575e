"""The decoder's attention and the deformable attention module against torch and closed forms."""

import torch
from torch import nn

from mask2former.modeling.ms_deform_attn import MSDeformAttn
from mask2former.modeling.pixel_decoder import pixel_centres
from mask2former.modeling.transformer_decoder import MultiheadAttention


def test_multihead_attention_equals_torch():
    ours = MultiheadAttention(32, nheads=4)
    theirs = nn.MultiheadAttention(32, 4, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    query, key, value = torch.randn(2, 5, 32), torch.randn(2, 7, 32), torch.randn(2, 7, 32)
    attend = torch.rand(2, 1, 5, 7) > 0.3
    attend[..., 0] = True
    expected, _ = theirs(query, key, value, attn_mask=~attend[:, 0].repeat_interleave(4, 0))
    torch.testing.assert_close(ours(query, key, value, attend), expected)


def test_initial_offsets_point_along_the_compass():
    module = MSDeformAttn(d_model=32, n_levels=2, n_heads=4, n_points=3)
    bias = module.sampling_offsets.bias.detach().view(4, 2, 3, 2)
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    for point in range(3):
        torch.testing.assert_close(bias[:, 0, point], expected * (point + 1), atol=1e-6, rtol=0)
        torch.testing.assert_close(bias[:, 1, point], bias[:, 0, point])


def test_offsets_of_zero_average_the_levels_at_the_query():
    """On a constant map per level, any weights give the weighted mean of the levels."""
    shapes = [(4, 6), (2, 3)]
    module = MSDeformAttn(d_model=8, n_levels=2, n_heads=2, n_points=2)
    for linear in (module.value_proj, module.output_proj):
        nn.init.eye_(linear.weight)
    nn.init.zeros_(module.sampling_offsets.bias)
    value = torch.cat([torch.full((1, 24, 8), 1.0), torch.full((1, 6, 8), 3.0)], dim=1)
    reference = pixel_centres(4, 6, device=torch.device("cpu"))[[8, 9, 14]]  # inner pixels
    output = module(torch.randn(1, 3, 8), reference, value, shapes)
    torch.testing.assert_close(output, torch.full((1, 3, 8), 2.0))


def test_pixel_centres():
    centres = pixel_centres(2, 4, device=torch.device("cpu"))
    assert centres[1].tolist() == [0.375, 0.25]  # x, y of row 0, column 1
    assert centres[4].tolist() == [0.125, 0.75]  # row 1 starts
