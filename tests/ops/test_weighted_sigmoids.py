"""The operator of semantic scores against PyTorch in float64."""

import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mask2former_ops import backend, plain, weighted_sigmoids

pytestmark = pytest.mark.usefixtures("lanes")
compiled = pytest.mark.skipif(backend("cpu").name != "compiled", reason="there is no compiled op")


def reference(weights, logits):
    return torch.einsum("kq,qhw->khw", weights.double(), logits.double().sigmoid())


@pytest.mark.parametrize(
    "classes, queries, height, width",
    [
        (133, 100, 2, 700),
        (1, 1, 1, 1),
        (6, 3, 4, 32),
        (7, 99, 3, 257),
        (9, 4, 2, 287),
        (19, 5, 5, 17),
    ],
)
def test_scores(classes, queries, height, width):
    weights, logits = torch.rand(classes, queries), 5 * torch.randn(queries, height, width)
    out = torch.full((classes, height, width), float("nan"))
    assert weighted_sigmoids(weights, logits, out) is out
    torch.testing.assert_close(out.double(), reference(weights, logits), rtol=1e-5, atol=1e-6)
    if backend("cpu").name == "compiled":
        with plain():
            other = weighted_sigmoids(weights, logits, torch.empty_like(out))
        torch.testing.assert_close(out, other, rtol=1e-5, atol=1e-6)


def test_a_part_of_larger_tensors():
    weights, logits = torch.rand(2, 9, 8)[1].t(), torch.randn(9, 12, 300)[:, 2:7, 10:250]
    whole = torch.zeros(8, 20, 260)
    weighted_sigmoids(weights, logits, whole[:, 4:9, 3:243])
    expected = torch.zeros_like(whole, dtype=torch.float64)
    expected[:, 4:9, 3:243] = reference(weights, logits)
    torch.testing.assert_close(whole.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("classes, queries, width", [(0, 4, 5), (3, 0, 5), (3, 4, 0)])
def test_nothing_to_do(classes, queries, width):
    out = torch.ones(classes, 2, width)
    weighted_sigmoids(torch.rand(classes, queries), torch.randn(queries, 2, width), out)
    assert not out.any()  # a sum over nothing is 0


def test_the_whole_range_of_float32():
    logits = torch.tensor([-torch.inf, -1e30, -90, -20, 0, 20, 1e30, torch.inf, torch.nan])
    out = torch.empty(1, 1, len(logits))
    weighted_sigmoids(torch.ones(1, 1), logits[None, None], out)
    torch.testing.assert_close(out[0, 0], logits.sigmoid(), equal_nan=True)


def test_gradients_and_other_types_are_plain_pytorch():
    weights = torch.rand(3, 4, requires_grad=True)
    logits = torch.randn(4, 2, 5, dtype=torch.float64)
    out = torch.empty(3, 2, 5, dtype=torch.float64)
    weighted_sigmoids(weights.double(), logits, out).sum().backward()
    expected = logits.sigmoid().sum((1, 2)).float().expand(3, 4)
    torch.testing.assert_close(weights.grad, expected)


@compiled
def test_registration():
    arguments = torch.rand(3, 4), torch.randn(4, 2, 5), torch.empty(3, 2, 5)
    torch.library.opcheck(torch.ops.mask2former.weighted_sigmoids, arguments)
    with FlopCounterMode(display=False) as counter:
        weighted_sigmoids(*arguments)
    assert counter.get_total_flops() == 2 * 3 * 4 * 10


@compiled
def test_errors_of_the_operator():
    run = torch.ops.mask2former.weighted_sigmoids
    weights, logits, out = torch.rand(3, 4), torch.randn(4, 2, 5), torch.empty(3, 2, 5)
    message = "weights (3, 4), logits (5, 2, 5) and out (3, 2, 5) do not fit together"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        run(weights, torch.randn(5, 2, 5), out)
    with pytest.raises(RuntimeError, match="must be float32 on the CPU"):
        run(weights.double(), logits, out)
    with pytest.raises(RuntimeError, match=re.escape("expected weights (K, Q)")):
        run(weights, logits[0], out)
    with pytest.raises(RuntimeError, match="must be adjacent"):
        run(weights, torch.randn(4, 2, 10)[..., ::2], out)
