"""The configuration keys of Mask2Former, and the one way tools read a configuration file."""

import difflib
import io
import os
import re
from collections.abc import Iterator, Sequence

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from .errors import ConfigError
from .memory import ALL_OF_IT, LARGE_BLOCK_IN_TRAINING, keep_freed_memory


def add_maskformer2_config(cfg: CfgNode) -> None:
    """Add the keys of Mask2Former to ``cfg``, with the published names and defaults."""
    # --- data -------------------------------------------------------------------------------
    # YAML file(s) that describe your own data sets by name (docs/CUSTOM_DATA.md).
    cfg.DATASETS.CATALOG = ""
    # Which dataset mapper: mask_former_{semantic,instance,panoptic}, coco_{instance,panoptic}_lsj.
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    # SSD colour jitter (the mask_former_* mappers).
    cfg.INPUT.COLOR_AUG_SSD = False
    # A crop is tried again while one category fills more than this share of it.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    # Pad training pictures to at least this many pixels a side; -1: no padding.
    cfg.INPUT.SIZE_DIVISIBILITY = -1
    # Large-scale jitter (the coco_*_lsj mappers): side of the square crop, range of the scale.
    cfg.INPUT.IMAGE_SIZE = 1024
    cfg.INPUT.MIN_SCALE = 0.1
    cfg.INPUT.MAX_SCALE = 2.0

    # --- evaluation -------------------------------------------------------------------------
    # Pictures that the model is given at a time.
    cfg.TEST.IMS_PER_BATCH = 1
    # Boundary PQ, AP and IoU too.
    cfg.TEST.BOUNDARY = False
    # What inference computes in: float32; bfloat16 or float16, which are faster and not the same.
    cfg.TEST.PRECISION = "float32"
    # On GPUs, where launching kernels takes longer than they do: cuda-graph records them once for
    # each size of pictures. Anywhere: torch.compile, default, reduce-overhead (with CUDA graphs) or
    # max-autotune; then the first pictures take minutes. "" is neither.
    cfg.TEST.COMPILE = ""
    # Hand memory that is free back to the system as soon as possible (on CPUs; slower).
    cfg.TEST.LOW_MEMORY = False

    # --- solver -----------------------------------------------------------------------------
    cfg.SOLVER.OPTIMIZER = "ADAMW"  # or SGD
    # Weight decay of embeddings (queries, levels).
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    # Learning rate of the backbone, as a factor of BASE_LR.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1

    # --- Swin backbone (MODEL.BACKBONE.NAME: D2SwinTransformer) ------------------------------
    swin = cfg.MODEL.SWIN = CfgNode()
    # Side of the pictures that the backbone was pretrained on: shapes the position embedding.
    swin.PRETRAIN_IMG_SIZE = 224
    swin.PATCH_SIZE = 4
    swin.EMBED_DIM = 96
    # Blocks, and heads of each, in the four stages.
    swin.DEPTHS = [2, 2, 6, 2]
    swin.NUM_HEADS = [3, 6, 12, 24]
    swin.WINDOW_SIZE = 7
    swin.MLP_RATIO = 4.0
    swin.QKV_BIAS = True
    # Factor of the attention logits; None: head channels ** -0.5.
    swin.QK_SCALE = None
    swin.DROP_RATE = 0.0
    swin.ATTN_DROP_RATE = 0.0
    # Stochastic depth of the last block; it grows linearly from 0.
    swin.DROP_PATH_RATE = 0.3
    # Absolute position embedding; a norm after the patch embedding.
    swin.APE = False
    swin.PATCH_NORM = True
    swin.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # As Detectron2's FREEZE_AT: 1 freezes the patch embedding, 2 also the stage of res2, ...
    swin.FREEZE_AT = 0
    # Compute activations again in the backward pass, to save memory.
    swin.USE_CHECKPOINT = False

    # --- pixel decoder ----------------------------------------------------------------------
    head = cfg.MODEL.SEM_SEG_HEAD
    head.PIXEL_DECODER_NAME = "BasePixelDecoder"  # configs name MSDeformAttnPixelDecoder
    # Channels of the mask features and of the mask embeddings.
    head.MASK_DIM = 256
    # Layers of the deformable encoder.
    head.TRANSFORMER_ENC_LAYERS = 0
    # Backbone features that the deformable encoder sees; the finer ones join through an FPN.
    head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 4
    # As published without effect: the encoder has MODEL.MASK_FORMER.NHEADS heads.
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 8

    # --- transformer decoder ----------------------------------------------------------------
    mask_former = cfg.MODEL.MASK_FORMER = CfgNode()
    mask_former.TRANSFORMER_DECODER_NAME = "MultiScaleMaskedTransformerDecoder"
    # What the decoder attends to; this decoder knows multi_scale_pixel_decoder only.
    mask_former.TRANSFORMER_IN_FEATURE = "res5"
    mask_former.NUM_OBJECT_QUERIES = 100
    mask_former.HIDDEN_DIM = 256
    mask_former.NHEADS = 8
    mask_former.DIM_FEEDFORWARD = 2048
    # Number of predictions under supervision: DEC_LAYERS - 1 layers, and the initial queries.
    mask_former.DEC_LAYERS = 6
    # Layers of an encoder inside the decoder: MaskFormer's, none in Mask2Former.
    mask_former.ENC_LAYERS = 0
    # Dropout of the deformable encoder; the transformer decoder has none.
    mask_former.DROPOUT = 0.1
    mask_former.PRE_NORM = False
    # Project the decoder's input even where its channels fit already.
    mask_former.ENFORCE_INPUT_PROJ = False
    # Input pictures are padded to a multiple of this; negative: what the backbone asks for.
    mask_former.SIZE_DIVISIBILITY = 32

    # --- losses -----------------------------------------------------------------------------
    mask_former.DEEP_SUPERVISION = True
    mask_former.NO_OBJECT_WEIGHT = 0.1
    mask_former.CLASS_WEIGHT = 1.0
    mask_former.DICE_WEIGHT = 1.0
    mask_former.MASK_WEIGHT = 20.0
    # Points a mask is sampled at, in matching and in the losses; PointRend's sampling ratios.
    mask_former.TRAIN_NUM_POINTS = 112 * 112
    mask_former.OVERSAMPLE_RATIO = 3.0
    mask_former.IMPORTANCE_SAMPLE_RATIO = 0.75

    # Leave pixels without a label (void, ignored, crowds, padding) out of sampling, matching and
    # the mask losses. As published they count as background.
    mask_former.EXCLUDE_IGNORED = False

    # --- inference --------------------------------------------------------------------------
    test = mask_former.TEST = CfgNode()
    test.SEMANTIC_ON = True
    test.INSTANCE_ON = False
    test.PANOPTIC_ON = False
    # Panoptic: least class score of a query, least share of its mask that other masks leave it.
    test.OBJECT_MASK_THRESHOLD = 0.0
    test.OVERLAP_THRESHOLD = 0.0
    # Semantic: resize the masks to the output first, then form the scores. Panoptic and instance
    # inference always do, and, as published, make semantic inference do so too.
    test.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = False


# How the configs published with the paper write their lists of sizes: Python inside YAML.
_SIZES = re.compile(
    r"""!!python/object/apply:eval\s*\[\s*["']\[\s*int\(x \* ([\d.]+) \* (\d+)\)\s*"""
    r"""for x in range\((\d+), (\d+)\)\s*\]["']\s*\]"""
)


class SafeCfgNode(CfgNode):
    """A CfgNode that runs no code of a YAML file, and yet reads the published files."""

    @classmethod
    def _open_cfg(cls, filename: str) -> io.StringIO:
        with super()._open_cfg(filename) as file:
            return io.StringIO(_SIZES.sub(_list_sizes, file.read()))

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = False) -> None:
        # allow_unsafe, Detectron2's default, would run whatever code a file names.
        super().merge_from_file(cfg_filename, allow_unsafe=False)


def _list_sizes(match: re.Match) -> str:
    factor, side, start, stop = match.groups()
    return str([int(x * float(factor) * int(side)) for x in range(int(start), int(stop))])


def get_maskformer2_cfg() -> CfgNode:
    """Detectron2's defaults with the keys of DeepLab and Mask2Former, as the configs need them."""
    cfg = get_cfg()
    add_deeplab_config(cfg)  # the WarmupPolyLR schedule and the ResNet stem of Cityscapes
    add_maskformer2_config(cfg)
    return SafeCfgNode(cfg)


def load_config(config_file: str | os.PathLike, overrides: Sequence[str] = ()) -> CfgNode:
    """Read a YAML file (with its ``_BASE_`` chain), apply overrides, register its data sets.

    Args:
        config_file: path of the YAML file.
        overrides: ``[KEY, VALUE, KEY, VALUE, ...]`` as given on a command line.

    Raises:
        ConfigError: the file is missing or no YAML, a key is unknown, a value of a wrong type.
        DatasetError: a data set catalog, or a file that it names, is missing or malformed.
    """
    cfg = read_config(config_file, overrides)
    register_data_sets(cfg)
    return cfg


def read_config(config_file: str | os.PathLike, overrides: Sequence[str] = ()) -> CfgNode:
    """:func:`load_config` without the data sets."""
    config_file = os.fspath(config_file)
    if not os.path.isfile(config_file):
        raise ConfigError(f"config file {config_file} does not exist")
    cfg = get_maskformer2_cfg()
    try:
        cfg.merge_from_file(config_file)
    except FileNotFoundError as error:
        raise ConfigError(f"{config_file}: its _BASE_ {error.filename} does not exist") from error
    except (KeyError, ValueError, AssertionError, yaml.YAMLError) as error:
        raise ConfigError(f"{config_file}: {_explain(cfg, error)}") from error
    try:
        cfg.merge_from_list(list(overrides))
    except (KeyError, ValueError, AssertionError) as error:
        raise ConfigError(f"command line: {_explain(cfg, error)}") from error
    return cfg


def register_data_sets(cfg: CfgNode) -> None:
    """Register the data sets of the catalogs that ``DATASETS.CATALOG`` names.

    Raises:
        DatasetError: a catalog, or a file that it names, is missing or malformed.
    """
    from .data.catalog import register_catalog

    for catalog in filter(None, cfg.DATASETS.CATALOG.split(",")):
        register_catalog(catalog.strip())


def adapt_to_machine(cfg: CfgNode) -> list[str]:
    """Let a config made for GPUs run on a machine without one; what changed, in words.

    On a CPU, also let the process keep the memory it frees: :func:`.memory.keep_freed_memory`.
    """
    changes = []
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        changes.append("MODEL.DEVICE is cpu: torch sees no GPU (python -m mask2former.doctor)")
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.DEVICE == "cpu" and cfg.SOLVER.AMP.ENABLED:
        # Detectron2's AMPTrainer is CUDA only.
        changes.append("SOLVER.AMP.ENABLED has no effect on the CPU: training in float32")
        cfg.SOLVER.AMP.ENABLED = False
    if cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory(ALL_OF_IT, large_block=LARGE_BLOCK_IN_TRAINING)
    return changes


def _explain(cfg: CfgNode, error: Exception) -> str:
    """What ``error`` says, and for an unknown key the known one that resembles it most."""
    if isinstance(error, yaml.constructor.ConstructorError) and "python/" in str(error.problem):
        tag = str(error.problem).rpartition("python/")[2].rstrip("'")
        line = error.problem_mark.line + 1
        return f"line {line} would run code (!!python/{tag}); write the value out instead"
    message = str(error.args[0]) if error.args else str(error)
    mismatch = re.match(
        r"Type mismatch \(<class '(\w+)'> vs\. .*values \(.* vs\. (.*)\) for config key: (\S+)$",
        message,
    )
    if mismatch:
        return f"{mismatch[3]} must be of type {mismatch[1]}, not {mismatch[2]}"
    unknown = re.match(r"Non-existent (?:config )?key: (\S+)", message)
    if unknown is None:
        return str(error) if isinstance(error, yaml.YAMLError) else message
    known = list(_leaf_keys(cfg))
    key = unknown[1]
    # yacs names the node only, or the whole path, depending on where the chain breaks.
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"unknown key {key}{hint}"


def _leaf_keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaf_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
