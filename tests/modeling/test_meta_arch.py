import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances

from mask2former.errors import ConfigError
from mask2former.modeling.transformer_decoder import attention_mask


def picture(height, width, /, **more):
    return {"image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8), **more}


def with_objects(record, classes):
    """Adds one rectangle per class."""
    height, width = record["image"].shape[1:]
    instances = Instances((height, width))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    masks = torch.zeros(len(classes), height, width, dtype=torch.bool)
    for i in range(len(classes)):
        masks[i, 4 * i : 4 * i + 20, 10:40] = True
    instances.gt_masks = masks
    return {**record, "instances": instances}


@pytest.fixture
def model(tiny_cfg):
    return build_model(tiny_cfg)


def test_outputs(model, tiny_cfg):
    model.eval()
    with torch.no_grad():
        small, large = model([picture(60, 80), picture(64, 50, height=128, width=100)])
    num_classes = tiny_cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    assert small["sem_seg"].shape == (num_classes, 60, 80)
    assert large["sem_seg"].shape == (num_classes, 128, 100)
    ids, segments = large["panoptic_seg"]
    assert ids.shape == (128, 100)
    assert set(ids.unique().tolist()) - {0} == {s["id"] for s in segments}
    instances = large["instances"]
    assert instances.image_size == (128, 100)
    assert len(instances) == tiny_cfg.TEST.DETECTIONS_PER_IMAGE


def test_a_batch_gives_what_single_pictures_give(model):
    model.eval()
    pictures = [picture(64, 96), picture(64, 96), picture(64, 96)]
    with torch.no_grad():
        batch = model(pictures)
        single = [model([p])[0] for p in pictures]
    for together, alone in zip(batch, single):
        torch.testing.assert_close(together["sem_seg"], alone["sem_seg"], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_prediction_moves_as_detectron2_moves_what_a_gpu_cannot_hold(model):
    """``retry_if_cuda_oom`` takes what has a device, and calls ``to(device="cpu")``."""
    model.eval()
    prediction = model.predict([torch.rand(3, 60, 80)])[0]
    assert prediction.device == prediction.class_logits.device
    moved = prediction.to(device="meta")
    assert moved.device.type == moved.class_logits.device.type == "meta"
    assert moved.image_size == prediction.image_size


@pytest.mark.parametrize("before", [False, True])
def test_padding_is_cut_off_in_either_resize_order(tiny_cfg, before):
    tiny_cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = False
    tiny_cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = False
    tiny_cfg.MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = before
    model = build_model(tiny_cfg).eval()
    assert model.sem_seg_postprocess_before_inference is before
    with torch.no_grad():
        # 40 x 50 is padded to 64 x 64, and comes back as 80 x 100.
        (output,) = model([picture(40, 50, height=80, width=100)])
    assert set(output) == {"sem_seg"}
    assert output["sem_seg"].shape[1:] == (80, 100)


def test_losses_and_gradients(model, tiny_cfg):
    losses = model([with_objects(picture(64, 64), [0, 3]), with_objects(picture(60, 50), [5])])
    layers = tiny_cfg.MODEL.MASK_FORMER.DEC_LAYERS - 1
    names = ("loss_ce", "loss_mask", "loss_dice")
    assert set(losses) == {*names} | {f"{n}_{i}" for n in names for i in range(layers)}
    assert all(loss > 0 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("counts", [[0, 0], [0, 2], [12, 1]])
def test_empty_pictures_and_more_objects_than_queries_train(model, counts):
    records = [with_objects(picture(64, 64), [i % 7 for i in range(n)]) for n in counts]
    losses = model(records)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_bitmasks_are_accepted_as_ground_truth(model):
    record = with_objects(picture(64, 64), [1, 2])
    wrapped = copy.deepcopy(record)
    wrapped["instances"].gt_masks = BitMasks(record["instances"].gt_masks)
    torch.manual_seed(1)
    expected = model([record])
    torch.manual_seed(1)
    model_again = model([wrapped])
    # BatchNorm's statistics moved in between, but in training it uses the batch's own.
    torch.testing.assert_close(model_again["loss_mask"], expected["loss_mask"])


def test_attention_stays_inside_the_mask_unless_that_is_empty():
    embedding = torch.tensor([[[1.0], [-1.0]]])  # (1, Q = 2, 1)
    features = torch.tensor([[[0.5, 0.0, 2.0]]])  # (1, 1, S = 3)
    attend = attention_mask(embedding, features)
    assert attend.shape == (1, 1, 2, 3)
    assert attend[0, 0, 0].tolist() == [True, True, True]
    assert attend[0, 0, 1].tolist() == [False, True, False]
    # No pixel of the mask is positive: the query looks everywhere.
    assert attention_mask(-embedding, features + 1)[0, 0, 0].tolist() == [True, True, True]


def test_resizing_mask_features_equals_resizing_mask_logits():
    """What the decoder relies on, in float64."""
    from torch.nn import functional as F

    embedding = torch.randn(1, 5, 8, dtype=torch.float64)
    features = torch.randn(1, 8, 24, 36, dtype=torch.float64)
    resize = {"size": (6, 9), "mode": "bilinear", "align_corners": False}
    logits = F.interpolate(torch.einsum("bqc,bchw->bqhw", embedding, features), **resize)
    product = embedding @ F.interpolate(features, **resize).flatten(2)
    torch.testing.assert_close(product, logits.flatten(2))


@pytest.mark.parametrize(
    "key, value",
    [
        ("SEM_SEG_HEAD.PIXEL_DECODER_NAME", "BasePixelDecoder"),
        ("MASK_FORMER.TRANSFORMER_DECODER_NAME", "Standard"),
        ("MASK_FORMER.TRANSFORMER_IN_FEATURE", "res5"),
        ("MASK_FORMER.ENC_LAYERS", 2),
        ("SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS", 16),
        ("MASK_FORMER.DEC_LAYERS", 1),
    ],
)
def test_settings_the_model_does_not_know_are_refused(tiny_cfg, key, value):
    tiny_cfg.merge_from_list([f"MODEL.{key}", value])
    with pytest.raises(ValueError, match=f"MODEL.{key}"):
        build_model(tiny_cfg)


def test_precision_of_inference(tiny_cfg):
    """bfloat16 has 8 bits: near float32, and not the same. Training knows nothing of it."""
    records = [with_objects(picture(64, 96), [0, 1])]
    results, losses = {}, {}
    for precision in ("float32", "bfloat16"):
        tiny_cfg.TEST.PRECISION = precision
        torch.manual_seed(0)
        model = build_model(tiny_cfg)
        torch.manual_seed(1)
        losses[precision] = model(records)
        with torch.no_grad():
            results[precision] = model.eval()(records)[0]["sem_seg"]
    exact, coarse = results["float32"], results["bfloat16"]
    assert coarse.dtype == torch.float32
    difference = (coarse - exact).abs().max() / exact.abs().max()
    assert 1e-5 < difference < 0.1
    assert losses["float32"] == losses["bfloat16"]
    tiny_cfg.TEST.PRECISION = "bf16"
    with pytest.raises(ConfigError, match="TEST.PRECISION is 'bf16'; it must be one of"):
        build_model(tiny_cfg)


def test_the_mask_head_learns_under_autocast(tiny_cfg):
    """Weights cast without gradients would stay in autocast's cache for the predictions."""
    decoder = build_model(tiny_cfg).train().sem_seg_head.predictor
    in_channels, mask_dim = (
        tiny_cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM,
        tiny_cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
    )
    memories = [torch.randn(1, in_channels, side, side) for side in (2, 4, 8)]
    with torch.autocast("cpu", torch.bfloat16):
        outputs = decoder(memories, torch.randn(1, mask_dim, 16, 16))
    outputs["mask_embeddings"].float().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in decoder.mask_embed.parameters())
