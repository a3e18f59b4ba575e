"""Which layout weights have, and this model's names for them. The names alone decide."""

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from torch import Tensor

from .huggingface import from_huggingface
from .reading import Checkpoint
from .swin import from_swin, is_timm_swin
from .torchvision_resnet import from_torchvision_resnet

Layout = Literal["mask2former", "huggingface", "torchvision", "swin", "timm", "detectron2"]
# What wrappers put before all names: DistributedDataParallel, Lightning and its like.
_WRAPPERS = ("module.", "model.")
_HEAD = "sem_seg_head."


def detect_layout(names: Iterable[str]) -> Layout:
    """Whose names these are; ``detectron2``: a backbone's, or unknown."""
    names = list(names)
    if any(name.startswith("model.pixel_level_module.") for name in names):
        return "huggingface"
    if any(name.startswith(("backbone.", _HEAD)) for name in _unwrap(names).values()):
        return "mask2former"
    if "layer1.0.conv1.weight" in names:
        return "torchvision"
    if any(re.match(r"layers[._]0\.blocks\.0\.attn\.qkv\.weight$", name) for name in names):
        return "timm" if is_timm_swin(dict.fromkeys(names)) else "swin"
    return "detectron2"


def to_current_names(
    checkpoint: Checkpoint, model_state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weights of a checkpoint of any layout under the names of the model.

    Args:
        model_state: of the model, for the names of its backbone.
    """
    state = checkpoint.state_dict
    layout = detect_layout(state)
    if layout == "mask2former":
        return {_current(new): state[old] for old, new in _unwrap(state).items()}
    if layout == "huggingface":
        return from_huggingface(state)
    if layout == "torchvision":
        return from_torchvision_resnet(state)
    if layout in ("swin", "timm"):
        return from_swin(state)
    # Detectron2's own matching, which knows Caffe2's names; for a backbone only, lest the norm of
    # a classifier end up in a head.
    prefix = "backbone."
    backbone = {
        name.removeprefix(prefix): tensor
        for name, tensor in model_state.items()
        if name.startswith(prefix)
    }
    # Detectron's own files, bare dicts, name no author.
    caffe2 = checkpoint.author == "Caffe2" or "conv1_w" in state
    state = {name: t for name, t in state.items() if not (caffe2 and name.endswith("_momentum"))}
    matched = align_and_update_state_dicts(backbone, state, c2_conversion=caffe2)
    return {prefix + name if name in backbone else name: t for name, t in matched.items()}


def _unwrap(names: Iterable[str]) -> dict[str, str]:
    """Names without the wrapper that all of them have, by the original names."""
    names = {name: name for name in names}
    for wrapper in _WRAPPERS * 2:
        if names and all(name.startswith(wrapper) for name in names.values()):
            names = {old: new.removeprefix(wrapper) for old, new in names.items()}
    return names


def _current(name: str) -> str:
    """Names of the first versions: MaskFormer's head was its pixel decoder; queries had another
    name.
    """
    if name.startswith(_HEAD) and not name.startswith(
        (f"{_HEAD}predictor.", f"{_HEAD}pixel_decoder.")
    ):
        name = f"{_HEAD}pixel_decoder.{name.removeprefix(_HEAD)}"
    return name.replace(f"{_HEAD}predictor.static_query.", f"{_HEAD}predictor.query_feat.")
