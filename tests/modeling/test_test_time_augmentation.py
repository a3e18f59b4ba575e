import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F

from mask2former.modeling import SemanticSegmentorWithTTA
from mask2former.trainer import Trainer, evaluate


@pytest.fixture
def model(tiny_cfg):
    return build_model(tiny_cfg).eval()


def picture(height=40, width=56):
    image = torch.randint(0, 255, (3, height, width), dtype=torch.uint8)
    return {"image": image, "height": 50, "width": 70}


def test_one_size_without_flip_is_the_model_itself(tiny_cfg, model):
    tiny_cfg.merge_from_list(["TEST.AUG.MIN_SIZES", (40,), "TEST.AUG.FLIP", False])
    x = picture()
    result = SemanticSegmentorWithTTA(tiny_cfg, model)([x])[0]
    assert set(result) == {"sem_seg"}
    torch.testing.assert_close(result["sem_seg"], model([x])[0]["sem_seg"])
    assert model.panoptic_on and model.instance_on  # switched back on


def test_mean_over_the_mirror_image(tiny_cfg, model):
    tiny_cfg.merge_from_list(["TEST.AUG.MIN_SIZES", (40,), "TEST.AUG.FLIP", True])
    x = picture()
    mirrored = {**x, "image": x["image"].flip(-1)}
    expected = (model([x])[0]["sem_seg"] + model([mirrored])[0]["sem_seg"].flip(-1)) / 2
    result = SemanticSegmentorWithTTA(tiny_cfg, model)([x])[0]["sem_seg"]
    torch.testing.assert_close(result, expected)


def test_every_size_counts_once(tiny_cfg):
    """A model whose scores are the height of its input: their mean is that of the sizes."""

    class Height(torch.nn.Module):
        semantic_on, instance_on, panoptic_on = True, False, False

        def forward(self, inputs):
            (x,) = inputs
            return [
                {"sem_seg": torch.full((1, x["height"], x["width"]), x["image"].shape[1] * 1.0)}
            ]

    tiny_cfg.merge_from_list(["TEST.AUG.MIN_SIZES", (20, 40, 90), "TEST.AUG.FLIP", False])
    tta = SemanticSegmentorWithTTA(tiny_cfg, build_model(tiny_cfg).eval())
    tta.model = Height()
    result = tta([picture()])[0]["sem_seg"]
    torch.testing.assert_close(result, torch.full((1, 50, 70), 50.0))


def test_inputs_without_an_output_size(tiny_cfg, model):
    tiny_cfg.merge_from_list(["TEST.AUG.MIN_SIZES", (32,)])
    x = {"image": picture()["image"]}
    assert SemanticSegmentorWithTTA(tiny_cfg, model)([x])[0]["sem_seg"].shape[1:] == (40, 56)


def test_needs_semantic_segmentation(tiny_cfg):
    tiny_cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON = False
    with pytest.raises(ValueError, match="SEMANTIC_ON"):
        SemanticSegmentorWithTTA(tiny_cfg, build_model(tiny_cfg))


def test_evaluation_reports_both(sample_cfg, tmp_path):
    sample_cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    torch.save({"model": build_model(sample_cfg).state_dict()}, sample_cfg.MODEL.WEIGHTS)
    sample_cfg.merge_from_list(["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (48, 64)])
    results = evaluate(sample_cfg)
    assert {"panoptic_seg", "sem_seg", "sem_seg_TTA"} <= set(results)
    assert results["sem_seg_TTA"]["mIoU"] >= 0
    assert set(results["sem_seg_TTA"]) == set(results["sem_seg"])
    assert Trainer.build_model(sample_cfg).panoptic_on


def test_flip_of_scores_is_undone(tiny_cfg, model):
    """Averaged with its mirror image, a picture and its mirror give mirrored results."""
    tiny_cfg.merge_from_list(["TEST.AUG.MIN_SIZES", (40,)])
    tta = SemanticSegmentorWithTTA(tiny_cfg, model)
    x = picture()
    mirrored = {**x, "image": x["image"].flip(-1)}
    straight, back = tta([x])[0]["sem_seg"], tta([mirrored])[0]["sem_seg"].flip(-1)
    torch.testing.assert_close(straight, back)
    assert not torch.allclose(straight, F.pad(straight[..., 1:], (0, 1)))
