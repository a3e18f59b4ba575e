"""The operators on rows of maps, against PyTorch's own in float64."""

import re
from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F

from mask2former_ops import backend, mask_sums, plain, resize_rows, source_rows

pytestmark = pytest.mark.usefixtures("lanes")
compiled = pytest.mark.skipif(backend("cpu").name != "compiled", reason="there is no compiled op")


def resized(maps, rows, size):
    """By the rows that are needed, of maps that are there."""
    first, last = source_rows(maps.shape[1], rows, size[0])
    return resize_rows(maps[:, first:last], first, maps.shape[1], rows, size)


@pytest.mark.parametrize(
    "source, size, rows",
    [
        ((20, 30), (80, 120), (0, 80)),
        ((20, 30), (80, 120), (13, 21)),
        ((20, 30), (80, 121), (78, 80)),
        ((20, 30), (80, 121), (79, 80)),
        ((20, 30), (7, 5), (2, 7)),
        ((21, 300), (50, 299), (3, 50)),
        ((1, 1), (9, 4), (0, 9)),
        ((2, 1), (9, 70), (5, 6)),
        ((1, 2), (1, 3), (0, 1)),
    ],
)
def test_resizing(source, size, rows):
    maps = torch.randn(3, *source)
    expected = F.interpolate(maps[None].double(), size=size, mode="bilinear")[0]
    expected = expected[:, slice(*rows)].float()
    torch.testing.assert_close(resized(maps, rows, size), expected, rtol=1e-5, atol=1e-5)
    with plain():  # which has the places within a line in float32
        torch.testing.assert_close(resized(maps, rows, size), expected, rtol=1e-3, atol=1e-3)
    part = torch.randn(6, source[0] + 3, source[1] + 5)
    part[::2, 1:-2, 2:-3] = maps
    torch.testing.assert_close(
        resized(part[::2, 1:-2, 2:-3], rows, size), expected, rtol=1e-5, atol=1e-5
    )


def test_nothing_to_resize():
    assert resized(torch.zeros(0, 4, 6), (2, 9), (20, 9)).shape == (0, 7, 9)


@pytest.mark.parametrize("width", [1, 7, 16, 33, 500])
def test_sums_over_masks(width):
    logits = 4 * torch.randn(5, 9, width)
    logits[1] = -1
    logits[2, 0, 0] = 0
    for maps in (logits, torch.cat([logits, logits], 2)[..., :width]):
        inside, areas, sums = mask_sums(maps)
        assert torch.equal(inside, logits > 0) and inside.is_contiguous()
        assert torch.equal(areas, inside.flatten(1).sum(1))
        expected = (logits.double().sigmoid() * inside).flatten(1).sum(1).float()
        torch.testing.assert_close(sums, expected)
    with plain():
        other = mask_sums(logits)
    assert torch.equal(other[0], inside) and torch.equal(other[1], areas)
    torch.testing.assert_close(other[2], sums)


def test_sums_of_the_whole_range_of_float32():
    logits = torch.tensor([-torch.inf, -1e30, 1e-30, 0, 20, 90, 1e30, torch.inf, torch.nan])
    for where in (nullcontext(), plain()):
        with where:
            inside, areas, sums = mask_sums(logits[None, None])
        assert inside[0, 0].tolist() == [False, False, True, False, True, True, True, True, False]
        assert areas.item() == 5 and sums.item() == pytest.approx(4.5)


def test_other_types_and_gradients_take_pytorch():
    maps = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    out = resized(maps, (0, 8), (8, 12))
    expected = F.interpolate(maps[None], size=(8, 12), mode="bilinear")[0]
    torch.testing.assert_close(out, expected)
    slopes = [torch.autograd.grad(y.square().sum(), maps)[0] for y in (out, expected)]
    torch.testing.assert_close(*slopes)
    single = maps.detach().float().requires_grad_()
    assert resized(single, (0, 8), (8, 12)).requires_grad


@compiled
@pytest.mark.parametrize(
    "maps, arguments, message",
    [
        (torch.randn(2, 3, 4).double(), (0, 3, 0, 3, 6, 8), "in float32 on the CPU"),
        (torch.randn(3, 4), (0, 3, 0, 3, 6, 8), "expected maps (n, rows, width)"),
        (torch.randn(2, 3, 4).mT, (0, 4, 0, 3, 6, 8), "adjacent"),
        (torch.randn(2, 3, 4), (0, 3, 4, 4, 6, 8), "no rows 4 to 4 of 6"),
        (torch.randn(2, 3, 4), (0, 3, 0, 7, 6, 8), "no rows 0 to 7 of 6"),
        (torch.randn(2, 3, 0), (0, 3, 0, 3, 6, 8), "are empty"),
        (torch.randn(2, 3, 4), (0, 0, 0, 3, 6, 8), "are empty"),
        (torch.randn(2, 3, 4), (-1, 3, 0, 3, 6, 8), "no row -1"),
        (torch.randn(2, 2, 4), (0, 3, 0, 6, 6, 8), "lack rows for 0 to 6 of 6"),
        (torch.randn(2, 2, 4), (1, 3, 0, 6, 6, 8), "lack rows for 0 to 6 of 6"),
    ],
)
def test_wrong_input(maps, arguments, message):
    with pytest.raises(RuntimeError, match=re.escape(message)):
        torch.ops.mask2former.resize_rows(maps, *arguments)


@compiled
def test_registration():
    maps = torch.randn(2, 3, 4)
    torch.library.opcheck(torch.ops.mask2former.resize_rows, (maps, 0, 3, 1, 5, 6, 9))
    torch.library.opcheck(torch.ops.mask2former.mask_sums, (maps,))
