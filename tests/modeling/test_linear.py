import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mask2former.modeling import linear as module
from mask2former.modeling.linear import (
    _ONEDNN,
    Linear,
    batched_product,
    linear,
    processor,
    relu,
)


@pytest.fixture(autouse=True, params=["MKL", "oneDNN"])
def library(request, monkeypatch):
    """Either library, whichever is preferred on this machine."""
    if request.param == "oneDNN" and _ONEDNN is None:
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(module, "_PREFERRED", request.param == "oneDNN")
    return request.param


def test_equals_torch():
    """In inference and in training, for tensors with any strides."""
    for x in (torch.randn(2, 7, 16), torch.randn(7, 32)[:, ::2], torch.randn(16, 7).t()):
        for weight in (torch.randn(5, 16), torch.randn(16, 5).t()):
            for bias in (None, torch.randn(5)):
                expected = x.double() @ weight.double().t() + (0 if bias is None else bias)
                for grad in (True, False):
                    with torch.set_grad_enabled(grad):
                        torch.testing.assert_close(linear(x, weight, bias), expected.float())
    a, b = torch.randn(3, 4, 8), torch.randn(3, 9, 8).transpose(1, 2)
    with torch.no_grad():
        torch.testing.assert_close(batched_product(a, b), a @ b)
        for few in (1, 0):
            torch.testing.assert_close(batched_product(a[:few], b[:few]), a[:few] @ b[:few])
        a, b = a.bfloat16(), b.bfloat16()
        torch.testing.assert_close(batched_product(a, b), a @ b)


@pytest.mark.parametrize("frozen", ["", "x", "weight", "bias"])
def test_gradients(frozen):
    tensors = {"x": torch.randn(2, 7, 16), "weight": torch.randn(16, 5).t()}
    tensors["bias"] = torch.randn(5)
    results = []
    for function, dtype in ((linear, torch.float32), (torch.nn.functional.linear, torch.float64)):
        leaves = [
            t.detach().to(dtype).requires_grad_(name != frozen) for name, t in tensors.items()
        ]
        relu(function(*leaves))[..., 1:].cos().transpose(0, 1).sum().backward()
        results.append([leaf.grad for leaf in leaves])
    for name, actual, expected in zip(tensors, *results, strict=True):
        assert (actual is None) == (expected is None) == (name == frozen)
        if name != frozen:
            torch.testing.assert_close(actual, expected.float())


def test_expanded_gradients_autocast_and_other_types():
    layer, x = Linear(8, 3, bias=False), torch.randn(4, 8)
    layer(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(3, -1))
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        assert layer.double()(x.double()).dtype == torch.float64


def test_operations_are_counted(library):
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        linear(torch.randn(2, 7, 16), torch.randn(5, 16))
    assert counter.get_total_flops() == 2 * 2 * 7 * 16 * 5
    assert ("linear_pointwise" in str(counter.get_flop_counts())) == (library == "oneDNN")


@torch.no_grad()
def test_exports_take_batches_of_any_size():
    class Product(torch.nn.Module):
        def forward(self, a, b):
            return batched_product(a, b)

    a, b = torch.randn(2, 5, 7), torch.randn(2, 7, 3)
    batch = {0: torch.export.Dim("batch")}
    product = torch.export.export(Product(), (a, b), dynamic_shapes=(batch, batch)).module()
    a, b = torch.randn(4, 5, 7), torch.randn(4, 7, 3)
    torch.testing.assert_close(product(a, b), a @ b)


@pytest.mark.parametrize(
    "maker, expected", [("GenuineIntel", True), ("AuthenticAMD", False), ("", False)]
)
def test_the_maker_of_a_processor(maker, expected, tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {maker}\n")
    assert ("GenuineIntel" in processor(cpuinfo)) == expected
    # Where there is no such file, as on Windows.
    monkeypatch.setattr("platform.processor", lambda: f"Family 6 Model 142, {maker}")
    assert ("GenuineIntel" in processor(tmp_path / "missing")) == expected
