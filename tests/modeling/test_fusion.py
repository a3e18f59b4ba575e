import copy

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import build_model

from mask2former.errors import ConfigError
from mask2former.modeling.fusion import (
    cast_weights,
    compile_parts,
    fold_mask_features,
    fuse_batch_norm,
    prepare_for_inference,
)


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "SyncBN"])
def test_the_model_is_the_same(tiny_cfg, norm):
    tiny_cfg.MODEL.RESNETS.NORM = norm
    model = build_model(tiny_cfg).eval()
    for module in model.backbone.modules():
        if hasattr(module, "running_var"):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
            with torch.no_grad():
                module.weight.uniform_(0.5, 2)
                module.bias.uniform_(-1, 1)
    fused = copy.deepcopy(model)
    convolutions = [m for m in fused.backbone.modules() if isinstance(m, Conv2d)]
    weights = [conv.weight for conv in convolutions]
    fuse_batch_norm(fused)
    # New weights would leave holes of the old ones' sizes all over the heap.
    assert weights
    assert all(conv.weight is weight for conv, weight in zip(convolutions, weights))
    kinds = (torch.nn.BatchNorm2d, torch.nn.SyncBatchNorm, FrozenBatchNorm2d)
    assert any(isinstance(m, kinds) for m in model.modules())
    assert not any(isinstance(m, kinds) for m in fused.modules())
    # Its other norms depend on the picture and stay.
    assert any(isinstance(m, torch.nn.GroupNorm) for m in fused.modules())
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for name, expected in model.backbone(images).items():
            torch.testing.assert_close(
                fused.backbone(images)[name], expected, rtol=1e-4, atol=1e-4 * expected.abs().max()
            )


@torch.no_grad()
def test_mask_logits_without_the_convolution_of_mask_features(tiny_cfg):
    model = build_model(tiny_cfg).eval()
    model.sem_seg_head.pixel_decoder.mask_features.bias.normal_()
    folded = copy.deepcopy(model)
    fold_mask_features(folded.sem_seg_head)
    assert isinstance(folded.sem_seg_head.pixel_decoder.mask_features, torch.nn.Identity)
    images = [torch.rand(3, 64, 96) * 255, torch.rand(3, 80, 70) * 255]
    for expected, actual in zip(model.predict(images), folded.predict(images), strict=True):
        for name in ("class_logits", "mask_logits"):
            reference = getattr(expected, name)
            torch.testing.assert_close(
                getattr(actual, name), reference, rtol=1e-4, atol=1e-4 * reference.abs().max()
            )


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["build_resnet_backbone", "D2SwinTransformer"])
def test_weights_are_cast_as_autocast_does(tiny_cfg, backbone):
    tiny_cfg.MODEL.BACKBONE.NAME = backbone
    tiny_cfg.MODEL.SWIN.EMBED_DIM, tiny_cfg.MODEL.SWIN.DEPTHS = 24, [1, 1, 1, 1]
    tiny_cfg.TEST.PRECISION = "bfloat16"
    model = build_model(tiny_cfg).eval()
    images = [torch.rand(3, 64, 96) * 255]
    (expected,) = model.predict(images)
    cast_weights(model, torch.bfloat16)
    (actual,) = model.predict(images)
    assert torch.equal(actual.class_logits, expected.class_logits)
    assert torch.equal(actual.mask_logits, expected.mask_logits)
    assert model.sem_seg_head.predictor.class_embed.weight.dtype == torch.bfloat16
    attention = model.sem_seg_head.pixel_decoder.transformer.encoder.layers[0].self_attn
    assert attention.sampling_offsets.weight.dtype == torch.float32


@torch.no_grad()
def test_the_compiler_takes_backbone_and_head_as_a_whole(tiny_cfg):
    """Traced without a break; what it generates from that is torch's matter."""
    model = build_model(tiny_cfg).eval()
    inputs = [{"image": (torch.rand(3, 64, 96) * 255).byte()}]
    expected = model(inputs)[0]["sem_seg"]
    compile_parts(model, backend="eager")
    torch.testing.assert_close(model(inputs)[0]["sem_seg"], expected)
    with pytest.raises(ConfigError, match="TEST.COMPILE is 'fast'; it must be '' or one of"):
        prepare_for_inference(model, "fast")
    with pytest.raises(ConfigError, match="'cuda-graph', but MODEL.DEVICE is 'cpu'"):
        prepare_for_inference(model, "cuda-graph")
