"""The encoder layer's hidden channels: kept for the gradients, or computed again."""

import pytest
import torch

from mask2former.modeling import pixel_decoder
from mask2former.modeling.pixel_decoder import FEEDFORWARD_DIM, MSDeformAttnEncoderLayer

TOKENS = 40


def encoder_layer(dropout):
    torch.manual_seed(0)
    options = {"d_model": 32, "num_levels": 1, "nheads": 4, "num_points": 2}
    return MSDeformAttnEncoderLayer(**options, dropout=dropout)


def gradients(layer, monkeypatch, *, keep):
    """Of all that :meth:`after_attention` depends on, and the most elements of a saved tensor."""
    size = TOKENS * FEEDFORWARD_DIM * 4
    monkeypatch.setattr(pixel_decoder, "LARGE_BLOCK_IN_TRAINING", size + 1 if keep else size)
    layer.zero_grad()
    torch.manual_seed(1)  # of dropout
    inputs = [torch.randn(2, TOKENS // 2, 32, requires_grad=True) for _ in range(2)]
    saved = []
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.numel()) or tensor, lambda tensor: tensor
    )
    with hooks:
        out = layer.after_attention(*inputs)
    out.cos().sum().backward()
    leaves = inputs + [p for p in layer.parameters() if p.grad is not None]
    return [leaf.grad.clone() for leaf in leaves], max(saved)


@pytest.mark.parametrize("dropout, tokens_at_a_time", [(0.2, TOKENS), (0.0, 12)])
def test_recomputation_changes_no_gradient(monkeypatch, dropout, tokens_at_a_time):
    layer = encoder_layer(dropout)
    monkeypatch.setattr(pixel_decoder, "TOKENS_RECOMPUTED", tokens_at_a_time)
    kept, most_kept = gradients(layer, monkeypatch, keep=True)
    again, most_again = gradients(layer, monkeypatch, keep=False)
    assert len(kept) == len(again) == 2 + 8  # two inputs, two norms, two linear layers
    torch.testing.assert_close(again, kept)
    assert most_kept >= TOKENS * FEEDFORWARD_DIM > most_again


def test_nothing_is_recomputed_without_gradients(monkeypatch):
    monkeypatch.setattr(pixel_decoder, "LARGE_BLOCK_IN_TRAINING", 0)
    monkeypatch.setattr(pixel_decoder, "checkpoint", None)
    x = torch.randn(1, TOKENS, 32)
    with torch.no_grad():
        assert encoder_layer(0.2).eval().after_attention(x, x).shape == x.shape


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [0, 1, 16, 40])
def test_tokens_are_joined_in_order_and_type(monkeypatch, tokens, dtype):
    monkeypatch.setattr(pixel_decoder, "TOKENS_IN_CACHE", 16)
    chunks = []

    def function(x, y):
        chunks.append(x.shape[1])
        return (x + 2 * y)[..., :2]

    x, y = torch.randn(2, tokens, 3, dtype=dtype), torch.randn(2, tokens, 3)
    joined = pixel_decoder.by_tokens(function, x, y)
    torch.testing.assert_close(joined, (x + 2 * y)[..., :2])  # of the same type, too
    assert sum(chunks) == tokens and max(chunks) <= 16
