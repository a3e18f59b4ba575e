"""Conversion to and from transformers, whose model is the independent implementation here."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from torch import nn

from mask2former.checkpoint.huggingface import from_huggingface, to_huggingface
from mask2former.checkpoint.huggingface_config import (
    class_names_from_huggingface,
    huggingface_config,
    huggingface_preprocessor,
    overrides_from_huggingface,
)
from mask2former.config import get_maskformer2_cfg, load_config
from mask2former.errors import ConfigError, UserError
from mask2former.inference import Predictor

TOOL = Path(__file__).resolve().parents[2] / "tools" / "convert_checkpoint.py"
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

TOLERANCE = 1e-4  # of the largest logit


@pytest.fixture(params=["resnet", "resnet_bn", "swin"])
def cfg(request, tiny_cfg):
    """A small model that transformers can build too; four decoder layers see every level."""
    # Groups of one channel would normalise away the bias before them.
    tiny_cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 64
    tiny_cfg.MODEL.SEM_SEG_HEAD.MASK_DIM = 48
    tiny_cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS = 2
    tiny_cfg.MODEL.MASK_FORMER.HIDDEN_DIM = 32
    tiny_cfg.MODEL.MASK_FORMER.DEC_LAYERS = 5
    if request.param == "swin":
        tiny_cfg.MODEL.BACKBONE.NAME = "D2SwinTransformer"
        tiny_cfg.MODEL.SWIN.EMBED_DIM = 24
        tiny_cfg.MODEL.SWIN.DEPTHS = [2, 2, 3, 2]
        tiny_cfg.MODEL.SWIN.NUM_HEADS = [1, 2, 4, 8]
        tiny_cfg.MODEL.SWIN.WINDOW_SIZE = 4
        tiny_cfg.MODEL.SWIN.PRETRAIN_IMG_SIZE = 64
    else:
        tiny_cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 32
        tiny_cfg.MODEL.RESNETS.NORM = "BN" if request.param == "resnet_bn" else "FrozenBN"
        tiny_cfg.MODEL.RESNETS.STRIDE_IN_1X1 = request.param == "resnet_bn"
    return tiny_cfg


@pytest.fixture
def tool(monkeypatch, capsys):
    """tools/convert_checkpoint.py within this process: returns its exit status and output."""
    spec = importlib.util.spec_from_file_location("convert_checkpoint", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["convert_checkpoint.py", *map(str, arguments)])
        status = module.main()
        return status, capsys.readouterr().out

    return run


def randomize(model):
    """No parameter and no statistic stays 0 or 1, where a mistake could hide."""
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(7)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif tensor.dim() == 1 and name.endswith("weight"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.dim() == 1:
            tensor.uniform_(-0.5, 0.5)
        elif tensor.dim() == 4:
            nn.init.kaiming_normal_(tensor)
        elif name.endswith("relative_position_bias_table") or "embed" in name:
            tensor.normal_()
        else:
            tensor.normal_(std=1.5 * tensor.shape[1] ** -0.5)
    return model.eval()


def save_for_transformers(model, cfg, folder):
    (folder / "config.json").write_text(json.dumps(huggingface_config(cfg)))
    (folder / "preprocessor_config.json").write_text(json.dumps(huggingface_preprocessor(cfg)))
    weights = {k: v.contiguous() for k, v in to_huggingface(model.state_dict()).items()}
    safetensors_torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def load_in_transformers(folder):
    model, info = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def predictions(model, pictures):
    """Logits of every prediction, first to last, of this model: [(class, mask), ...]."""
    model.sem_seg_head.predictor.training = True  # only this makes it give all of them
    outputs = model.sem_seg_head(model.backbone(pictures))
    model.sem_seg_head.predictor.training = False
    masks = torch.einsum("lbqc,bchw->lbqhw", outputs["mask_embeddings"], outputs["mask_features"])
    return list(zip(outputs["pred_logits"], masks))


def their_predictions(model, pictures):
    outputs = model(pictures, output_auxiliary_logits=True)
    return [
        (o["class_queries_logits"], o["masks_queries_logits"])
        for o in (*outputs.auxiliary_logits, outputs)
    ]


def assert_same_predictions(model, theirs, pictures):
    ours, reference = predictions(model, pictures), their_predictions(theirs, pictures)
    assert len(ours) == len(reference) > 1
    for pair, reference_pair in zip(ours, reference, strict=True):
        for logits, expected in zip(pair, reference_pair, strict=True):
            assert logits.shape == expected.shape
            assert expected.std() > 0.1
            error = (logits - expected).abs().max() / expected.abs().max()
            assert error < TOLERANCE, f"{error:.1e}"


@torch.no_grad()
def test_transformers_predicts_the_same(cfg, tmp_path):
    model = randomize(build_model(cfg))
    save_for_transformers(model, cfg, tmp_path)
    theirs = load_in_transformers(tmp_path)
    for shape in [(1, 3, 64, 96), (2, 3, 65, 93), (1, 3, 37, 118)]:
        assert_same_predictions(model, theirs, torch.randn(shape))
    # As the whole model does it: two pictures of different sizes, padded to multiples of 32.
    pictures = [torch.randn(3, 70, 53), torch.randn(3, 45, 90)]
    assert_same_predictions(model, theirs, ImageList.from_tensors(pictures, 32).tensor)


@pytest.mark.parametrize("cfg", ["resnet"], indirect=True)
@torch.no_grad()
def test_transformers_has_the_same_losses_in_expectation(cfg, tmp_path):
    """Points are random in both: means over draws, as far apart as their standard errors allow."""
    cfg.MODEL.MASK_FORMER.TRAIN_NUM_POINTS = 4000
    model = randomize(build_model(cfg))
    save_for_transformers(model, cfg, tmp_path)
    theirs = load_in_transformers(tmp_path)
    pictures = torch.randn(2, 3, 64, 96)
    masks = (torch.randn(2, 5, 8, 12) > 0.5).repeat_interleave(8, 2).repeat_interleave(8, 3)
    labels = torch.randint(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, (2, 5))
    model.sem_seg_head.predictor.training = True
    outputs = model.sem_seg_head(model.backbone(pictures))
    reference = theirs(pictures, output_auxiliary_logits=True)
    targets = [{"labels": x, "masks": m} for x, m in zip(labels, masks)]
    draws = 30
    ours = [model.criterion(outputs, targets) for _ in range(draws)]
    expected = [
        theirs.get_loss_dict(
            masks_queries_logits=reference.masks_queries_logits,
            class_queries_logits=reference.class_queries_logits,
            mask_labels=list(masks.float()),
            class_labels=list(labels),
            auxiliary_predictions=[dict(aux) for aux in reference.auxiliary_logits],
        )
        for _ in range(draws)
    ]
    assert len(ours[0]) == len(expected[0]) == 3 * cfg.MODEL.MASK_FORMER.DEC_LAYERS
    for name in ours[0]:
        values = torch.stack([losses[name] for losses in ours])
        others = torch.stack([losses[name.replace("_ce", "_cross_entropy")] for losses in expected])
        error = ((values.var() + others.var()) / draws).sqrt().item()
        difference = abs(values.mean() - others.mean()).item()
        assert difference < 5 * error + 1e-4 * others.mean(), name
        assert error < 0.03 * others.mean(), name  # or the line above says little


def test_there_and_back_changes_no_bit(cfg):
    state_dict = randomize(build_model(cfg)).state_dict()
    back = from_huggingface(to_huggingface(state_dict))
    assert back.keys() == state_dict.keys()
    for name, tensor in state_dict.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name


@torch.no_grad()
def test_a_model_of_transformers_predicts_the_same_here(cfg, tmp_path, tool):
    theirs = transformers.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig(**huggingface_config(cfg))
    )
    randomize(theirs).save_pretrained(tmp_path, max_shard_size="500KB")
    config = json.loads((tmp_path / "config.json").read_text())
    converted = get_maskformer2_cfg()
    converted.merge_from_list(overrides_from_huggingface(config))
    converted.MODEL.DEVICE = "cpu"
    if cfg.MODEL.BACKBONE.NAME != "D2SwinTransformer":
        converted.MODEL.RESNETS.NORM = "BN"  # these weights count their batches
    files = sorted(tmp_path.glob("*.safetensors"))
    on_disk = {k: t for file in files for k, t in safetensors_torch.load_file(file).items()}
    for state_dict in (on_disk, theirs.state_dict()):  # transformers 5 has other names in memory
        model = build_model(converted)
        model.load_state_dict(from_huggingface(state_dict))
        assert_same_predictions(model.eval(), theirs, torch.randn(2, 3, 66, 91))

    status, output = tool(
        tmp_path, "--to", "mask2former", "-o", tmp_path / "w.pth", "--size", 64, 70
    )
    assert len(files) > 1 and status == 0 and output.count("largest difference") == 2
    assert "class_names" not in torch.load(tmp_path / "w.pth")  # LABEL_0, LABEL_1, ...

    names = ["nut", "cat", "wall", *(f"LABEL_{i}" for i in range(3, 9))]
    config |= {"id2label": {str(i): name for i, name in enumerate(names)}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tool(tmp_path, "--to", "mask2former", "-o", tmp_path / "w.pth", "--no-verify")
    assert torch.load(tmp_path / "w.pth")["class_names"] == names
    predictor = Predictor(tmp_path / "w.yaml", tmp_path / "w.pth")
    assert predictor.categories == tuple(names)
    back = ("--to", "huggingface", "-o", tmp_path / "back", "--config-file", tmp_path / "w.yaml")
    tool(tmp_path / "w.pth", *back, "--no-verify")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["id2label"] == {
        str(i): name for i, name in enumerate(names)
    }
    tool(
        *(tmp_path, "--to", "mask2former", "-o", tmp_path / "v.pth"),
        *("--config-file", tmp_path / "w.yaml", "--no-verify"),
    )
    assert torch.load(tmp_path / "v.pth")["class_names"] == names


def test_class_names():
    assert class_names_from_huggingface({"id2label": None}) is None
    assert class_names_from_huggingface({"id2label": {"1": "b", "0": "a"}}) == ["a", "b"]
    with pytest.raises(ConfigError, match="id2label of 1, 2; they must count from 0"):
        class_names_from_huggingface({"id2label": {"1": "a", "2": "b"}})


def test_configurations_agree(cfg):
    config = huggingface_config(cfg)
    converted = get_maskformer2_cfg()
    converted.merge_from_list(overrides_from_huggingface(config, huggingface_preprocessor(cfg)))
    ours, theirs = cfg.MODEL, converted.MODEL
    assert theirs.MASK_FORMER.DEC_LAYERS == ours.MASK_FORMER.DEC_LAYERS == config["decoder_layers"]
    backbone = "SWIN" if ours.BACKBONE.NAME == "D2SwinTransformer" else "RESNETS"
    # These are no part of the model there, or no part of the backbone that both can build.
    theirs.MASK_FORMER.TEST = ours.MASK_FORMER.TEST
    for key in ("NORM", "STEM_TYPE", "RES5_MULTI_GRID"):
        theirs.RESNETS[key] = ours.RESNETS[key]
    for section in ("SEM_SEG_HEAD", "MASK_FORMER", "BACKBONE", backbone):
        assert theirs[section] == ours[section], section
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        assert theirs[key] == pytest.approx(ours[key]), key
    assert converted.INPUT.MIN_SIZE_TEST == cfg.INPUT.MIN_SIZE_TEST


@pytest.mark.parametrize("cfg", ["swin"], indirect=True)
def test_old_files_with_an_index_and_timm_resnets(cfg):
    """Files of transformers 4 hold the index; ResNets may come through timm."""
    theirs = to_huggingface(randomize(build_model(cfg)).state_dict())
    for name in [n for n in theirs if n.endswith("relative_position_bias_table")]:
        theirs[name.replace("_bias_table", "_index")] = torch.zeros(16, 16)
    assert not any(t.eq(0).all() for k, t in from_huggingface(theirs).items() if "index" in k)

    prefix = "model.pixel_level_module.encoder._backbone."
    timm = {f"{prefix}{name}": torch.ones(1) for name in ("bn1.weight", "layer3.4.conv2.weight")}
    assert list(from_huggingface(timm)) == [
        "backbone.stem.conv1.norm.weight",
        "backbone.res4.4.conv2.weight",
    ]
    config = huggingface_config(cfg)
    config["backbone_config"] = {"model_type": "timm_backbone", "backbone": "resnet101.a1_in1k"}
    overrides = overrides_from_huggingface(config)
    assert overrides[overrides.index("MODEL.RESNETS.DEPTH") + 1] == "101"


@pytest.mark.parametrize("cfg", ["resnet_bn", "swin"], indirect=True)
def test_the_tool_converts_there_and_back(cfg, tmp_path, tool):
    """From the names of the first published checkpoints, even."""
    model = randomize(build_model(cfg))
    weights, config = tmp_path / "model.pth", tmp_path / "model.yaml"
    old = ("sem_seg_head.pixel_decoder.", "sem_seg_head."), ("query_feat", "static_query")
    names = {name: name.replace(*old[0]).replace(*old[1]) for name in model.state_dict()}
    torch.save({"model": {names[k]: t for k, t in model.state_dict().items()}}, weights)
    config.write_text(cfg.dump())
    size = ["--size", 65, 93, "--batch", 2]
    status, output = tool(
        weights, "--to", "huggingface", "-o", tmp_path / "hf", "--config-file", config, *size
    )
    assert status == 0 and output.count("largest difference") == 2
    status, output = tool(
        tmp_path / "hf", "--to", "mask2former", "-o", tmp_path / "back" / "model.pth", *size
    )
    assert status == 0 and output.count("largest difference") == 2

    back = torch.load(tmp_path / "back" / "model.pth")["model"]
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[name], t) for name, t in model.state_dict().items())
    written = load_config(tmp_path / "back" / "model.yaml", ["MODEL.DEVICE", "cpu"])
    build_model(written).load_state_dict(back)


@pytest.mark.parametrize("cfg", ["swin"], indirect=True)
def test_the_tool_refuses_what_it_cannot_write_or_run(cfg, tmp_path, tool, capsys):
    weights, config = tmp_path / "model.pth", tmp_path / "model.yaml"
    torch.save({"model": build_model(cfg).state_dict()}, weights)
    config.write_text(cfg.dump())
    arguments = [weights, "--to", "huggingface", "--config-file", config]
    for output in (weights, weights / "inside"):
        with pytest.raises(UserError, match=r"model\.pth.* is no folder to write to"):
            tool(*arguments, "-o", output)
    with pytest.raises(SystemExit):
        tool(*arguments, "-o", tmp_path / "hf", "--batch", 0)
    assert "--batch: 0 is below 1" in capsys.readouterr().err


@pytest.mark.parametrize("cfg", ["swin"], indirect=True)
def test_the_tool_notices_a_difference(cfg, tmp_path, tool):
    model = randomize(build_model(cfg))
    save_for_transformers(model, cfg, tmp_path)
    weights = to_huggingface(model.state_dict())
    path = tmp_path / "model.safetensors"
    arguments = [tmp_path, "--to", "mask2former", "-o", tmp_path / "model.pth", "--size", 64, 64]
    with pytest.MonkeyPatch.context() as patch:
        # The heads of the first self-attention in another order: names and shapes still fit.
        from mask2former.checkpoint import huggingface

        rules = [(o, [t[1], t[0], t[2]]) for o, t in huggingface._FUSED]
        patch.setattr(huggingface, "_FUSED", rules)
        assert tool(*arguments)[0] == 1

    del weights["class_predictor.bias"]
    safetensors_torch.save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"class_embed.bias is missing, expected \(10,\)"):
        tool(*arguments)


@pytest.mark.parametrize("cfg", ["swin"], indirect=True)
def test_what_cannot_be_converted_is_named(cfg):
    with pytest.raises(UserError, match="sem_seg_head.predictor.static_query.weight"):
        to_huggingface({"sem_seg_head.predictor.static_query.weight": torch.ones(1)})
    with pytest.raises(UserError, match="k_proj.weight is missing"):
        name = "model.transformer_module.decoder.layers.0.self_attn.q_proj.weight"
        from_huggingface({name: torch.ones(1)})
    config = huggingface_config(cfg)
    with pytest.raises(ConfigError, match="encoder_feedforward_dim: 512"):
        overrides_from_huggingface(config | {"encoder_feedforward_dim": 512})
    with pytest.raises(ConfigError, match="type convnext"):
        overrides_from_huggingface(config | {"backbone_config": {"model_type": "convnext"}})
    with pytest.raises(ConfigError, match="maskformer, not mask2former"):
        overrides_from_huggingface({"model_type": "maskformer"})
    cfg.INPUT.FORMAT = "BGR"
    with pytest.raises(ConfigError, match="INPUT.FORMAT is BGR"):
        huggingface_config(cfg)
