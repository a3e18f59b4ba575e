"""Run a converted model and the model it came from, or became, on the same random pictures."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_model
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError, UserError
from ..modeling.backbone.swin import D2SwinTransformer
from .swin import is_timm_swin, swin_architecture
from .torchvision_resnet import resnet_depth

# What a checkpoint may lack or have in excess without any effect on the outputs.
_WITHOUT_EFFECT = (".num_batches_tracked", ".relative_position_index")


@dataclass
class Difference:
    """How far an output is from the reference's."""

    name: str
    absolute: float  # the largest difference
    largest: float  # the largest absolute value of the reference

    @property
    def relative(self) -> float:
        return self.absolute / self.largest

    @classmethod
    def between(cls, name: str, output: Tensor, reference: Tensor) -> "Difference":
        if output.shape != reference.shape:
            raise UserError(
                f"{name}: the shapes {tuple(output.shape)} and {tuple(reference.shape)} differ"
            )
        return cls(name, (output - reference).abs().max().item(), reference.abs().max().item())


def check_fits(cfg: CfgNode, state_dict: Mapping[str, Tensor], what: str) -> None:
    """Compare names and shapes with the model of ``cfg``, without allocating it.

    Raises:
        UserError: something is missing, left over or of another shape; ``what`` names the weights.
    """
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    given = {name: tuple(t.shape) for name, t in state_dict.items()}
    for name in sorted(expected.keys() | given.keys()):
        if expected.get(name) != given.get(name) and not name.endswith(_WITHOUT_EFFECT):
            raise UserError(
                f"{what} does not fit the configuration: {name} is {given.get(name, 'missing')}, "
                f"expected {expected.get(name, 'nothing of that name')}; give the config file that "
                "the weights were trained with"
            )


@torch.no_grad()
def compare_with_transformers(
    cfg: CfgNode, state_dict: Mapping[str, Tensor], folder: str | PathLike, pictures: Tensor
) -> list[Difference]:
    """The final logits of the model of ``cfg`` against those of the model in ``folder``.

    Args:
        state_dict: weights for the model of ``cfg``.
        pictures: (B, 3, H, W), normalised.

    Raises:
        UserError: transformers finds weights missing, left over or of another shape.
    """
    import transformers

    with _quiet(transformers):
        theirs, info = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
            folder, output_loading_info=True, dtype=torch.float32
        )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            raise UserError(f"{folder}: transformers reports {kind}: {sorted(info[kind])[0]}")
    expected = theirs.eval()(pictures)
    expected = expected.class_queries_logits, expected.masks_queries_logits
    del theirs  # one large model in memory at a time

    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    model.load_state_dict(state_dict, strict=False)
    model.float().eval()
    outputs = model.sem_seg_head(model.backbone(pictures))
    return [
        Difference.between("class logits", outputs["pred_logits"], expected[0]),
        Difference.between("mask logits", outputs["pred_masks"], expected[1]),
    ]


@torch.no_grad()
def compare_with_torchvision(
    cfg: CfgNode, source: Mapping[str, Tensor], converted: Mapping[str, Tensor], pictures: Tensor
) -> list[Difference]:
    """Features of Detectron2's ResNet against those of torchvision's, of the same weights.

    Args:
        cfg: its ``MODEL.RESNETS`` are set to the standard widths and to the depth of ``source``.
    """
    from torchvision.models import resnet

    depth = resnet_depth(source)
    reference = getattr(resnet, f"resnet{depth}")()
    reference.fc = nn.Identity()
    reference.load_state_dict({k: t for k, t in source.items() if not k.startswith("fc.")})
    reference.eval()

    cfg = cfg.clone()
    resnets = cfg.MODEL.RESNETS
    resnets.DEPTH, resnets.NORM, resnets.STRIDE_IN_1X1 = depth, "FrozenBN", False
    resnets.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    resnets.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    features = _load_backbone(build_backbone(cfg), converted)(pictures)
    x = reference.maxpool(reference.relu(reference.bn1(reference.conv1(pictures))))
    differences = []
    for stage in range(1, 5):
        x = getattr(reference, f"layer{stage}")(x)
        name = f"res{stage + 1}"
        differences.append(Difference.between(name, features[name], x))
    return differences


@torch.no_grad()
def compare_with_timm_swin(
    source: Mapping[str, Tensor], converted: Mapping[str, Tensor], batch: int = 1
) -> list[Difference]:
    """What each stage of the Swin backbone puts out against timm's, normalised alike.

    The pictures are of a size whose maps windows divide: elsewhere timm pads after shifting, the
    official code and this backbone before it.
    """
    from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn

    architecture = swin_architecture(converted)
    side = 32 * architecture["window_size"]
    pictures = torch.randn(batch, 3, side, 2 * side)
    reference = SwinTransformer(
        img_size=(side, 2 * side), always_partition=True, num_classes=0, **architecture
    )
    if not is_timm_swin(source):
        source = checkpoint_filter_fn(dict(source), reference)
    reference.load_state_dict(source, strict=False)
    expected = reference.eval().forward_intermediates(pictures, intermediates_only=True)
    features = _load_backbone(D2SwinTransformer(**architecture), converted)(pictures)
    return [
        Difference.between(
            f"res{i + 2}",
            features[f"res{i + 2}"],
            F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2),
        )
        for i, x in enumerate(expected)
    ]


def _load_backbone(backbone: nn.Module, converted: Mapping[str, Tensor]) -> nn.Module:
    # A Swin's norm0 to norm3 keep their initial values, 1 and 0: classifiers have none.
    weights = {name.removeprefix("backbone."): tensor for name, tensor in converted.items()}
    keys = backbone.load_state_dict(weights, strict=False)
    if keys.unexpected_keys:
        raise ConfigError(f"{keys.unexpected_keys[0]} has no place in {type(backbone).__name__}")
    return backbone.float().eval()


@contextlib.contextmanager
def _quiet(transformers) -> Iterator[None]:
    """transformers without its bars and its table of weights, which the caller looks at itself."""
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
