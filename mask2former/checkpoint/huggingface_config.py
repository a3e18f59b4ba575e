"""The configuration of transformers' Mask2Former <-> the keys of this model's configuration."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..errors import ConfigError
from .torchvision_resnet import RESNET_DEPTHS

# Triples: key here, key there, what transformers takes if a file does not say.


_MODEL_KEYS = [
    ("MODEL.SEM_SEG_HEAD.CONVS_DIM", "feature_size", 256),
    ("MODEL.SEM_SEG_HEAD.MASK_DIM", "mask_feature_size", 256),
    ("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "encoder_layers", 6),
    ("MODEL.SEM_SEG_HEAD.COMMON_STRIDE", "common_stride", 4),
    ("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", "ignore_value", 255),
    ("MODEL.MASK_FORMER.HIDDEN_DIM", "hidden_dim", 256),
    ("MODEL.MASK_FORMER.NHEADS", "num_attention_heads", 8),
    ("MODEL.MASK_FORMER.DIM_FEEDFORWARD", "dim_feedforward", 2048),
    # Both count the predictions: 10 means nine layers there too.
    ("MODEL.MASK_FORMER.DEC_LAYERS", "decoder_layers", 10),
    ("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "num_queries", 100),
    ("MODEL.MASK_FORMER.DROPOUT", "dropout", 0.0),
    ("MODEL.MASK_FORMER.PRE_NORM", "pre_norm", False),
    ("MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ", "enforce_input_projection", False),
    ("MODEL.MASK_FORMER.DEEP_SUPERVISION", "use_auxiliary_loss", True),
    ("MODEL.MASK_FORMER.NO_OBJECT_WEIGHT", "no_object_weight", 0.1),
    ("MODEL.MASK_FORMER.CLASS_WEIGHT", "class_weight", 2.0),
    ("MODEL.MASK_FORMER.MASK_WEIGHT", "mask_weight", 5.0),
    ("MODEL.MASK_FORMER.DICE_WEIGHT", "dice_weight", 5.0),
    ("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "train_num_points", 12544),
    ("MODEL.MASK_FORMER.OVERSAMPLE_RATIO", "oversample_ratio", 3.0),
    ("MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO", "importance_sample_ratio", 0.75),
]
_SWIN_KEYS = [
    ("MODEL.SWIN.PRETRAIN_IMG_SIZE", "image_size", 224),
    ("MODEL.SWIN.PATCH_SIZE", "patch_size", 4),
    ("MODEL.SWIN.EMBED_DIM", "embed_dim", 96),
    ("MODEL.SWIN.DEPTHS", "depths", [2, 2, 6, 2]),
    ("MODEL.SWIN.NUM_HEADS", "num_heads", [3, 6, 12, 24]),
    ("MODEL.SWIN.WINDOW_SIZE", "window_size", 7),
    ("MODEL.SWIN.MLP_RATIO", "mlp_ratio", 4.0),
    ("MODEL.SWIN.QKV_BIAS", "qkv_bias", True),
    ("MODEL.SWIN.DROP_RATE", "hidden_dropout_prob", 0.0),
    ("MODEL.SWIN.ATTN_DROP_RATE", "attention_probs_dropout_prob", 0.0),
    ("MODEL.SWIN.DROP_PATH_RATE", "drop_path_rate", 0.1),
]

# What transformers' model cannot be told, because it always is so.
_STAGES = ["res2", "res3", "res4", "res5"]
_MODEL_FIXED = {
    "MODEL.META_ARCHITECTURE": "MaskFormer",
    "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": _STAGES,
    "MODEL.SEM_SEG_HEAD.NORM": "GN",
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": _STAGES[1:],
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": 4,
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
    "INPUT.FORMAT": "RGB",
}
_SWIN_FIXED = {
    "MODEL.BACKBONE.NAME": "D2SwinTransformer",
    "MODEL.SWIN.OUT_FEATURES": _STAGES,
    "MODEL.SWIN.PATCH_NORM": True,
    "MODEL.SWIN.QK_SCALE": None,
    "MODEL.SWIN.APE": False,
}
_RESNET_FIXED = {
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.RESNETS.OUT_FEATURES": _STAGES,
    "MODEL.RESNETS.NUM_GROUPS": 1,
    "MODEL.RESNETS.RES5_DILATION": 1,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False] * 4,
}
# What this model always is, and a file there may contradict.
_THEIRS_FIXED = {"encoder_feedforward_dim": 1024, "activation_function": "relu"}
_THEIRS_SWIN_FIXED = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "use_absolute_embeddings": False,
}
_THEIRS_RESNET_FIXED = {"hidden_act": "relu", "downsample_in_first_stage": False}
_OUT_FEATURES = ["stage1", "stage2", "stage3", "stage4"]


def huggingface_config(cfg: CfgNode) -> dict[str, Any]:
    """What ``config.json`` says of the model that ``cfg`` describes, classes included.

    The class names are those of the metadata of ``DATASETS.TEST`` or ``DATASETS.TRAIN``, if one
    has ``MODEL.SEM_SEG_HEAD.NUM_CLASSES`` of them.

    Raises:
        ConfigError: transformers has no such model.
    """
    names = _class_names(cfg)
    swin = cfg.MODEL.BACKBONE.NAME == "D2SwinTransformer"
    _require(cfg, _MODEL_FIXED)
    backbone = _swin_config(cfg) if swin else _resnet_config(cfg)
    stride = cfg.MODEL.SWIN.PATCH_SIZE if swin else 4
    return {
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "model_type": "mask2former",
        "backbone_config": backbone
        | {"num_channels": len(cfg.MODEL.PIXEL_MEAN), "out_features": _OUT_FEATURES},
        "feature_strides": [stride * 2**i for i in range(4)],
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        **_THEIRS_FIXED,
        **{theirs: _get(cfg, ours) for ours, theirs, _ in _MODEL_KEYS},
    }


def huggingface_preprocessor(cfg: CfgNode) -> dict[str, Any]:
    """What ``preprocessor_config.json`` says: the sizes of the test, mean and deviation in [0, 1].

    transformers resizes a picture to a multiple of ``size_divisor``, where this model pads it.
    """
    return {
        "image_processor_type": "Mask2FormerImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": cfg.INPUT.MIN_SIZE_TEST, "longest_edge": cfg.INPUT.MAX_SIZE_TEST},
        "size_divisor": max(cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY, 0),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in cfg.MODEL.PIXEL_MEAN],
        "image_std": [value / 255 for value in cfg.MODEL.PIXEL_STD],
        "ignore_index": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        "do_reduce_labels": False,
        "num_labels": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
    }


def overrides_from_huggingface(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None = None
) -> list[str]:
    """``[KEY, VALUE, KEY, VALUE, ...]``: all that differs from the defaults of the keys here.

    Args:
        config: the contents of ``config.json``.
        preprocessor: those of ``preprocessor_config.json``; without them mean, deviation and size
            are ImageNet's and COCO's.

    Raises:
        ConfigError: ``config`` describes a model that cannot be built here.
    """
    if config.get("model_type") != "mask2former":
        raise ConfigError(
            f"config.json describes a model of type {config.get('model_type')}, not mask2former"
        )
    _require_theirs(config, _THEIRS_FIXED)
    values = _MODEL_FIXED | {"MODEL.BACKBONE.FREEZE_AT": 0}
    values |= _translate(config, _MODEL_KEYS)
    values["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] = len(config.get("id2label", ())) or config.get(
        "num_labels", 2
    )
    values |= _backbone_values(config)
    values |= _preprocessing_values(preprocessor or {})
    # Files there do not say what the model is for: it can do everything.
    for task in ("SEMANTIC_ON", "INSTANCE_ON", "PANOPTIC_ON"):
        values[f"MODEL.MASK_FORMER.TEST.{task}"] = True
    for threshold in ("OBJECT_MASK_THRESHOLD", "OVERLAP_THRESHOLD"):
        values[f"MODEL.MASK_FORMER.TEST.{threshold}"] = 0.8
    return [str(item) for pair in values.items() for item in pair]


def _swin_config(cfg: CfgNode) -> dict[str, Any]:
    _require(cfg, _SWIN_FIXED)
    keys = {theirs: _get(cfg, ours) for ours, theirs, _ in _SWIN_KEYS}
    return {"model_type": "swin", **_THEIRS_SWIN_FIXED, **keys}


def _resnet_config(cfg: CfgNode) -> dict[str, Any]:
    _require(cfg, _RESNET_FIXED)
    resnets = cfg.MODEL.RESNETS
    if resnets.NORM not in ("FrozenBN", "BN", "SyncBN", "naiveSyncBN"):
        raise ConfigError(
            f"MODEL.RESNETS.NORM is {resnets.NORM}; transformers' ResNet has batch norms only"
        )
    kinds = {depth: kind for kind, depth in RESNET_DEPTHS.items()}
    layer_type, depths = kinds[resnets.DEPTH]
    if layer_type == "bottleneck" and resnets.RES2_OUT_CHANNELS != 4 * resnets.WIDTH_PER_GROUP:
        raise ConfigError(
            f"MODEL.RESNETS.RES2_OUT_CHANNELS is {resnets.RES2_OUT_CHANNELS}; transformers' ResNet "
            f"needs four times MODEL.RESNETS.WIDTH_PER_GROUP, which is {resnets.WIDTH_PER_GROUP}"
        )
    return {
        "model_type": "resnet",
        **_THEIRS_RESNET_FIXED,
        "layer_type": layer_type,
        "depths": list(depths),
        "embedding_size": resnets.STEM_OUT_CHANNELS,
        "hidden_sizes": [resnets.RES2_OUT_CHANNELS * 2**i for i in range(4)],
        "downsample_in_bottleneck": resnets.STRIDE_IN_1X1,
    }


def _backbone_values(config: Mapping[str, Any]) -> dict[str, Any]:
    backbone = config.get("backbone_config") or {}
    if config.get("use_timm_backbone") or backbone.get("model_type") == "timm_backbone":
        backbone = _timm_resnet(str(backbone.get("backbone") or config.get("backbone")))
    if backbone.get("model_type") == "swin":
        _require_theirs(backbone, _THEIRS_SWIN_FIXED)
        return _SWIN_FIXED | _translate(backbone, _SWIN_KEYS)
    if backbone.get("model_type") != "resnet":
        raise ConfigError(
            f"config.json has a backbone of type {backbone.get('model_type')}; swin, resnet, and "
            "resnet through timm_backbone can be converted"
        )
    _require_theirs(backbone, _THEIRS_RESNET_FIXED)
    layer_type = backbone.get("layer_type", "bottleneck")
    sizes = list(backbone.get("hidden_sizes", [256, 512, 1024, 2048]))
    depth = RESNET_DEPTHS.get((layer_type, tuple(backbone.get("depths", (3, 4, 6, 3)))))
    if depth is None or sizes != [sizes[0] * 2**i for i in range(4)]:
        raise ConfigError(
            f"config.json has a ResNet of {layer_type} blocks, {backbone.get('depths')} a stage, "
            f"with {sizes} channels; Detectron2 builds depths {sorted(RESNET_DEPTHS.values())}, "
            "with channels that double from stage to stage"
        )
    return _RESNET_FIXED | {
        "MODEL.RESNETS.DEPTH": depth,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": backbone.get("embedding_size", 64),
        "MODEL.RESNETS.RES2_OUT_CHANNELS": sizes[0],
        "MODEL.RESNETS.WIDTH_PER_GROUP": sizes[0] // 4 if layer_type == "bottleneck" else 64,
        "MODEL.RESNETS.STRIDE_IN_1X1": backbone.get("downsample_in_bottleneck", False),
        "MODEL.RESNETS.NORM": "FrozenBN",
    }


def _timm_resnet(name: str) -> dict[str, Any]:
    """The ResNet that timm calls ``name``, in transformers' own words; {} if it is none."""
    for (layer_type, depths), depth in RESNET_DEPTHS.items():
        if name.partition(".")[0] == f"resnet{depth}":
            first = 256 if layer_type == "bottleneck" else 64
            return {
                "model_type": "resnet",
                "layer_type": layer_type,
                "depths": depths,
                "hidden_sizes": [first * 2**i for i in range(4)],
            }
    return {"model_type": f"timm's {name}"}


def _preprocessing_values(preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    mean = preprocessor.get("image_mean", [0.485, 0.456, 0.406])
    deviation = preprocessor.get("image_std", [0.229, 0.224, 0.225])
    values = {
        "MODEL.PIXEL_MEAN": [round(255 * value, 6) for value in mean],
        "MODEL.PIXEL_STD": [round(255 * value, 6) for value in deviation],
    }
    size = preprocessor.get("size")
    if isinstance(size, Mapping) and {"shortest_edge", "longest_edge"} <= set(size):
        values["INPUT.MIN_SIZE_TEST"] = size["shortest_edge"]
        values["INPUT.MAX_SIZE_TEST"] = size["longest_edge"]
    return values


def _translate(config: Mapping[str, Any], keys: Iterable[tuple[str, str, Any]]) -> dict[str, Any]:
    # Keys are strict about types: 0 is no float there, a tuple no list.
    return {ours: type(default)(config.get(theirs, default)) for ours, theirs, default in keys}


def _get(cfg: CfgNode, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return list(cfg) if isinstance(cfg, tuple) else cfg


def _require(cfg: CfgNode, required: Mapping[str, Any]) -> None:
    for key, value in required.items():
        if _get(cfg, key) != value:
            raise ConfigError(
                f"{key} is {_get(cfg, key)}; transformers' Mask2Former knows {value} only, so this "
                "model cannot be converted"
            )


def _require_theirs(config: Mapping[str, Any], required: Mapping[str, Any]) -> None:
    for key, value in required.items():
        if config.get(key, value) != value:
            raise ConfigError(
                f"config.json has {key}: {config[key]}; this model knows {value} only, so that one "
                "cannot be converted"
            )


def class_names_from_huggingface(config: Mapping[str, Any]) -> list[str] | None:
    """The names of ``id2label`` in order; None where they are transformers' ``LABEL_0``, ....

    Raises:
        ConfigError: they are not numbered from 0 on.
    """
    labels = config.get("id2label") or {}
    if set(labels) != {str(i) for i in range(len(labels))}:
        raise ConfigError(
            f"config.json has id2label of {', '.join(labels)}; they must count from 0 on"
        )
    names = [labels[str(i)] for i in range(len(labels))]
    return None if all(re.fullmatch(r"LABEL_\d+", name) for name in names) else names


def _class_names(cfg: CfgNode) -> list[str]:
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    for dataset in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        metadata = MetadataCatalog.get(dataset)
        for kind in ("stuff_classes", "thing_classes"):
            names = metadata.get(kind, ())
            if len(names) == num_classes == len(set(names)):
                return list(names)
    return [f"LABEL_{i}" for i in range(num_classes)]
