"""Weights of transformers' ``Mask2FormerForUniversalSegmentation`` <-> weights of this model.

The names on the Hugging Face side are those of its files, which every version of transformers
reads and writes; the names that version 5 has in memory are understood too. No tensor changes:
some are cut in three (query, key, value) or joined from three, the others are renamed.
:mod:`.huggingface_config` maps the configurations; docs/CONVERSION.md lists where the two
implementations differ beyond names.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import UserError
from ..modeling.backbone.swin import relative_position_index
from .swin import window_size
from .torchvision_resnet import from_torchvision_resnet

# Pairs (ours, theirs) of the beginnings of names; {} stands for the same number in both, what
# follows is the same in both. The first that fits counts.

_BACKBONE = "model.pixel_level_module.encoder"
_PIXEL = "sem_seg_head.pixel_decoder", "model.pixel_level_module.decoder"
_QUERY = "sem_seg_head.predictor", "model.transformer_module"
_SWIN_BLOCK = "backbone.layers.{}.blocks.{}", f"{_BACKBONE}.encoder.layers.{{}}.blocks.{{}}"
_ENCODER_LAYER = f"{_PIXEL[0]}.transformer.encoder.layers.{{}}", f"{_PIXEL[1]}.encoder.layers.{{}}"


def _decoder_layer(kind: str) -> tuple[str, str]:
    return f"{_QUERY[0]}.transformer_{kind}_layers.{{}}", f"{_QUERY[1]}.decoder.layers.{{}}"


def _below(parents: tuple[str, str], names: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(f"{parents[0]}.{ours}", f"{parents[1]}.{theirs}") for ours, theirs in names.items()]


def _convolution(ours: str, theirs: str) -> list[tuple[str, str]]:
    return [(f"{ours}.norm", f"{theirs}.normalization"), (ours, f"{theirs}.convolution")]


_RESNET = _convolution("backbone.stem.conv1", f"{_BACKBONE}.embedder.embedder")
for _i in range(4):
    _block = f"backbone.res{_i + 2}.{{}}", f"{_BACKBONE}.encoder.stages.{_i}.layers.{{}}"
    _RESNET += _convolution(f"{_block[0]}.shortcut", f"{_block[1]}.shortcut")
    for _j in range(3):
        _RESNET += _convolution(f"{_block[0]}.conv{_j + 1}", f"{_block[1]}.layer.{_j}")

_SWIN = [
    ("backbone.patch_embed.proj", f"{_BACKBONE}.embeddings.patch_embeddings.projection"),
    ("backbone.patch_embed.norm", f"{_BACKBONE}.embeddings.norm"),
    ("backbone.layers.{}.downsample", f"{_BACKBONE}.encoder.layers.{{}}.downsample"),
    *[(f"backbone.norm{i}", f"{_BACKBONE}.hidden_states_norms.stage{i + 1}") for i in range(4)],
    *_below(
        _SWIN_BLOCK,
        {
            "norm1": "layernorm_before",
            "norm2": "layernorm_after",
            "attn.relative_position_bias_table": "attention.self.relative_position_bias_table",
            "attn.proj": "attention.output.dense",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
        },
    ),
]

_HEADS = [
    *_below(
        _PIXEL,
        {
            "input_proj": "input_projections",
            "transformer.level_embed": "level_embed",
            "mask_features": "mask_projection",
            "adapter_{}.norm": "adapter_{}.1",
            "adapter_{}": "adapter_{}.0",
            "layer_{}.norm": "layer_{}.1",
            "layer_{}": "layer_{}.0",
        },
    ),
    *_below(
        _ENCODER_LAYER,
        {
            "self_attn": "self_attn",
            "norm1": "self_attn_layer_norm",
            "linear1": "fc1",
            "linear2": "fc2",
            "norm2": "final_layer_norm",
        },
    ),
    *_below(
        _decoder_layer("cross_attention"),
        {"multihead_attn": "cross_attn", "norm": "cross_attn_layer_norm"},
    ),
    *_below(
        _decoder_layer("self_attention"),
        {"self_attn.out_proj": "self_attn.out_proj", "norm": "self_attn_layer_norm"},
    ),
    *_below(
        _decoder_layer("ffn"), {"linear1": "fc1", "linear2": "fc2", "norm": "final_layer_norm"}
    ),
    *_below(
        _QUERY,
        {
            "query_feat": "queries_features",
            "query_embed": "queries_embedder",
            "level_embed": "level_embed",
            "input_proj": "input_projections",
            "decoder_norm": "decoder.layernorm",
            "mask_embed.layers.{}": "decoder.mask_predictor.mask_embedder.{}.0",
        },
    ),
    ("sem_seg_head.predictor.class_embed", "class_predictor"),
    ("criterion.empty_weight", "criterion.empty_weight"),
]

# One tensor here, three there, joined along the first dimension.
_FUSED = [
    (f"{ours}.{fused}", [f"{theirs}.{part}.{kind}" for part in parts])
    for kind in ("weight", "bias")
    for (ours, theirs), fused, parts in (
        (
            _decoder_layer("self_attention"),
            f"self_attn.in_proj_{kind}",
            ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        ),
        (
            _SWIN_BLOCK,
            f"attn.qkv.{kind}",
            ["attention.self.query", "attention.self.key", "attention.self.value"],
        ),
    )
]

# The names that transformers 5 has in memory, where its files have others.
_IN_MEMORY = [
    (r"\.swin\.(encoder|embeddings)\.", r".\1."),
    (r"\.attention\.q_proj\.", ".attention.self.query."),
    (r"\.attention\.k_proj\.", ".attention.self.key."),
    (r"\.attention\.v_proj\.", ".attention.self.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.attention\.relative_position_bias\.", ".attention.self."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
]
# A norm that the backbone never computes, and an index that follows from the window's size.
_THEIRS_DROPPED = re.compile(r".*\.swin\.layernorm\.|.*\.attention\.self\.relative_position_index$")
_OURS_DROPPED = re.compile(r"pixel_(mean|std)$|.*\.attn\.relative_position_index$")


def to_huggingface(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of this model -> weights of ``Mask2FormerForUniversalSegmentation``.

    Batch norms that keep no count of batches (``FrozenBN``) get the count 0.

    Raises:
        UserError: a name is unknown there.
    """
    converted = {}
    for name, tensor in state_dict.items():
        if _OURS_DROPPED.match(name):
            continue
        for ours, theirs in _FUSED:
            if numbers := _match(ours, name):
                parts = zip(theirs, tensor.chunk(3), strict=True)
                converted |= {part.format(*numbers[0]): t.clone() for part, t in parts}
                break
        else:
            converted[_rename(name, _HEADS + _SWIN + _RESNET)] = tensor
    for name in [n for n in converted if n.endswith(".normalization.running_var")]:
        count = name.replace(".running_var", ".num_batches_tracked")
        converted.setdefault(count, torch.tensor(0))
    if (last := f"{_BACKBONE}.hidden_states_norms.stage4.weight") in converted:
        # transformers 5 has one more norm, which no result depends on, and reports it if missing.
        converted[f"{_BACKBONE}.swin.layernorm.weight"] = torch.ones_like(converted[last])
        converted[f"{_BACKBONE}.swin.layernorm.bias"] = torch.zeros_like(converted[last])
    return converted


def from_huggingface(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of ``Mask2FormerForUniversalSegmentation`` -> weights of this model.

    Swin and ResNet backbones, the latter also through timm. A count of 0 batches is left out:
    :func:`to_huggingface` made it, or it says nothing.

    Raises:
        UserError: a name is unknown here, or a query, key or value lacks the other two.
    """
    theirs_to_ours = [(theirs, ours) for ours, theirs in _HEADS + _SWIN + _RESNET]
    remaining, timm = {}, {}
    for name, tensor in state_dict.items():
        if name.startswith(f"{_BACKBONE}._backbone."):
            timm[name.removeprefix(f"{_BACKBONE}._backbone.")] = tensor
            continue
        name = name_in_files(name)
        unused_count = name.endswith(".num_batches_tracked") and not tensor
        if not (unused_count or _THEIRS_DROPPED.match(name)):
            remaining[name] = tensor
    converted = from_torchvision_resnet(timm)
    for ours, theirs in _FUSED:
        converted |= _join(remaining, ours, theirs)
    for name, tensor in remaining.items():
        converted[_rename(name, theirs_to_ours)] = tensor
    for name in [n for n in converted if n.endswith(".relative_position_bias_table")]:
        index = relative_position_index(window_size(converted[name]))
        converted[name.replace("_bias_table", "_index")] = index
    return converted


def name_in_files(name: str) -> str:
    """What files call the parameter that today's transformers call ``name`` in memory."""
    if name.startswith(f"{_BACKBONE}."):
        for pattern, replacement in _IN_MEMORY:
            name = re.sub(pattern, replacement, name)
    return name


def _match(template: str, name: str) -> tuple[tuple[str, ...], str] | None:
    """The numbers at the {} of ``template`` and what follows it in ``name``, if they fit."""
    pattern = re.escape(template).replace(r"\{\}", r"(\d+)") + r"(|\..+)"
    if match := re.fullmatch(pattern, name):
        return match.groups()[:-1], match[match.re.groups]
    return None


def _rename(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for old, new in rules:
        if found := _match(old, name):
            numbers, rest = found
            return new.format(*numbers) + rest
    raise UserError(
        f"{name} is no parameter of Mask2Former with a ResNet or Swin backbone; give weights in "
        "the published layout or in that of transformers' Mask2FormerForUniversalSegmentation"
    )


def _join(remaining: dict[str, Tensor], ours: str, theirs: Sequence[str]) -> dict[str, Tensor]:
    """Take every query, key and value that ``theirs`` names out of ``remaining``, joined."""
    joined = {}
    for name in list(remaining):
        if found := _match(theirs[0], name):
            names = [part.format(*found[0]) for part in theirs]
            if missing := [part for part in names if part not in remaining]:
                raise UserError(f"{missing[0]} is missing, though {name} is there")
            joined[ours.format(*found[0])] = torch.cat([remaining.pop(part) for part in names])
    return joined
