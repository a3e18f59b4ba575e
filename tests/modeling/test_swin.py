import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from mask2former import get_maskformer2_cfg
from mask2former.modeling.backbone.swin import (
    NOT_NEIGHBOURS,
    D2SwinTransformer,
    relative_position_index,
    shift_mask,
    window_partition,
    window_reverse,
)

SMALL = {"embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}


def small_swin(**changes):
    return D2SwinTransformer(**{**SMALL, "out_features": ("res2", "res3"), **changes})


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (5, 70)])
def test_features_of_any_size(size):
    backbone = small_swin().eval()
    features = backbone(torch.randn(2, 3, *size))
    for name, stride, channels in (("res2", 4, 8), ("res3", 8, 16)):
        expected = tuple(-(-side // stride) for side in size)
        assert features[name].shape == (2, channels, *expected)
        shape = backbone.output_shape()[name]
        assert (shape.stride, shape.channels) == (stride, channels)


def test_pictures_of_a_batch_do_not_mix():
    backbone = small_swin().eval()
    pictures = torch.randn(3, 3, 36, 52)
    together = backbone(pictures)["res3"]
    alone = torch.cat([backbone(picture[None])["res3"] for picture in pictures])
    torch.testing.assert_close(together, alone)


def test_windows_and_their_inverse():
    maps = torch.arange(2 * 4 * 6).view(2, 4, 6, 1)
    windows = window_partition(maps, 2)
    assert windows.shape == (2 * 2 * 3, 4, 1)
    assert windows[4].flatten().tolist() == [14, 15, 20, 21]  # row 1, column 1 of the first
    assert torch.equal(window_reverse(windows, 2, (4, 6)), maps)


def test_shifted_windows_keep_far_pixels_apart():
    height, width, size = 6, 7, 4  # padded to 8 x 8
    masks = shift_mask((height, width), size, torch.device("cpu"))
    assert masks.shape == (4, 16, 16)
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    # Where each pixel was before the shift: neighbours are less than a window apart.
    coordinates = torch.stack([rows, columns], dim=-1).roll((-2, -2), dims=(0, 1))
    windows = window_partition(coordinates[None], size)  # (4, 16, 2)
    apart = (windows[:, :, None] - windows[:, None]).abs().amax(-1) >= size
    assert torch.equal(masks, apart * NOT_NEIGHBOURS)


def test_relative_position_index():
    size = 3
    index = relative_position_index(size)
    offsets = {}
    for i in range(size * size):
        for j in range(size * size):
            offset = (i // size - j // size, i % size - j % size)
            offsets.setdefault(int(index[i, j]), set()).add(offset)
    assert set(offsets) == set(range((2 * size - 1) ** 2))
    assert all(len(same) == 1 for same in offsets.values())
    assert offsets[0] == {(-2, -2)}


def test_checkpointing_changes_no_gradient():
    gradients = []
    for use_checkpoint in (False, True):
        torch.manual_seed(0)
        backbone = small_swin(use_checkpoint=use_checkpoint, drop_path_rate=0.0).train()
        backbone(torch.ones(1, 3, 32, 32))["res3"].square().sum().backward()
        gradients.append([p.grad for p in backbone.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients)


def test_frozen_stages_have_no_gradient_and_no_stochastic_depth():
    backbone = small_swin(freeze_at=2, drop_path_rate=0.9, ape=True).train()
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    expected = {
        name
        for name, _ in backbone.named_parameters()
        if name.startswith(("patch_embed", "layers.0", "absolute"))
    }
    assert frozen == expected
    picture = torch.randn(1, 3, 32, 32)
    assert torch.equal(backbone(picture)["res2"], backbone(picture)["res2"])


def test_stochastic_depth_grows_and_drops_whole_pictures():
    backbone = small_swin(drop_path_rate=0.3)
    rates = [block.drop_path.p for stage in backbone.layers for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_absolute_position_embedding_fits_any_size():
    backbone = small_swin(ape=True, pretrain_img_size=32).eval()
    assert backbone.absolute_pos_embed.shape == (1, 8, 8, 8)
    assert backbone(torch.randn(1, 3, 40, 24))["res2"].shape == (1, 8, 10, 6)


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="MODEL.SWIN.NUM_HEADS"):
        small_swin(num_heads=(2, 4, 8))
    with pytest.raises(ValueError, match="MODEL.SWIN.OUT_FEATURES"):
        small_swin(out_features=("res2", "res9"))


def test_configuration_reaches_the_backbone():
    cfg = get_maskformer2_cfg()
    cfg.MODEL.BACKBONE.NAME = "D2SwinTransformer"
    cfg.MODEL.SWIN.FREEZE_AT = 1
    cfg.merge_from_list(["MODEL.SWIN.EMBED_DIM", 12, "MODEL.SWIN.WINDOW_SIZE", 5])
    cfg.merge_from_list(["MODEL.SWIN.OUT_FEATURES", ["res3", "res5"], "MODEL.SWIN.QK_SCALE", 0.5])
    backbone = build_backbone(cfg, ShapeSpec(channels=4))
    assert set(backbone(torch.randn(1, 4, 32, 32))) == {"res3", "res5"}
    assert backbone.layers[0].blocks[0].attn.scale == 0.5
    assert not backbone.patch_embed.proj.weight.requires_grad


def test_resnet_with_the_deeplab_stem():
    cfg = get_maskformer2_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_deeplab_backbone"
    cfg.MODEL.RESNETS.STEM_TYPE = "deeplab"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res5"]
    backbone = build_backbone(cfg)
    assert (
        sum("stem.conv" in name and name.endswith("weight") for name in backbone.state_dict()) > 3
    )
    assert backbone(torch.randn(1, 3, 32, 32))["res5"].shape == (1, 2048, 1, 1)
    assert "SWIN" not in get_cfg().MODEL  # the keys are Mask2Former's, not Detectron2's
