import pytest
import torch

from mask2former_ops import ms_deform_attn_reference


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_values_do_not_coarsen_the_locations(dtype):
    """Stripes one pixel wide: a location rounded to half precision would read other stripes."""
    width = 512
    stripes = torch.arange(width).remainder(2).to(dtype)
    value = stripes.repeat(2).view(1, 2 * width, 1, 1)
    columns = torch.arange(0, width, 7)
    locations = torch.stack([(columns + 0.5) / width, torch.full((len(columns),), 0.5)], 1)
    locations = locations.view(1, -1, 1, 1, 1, 2)
    weights = torch.ones(1, len(columns), 1, 1, 1)
    output = ms_deform_attn_reference(value, [(2, width)], locations, weights)
    assert output.dtype == dtype
    torch.testing.assert_close(
        output.flatten().float(), columns.remainder(2).float(), atol=1e-3, rtol=0
    )
