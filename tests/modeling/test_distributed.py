"""The losses of two workers: normalised by the objects of both (in processes of their own)."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from training_outputs import training_outputs

from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.matcher import HungarianMatcher


def criterion():
    return SetCriterion(
        num_classes=2,
        matcher=HungarianMatcher(cost_class=1.0, cost_mask=1.0, cost_dice=1.0, num_points=50),
        weight_dict={"loss_ce": 1.0, "loss_mask": 1.0, "loss_dice": 1.0},
        eos_coef=0.1,
        deep_supervision=False,
        num_points=20_000,
        oversample_ratio=1.0,
        importance_sample_ratio=0.0,
    )


def mask_loss(num_objects):
    """Constant logits: but for the picture's border, all random points are alike."""
    outputs = training_outputs(torch.zeros(1, 1, 8, 3), torch.full((1, 1, 8, 16, 16), 2.0))
    masks = torch.ones(num_objects, 16, 16, dtype=torch.bool)
    target = {"labels": torch.zeros(num_objects, dtype=torch.int64), "masks": masks}
    return criterion()(outputs, [target])["loss_mask"].item()


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    loss = mask_loss((1, 5)[rank])
    (folder / f"{rank}").write_text(repr(loss))
    dist.destroy_process_group()


def test_masks_are_counted_over_all_workers(tmp_path):
    one = mask_loss(1)  # alone, a loss is the mean over its objects: the same for 1 and 5
    assert abs(mask_loss(5) / one - 1) < 0.05
    mp.spawn(worker, (tmp_path,), nprocs=2)
    losses = [float((tmp_path / f"{rank}").read_text()) for rank in range(2)]
    # Together there are 3 objects a worker on average.
    expected = torch.tensor([one / 3, one * 5 / 3])
    torch.testing.assert_close(torch.tensor(losses), expected, rtol=0.05, atol=0)
