import math

import pytest
import torch

from mask2former.modeling.position_encoding import sine_position_encoding


@pytest.mark.parametrize("x, y, pair", [(0, 0, 0), (4, 2, 1), (3, 0, 3)])
def test_closed_form(x, y, pair):
    height, width, channels = 3, 5, 16
    encoding = sine_position_encoding(height, width, channels, device=torch.device("cpu"))
    assert encoding.shape == (channels, height, width)
    period = 10000 ** (2 * pair / (channels / 2))
    for offset, position, length in ((0, y, height), (channels // 2, x, width)):
        angle = 2 * math.pi * (position + 1) / (length + 1e-6) / period
        assert encoding[offset + 2 * pair, y, x] == pytest.approx(math.sin(angle), abs=1e-6)
        assert encoding[offset + 2 * pair + 1, y, x] == pytest.approx(math.cos(angle), abs=1e-6)
