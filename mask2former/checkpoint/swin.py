"""Swin classification weights, official or timm's -> names of ``D2SwinTransformer``.

Official names are this backbone's own. timm (from 0.9 on) moved the patch merging from the end of
a stage to the start of the next. What both lack are ``norm0`` to ``norm3``, the norms of the
features: a detector trains them from scratch. What they have in excess are the classifier, its norm
and the masks of the shifted windows, which follow from the window's size.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import UserError
from ..modeling.backbone.swin import relative_position_index

_DROPPED = re.compile(r"head\.|norm\.|layers\.\d+\.blocks\.\d+\.attn_mask$")
_KNOWN = re.compile(
    r"patch_embed\.(proj|norm)\.|absolute_pos_embed$|layers\.\d+\.downsample\.(reduction|norm)\."
    r"|layers\.\d+\.blocks\.\d+\.(norm1|norm2|mlp\.fc1|mlp\.fc2)\."
    r"|layers\.\d+\.blocks\.\d+\.attn\.(qkv\.|proj\.|relative_position_(bias_table|index)$)"
)


def from_swin(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official or timm's Swin weights (which of the two, the names tell) as ``backbone.`` weights.

    Raises:
        UserError: a name is none of Swin's, such as those that only Swin v2 has.
    """
    # timm's features_only wrapper writes layers_0 for layers.0.
    named = {re.sub(r"^layers_(\d+)", r"layers.\1", name): t for name, t in state_dict.items()}
    moved = is_timm_swin(named)
    converted = {}
    for name, tensor in named.items():
        if _DROPPED.match(name):
            continue
        if not _KNOWN.match(name):
            raise UserError(
                f"{name} is no parameter of a Swin Transformer (v1), the only one that "
                "D2SwinTransformer computes"
            )
        if moved and (match := re.match(r"layers\.(\d+)\.downsample\.", name)):
            name = f"layers.{int(match[1]) - 1}.downsample.{name[match.end() :]}"
        if name == "absolute_pos_embed":
            tensor = _position_map(tensor)
        converted[f"backbone.{name}"] = tensor
    for name in [n for n in converted if n.endswith(".relative_position_bias_table")]:
        index = name.replace("_bias_table", "_index")
        if index not in converted:  # timm does not save it
            converted[index] = relative_position_index(window_size(converted[name]))
    return converted


def is_timm_swin(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the patch merging is where timm has it: the first stage then has none."""
    return not any(re.match(r"layers[._]0\.downsample\.", name) for name in state_dict)


def window_size(relative_position_bias_table: Tensor) -> int:
    """The side of the windows whose bias table, ((2 w - 1)^2, heads), this is."""
    return (math.isqrt(relative_position_bias_table.shape[0]) + 1) // 2


def swin_architecture(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """``embed_dim``, ``depths``, ``num_heads`` and ``window_size`` of converted weights."""
    pattern = re.compile(r".*layers\.(\d+)\.blocks\.(\d+)\.attn\.relative_position_bias_table$")
    tables = {
        (int(match[1]), int(match[2])): tensor
        for name, tensor in state_dict.items()
        if (match := pattern.match(name))
    }
    stages = sorted({stage for stage, _ in tables})
    return {
        "embed_dim": state_dict["backbone.patch_embed.proj.weight"].shape[0],
        "depths": [sum(s == stage for s, _ in tables) for stage in stages],
        "num_heads": [tables[stage, 0].shape[1] for stage in stages],
        "window_size": window_size(tables[0, 0]),
    }


def _position_map(embedding: Tensor) -> Tensor:
    """(1, side * side, C), as classifiers store it -> (1, C, side, side)."""
    side = math.isqrt(embedding.shape[1])
    return embedding.transpose(1, 2).unflatten(2, (side, side)).contiguous()
