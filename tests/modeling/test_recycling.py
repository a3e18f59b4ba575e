import gc

import pytest
import torch
from detectron2.modeling import build_model

from mask2former.modeling import recycling
from mask2former.modeling.recycling import empty_result

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(recycling, "LEAST_BYTES", 1000)
    monkeypatch.setattr(recycling, "MOST_BYTES", 10_000)
    monkeypatch.setattr(recycling, "_free", [])


def test_memory_of_a_result_is_used_again_once_nothing_shows_it():
    result = empty_result((3, 20, 30), torch.float32, CPU).fill_(1)
    address, view = result.data_ptr(), result[1:, :5]
    del result
    gc.collect()
    other = empty_result((3, 20, 30), torch.float32, CPU).zero_()
    assert other.data_ptr() != address and view.eq(1).all()  # the view is still there
    del view, other
    gc.collect()
    again = empty_result((2, 30, 30), torch.bool, CPU)  # too small for a block of four times that
    assert again.shape == (2, 30, 30) and again.dtype == torch.bool
    assert not recycling._free
    first = empty_result((3, 20, 30), torch.float32, CPU)
    address = first.data_ptr()
    del first
    gc.collect()
    assert empty_result((2, 20, 30), torch.float32, CPU).data_ptr() == address


def test_little_is_kept():
    results = [empty_result((1500,), torch.float32, CPU) for _ in range(3)]
    del results
    gc.collect()
    assert sum(map(len, recycling._free)) == 6000  # a second one is beyond 10,000 bytes
    empty_result((100,), torch.float32, CPU)  # below the least
    assert len(recycling._free) == 1


def test_results_of_a_model_are_not_overwritten(monkeypatch, tiny_cfg):
    monkeypatch.setattr(recycling, "MOST_BYTES", 1 << 30)
    model = build_model(tiny_cfg).eval()
    inputs = [[{"image": torch.randint(0, 256, (3, 64, 64))}] for _ in range(4)]
    with torch.no_grad():
        expected = [model(x)[0]["sem_seg"].clone() for x in inputs]
        assert recycling._free
        kept = [model(x)[0]["sem_seg"] for x in inputs]
    for result, other in zip(kept, expected, strict=True):
        torch.testing.assert_close(result, other)
