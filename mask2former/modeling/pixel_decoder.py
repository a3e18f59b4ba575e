"""The pixel decoder: a deformable encoder over the coarse features and an FPN up to stride 4.

Mask2Former (Cheng et al. 2022), section 3.2.2; Deformable DETR (Zhu et al. 2021), appendix A.4.
Shapes: B pictures, C = ``conv_dim`` channels, S pixels of all encoder levels together; levels run
from coarse to fine, as everything downstream takes them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..memory import LARGE_BLOCK_IN_TRAINING
from .linear import Linear, relu
from .ms_deform_attn import MSDeformAttn
from .position_encoding import sine_position_encoding

FEEDFORWARD_DIM = 1024  # of the encoder; fixed in the paper and in every published checkpoint
TOKENS_IN_CACHE = 1024  # with their hidden channels
TOKENS_RECOMPUTED = 4096  # at a time; their hidden channels take 16 MB, which is kept when freed
NUM_FEATURE_LEVELS = 3  # that the transformer decoder takes turns on


@SEM_SEG_HEADS_REGISTRY.register()
class MSDeformAttnPixelDecoder(nn.Module):
    """Backbone features -> mask features at ``common_stride`` and three coarser memories."""

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        transformer_in_features: Sequence[str],
        transformer_dropout: float,
        transformer_nheads: int,
        transformer_enc_layers: int,
        transformer_num_points: int,
        conv_dim: int,
        mask_dim: int,
        norm: str,
        common_stride: int,
        low_precision: bool = False,
    ) -> None:
        """
        Args:
            low_precision: follow autocast in inference; otherwise float32 always.
            input_shape: channels and stride of each backbone feature, by name.
            transformer_in_features: the features that the deformable encoder sees.
            conv_dim: channels inside; a multiple of 32 and of ``transformer_nheads``.
            mask_dim: channels of the mask features.
            norm: normalisation of the FPN, a name that Detectron2's ``get_norm`` knows.
            common_stride: stride of the mask features.
        """
        super().__init__()
        self.low_precision = low_precision
        fine_to_coarse = sorted(input_shape, key=lambda name: input_shape[name].stride)
        encoded = [name for name in fine_to_coarse if name in set(transformer_in_features)]
        if len(encoded) != len(set(transformer_in_features)) or not encoded:
            raise ValueError(
                "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES "
                f"{list(transformer_in_features)} must be among MODEL.SEM_SEG_HEAD.IN_FEATURES "
                f"{fine_to_coarse}"
            )
        self.encoded_features = encoded[::-1]
        strides = [input_shape[name].stride for name in self.encoded_features]
        num_fpn_levels = int(math.log2(min(strides)) - math.log2(common_stride))
        # Finest features, from coarse to fine: the way up.
        self.fpn_features = fine_to_coarse[:num_fpn_levels][::-1]

        self.input_proj = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(input_shape[name].channels, conv_dim, kernel_size=1),
                nn.GroupNorm(32, conv_dim),
            )
            for name in self.encoded_features
        )
        for projection in self.input_proj:
            nn.init.xavier_uniform_(projection[0].weight)
            nn.init.zeros_(projection[0].bias)
        self.transformer = MSDeformAttnEncoder(
            d_model=conv_dim,
            num_levels=len(encoded),
            num_layers=transformer_enc_layers,
            nheads=transformer_nheads,
            num_points=transformer_num_points,
            dropout=transformer_dropout,
        )
        self.mask_features = Conv2d(conv_dim, mask_dim, kernel_size=1)
        c2_xavier_fill(self.mask_features)
        for name in self.fpn_features:
            # Checkpoints count these from the finest feature on: adapter_1 belongs to res2.
            number = fine_to_coarse.index(name) + 1
            adapter, layer = _fpn_level(input_shape[name].channels, conv_dim, norm)
            self.add_module(f"adapter_{number}", adapter)
            self.add_module(f"layer_{number}", layer)
        self._fpn_numbers = [fine_to_coarse.index(name) + 1 for name in self.fpn_features]

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        head, nheads = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER.NHEADS
        if head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS not in (8, nheads):
            raise ValueError(
                "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS never had an effect: "
                "the encoder has as many heads as the decoder; set MODEL.MASK_FORMER.NHEADS"
            )
        return {
            "input_shape": {name: input_shape[name] for name in head.IN_FEATURES},
            "transformer_in_features": head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES,
            "transformer_dropout": cfg.MODEL.MASK_FORMER.DROPOUT,
            "transformer_nheads": nheads,
            "transformer_enc_layers": head.TRANSFORMER_ENC_LAYERS,
            "transformer_num_points": head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS,
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
            "common_stride": head.COMMON_STRIDE,
            "low_precision": cfg.TEST.PRECISION != "float32",
        }

    def forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """
        Args:
            features: (B, channels, H / stride, W / stride) for each name in ``input_shape``.

        Returns:
            mask features (B, mask_dim, H / common_stride, W / common_stride), and the
            ``NUM_FEATURE_LEVELS`` coarsest memories, coarse to fine, each (B, C, h, w).
        """
        if self.low_precision and not self.training:
            return self._forward(features)
        # As published, float32 under autocast too: sampling locations need the precision.
        device_type = next(iter(features.values())).device.type
        if torch.is_autocast_enabled(device_type):
            features = {name: feature.float() for name, feature in features.items()}
        with torch.autocast(device_type=device_type, enabled=False):
            return self._forward(features)

    def _forward(self, features: Mapping[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        projected = zip(self.encoded_features, self.input_proj, strict=True)
        pyramid = self.transformer([project(features[name]) for name, project in projected])
        for name, number in zip(self.fpn_features, self._fpn_numbers, strict=True):
            lateral = getattr(self, f"adapter_{number}")(features[name])
            above = F.interpolate(
                pyramid[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False
            )
            above += lateral  # in place: no gradient needs the values before
            del lateral
            pyramid.append(getattr(self, f"layer_{number}")(above))
        return self.mask_features(pyramid[-1]), pyramid[:NUM_FEATURE_LEVELS]


def _fpn_level(in_channels: int, conv_dim: int, norm: str) -> tuple[Conv2d, Conv2d]:
    """The lateral 1x1 and the output 3x3 convolution of one FPN level."""
    bias = norm == ""
    adapter = Conv2d(in_channels, conv_dim, 1, bias=bias, norm=get_norm(norm, conv_dim))
    layer = Conv2d(
        conv_dim,
        conv_dim,
        3,
        padding=1,
        bias=bias,
        norm=get_norm(norm, conv_dim),
        activation=F.relu_,
    )
    c2_xavier_fill(adapter)
    c2_xavier_fill(layer)
    return adapter, layer


class MSDeformAttnEncoder(nn.Module):
    """Deformable self-attention over all pixels of all levels."""

    def __init__(
        self,
        *,
        d_model: int,
        num_levels: int,
        num_layers: int,
        nheads: int,
        num_points: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.empty(num_levels, d_model).normal_())
        # The wrapping module only keeps the published names (encoder.layers.N).
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(
            MSDeformAttnEncoderLayer(
                d_model=d_model,
                num_levels=num_levels,
                nheads=nheads,
                num_points=num_points,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )

    def forward(self, sources: Sequence[Tensor]) -> list[Tensor]:
        """Encode ``sources``, (B, C, h, w) each, into maps of the same shapes."""
        shapes = [(source.shape[-2], source.shape[-1]) for source in sources]
        channels, device = sources[0].shape[1], sources[0].device
        position = torch.cat(
            [
                sine_position_encoding(h, w, channels, device=device).flatten(1).t() + embedding
                for (h, w), embedding in zip(shapes, self.level_embed, strict=True)
            ]
        )  # (S, C)
        reference_points = torch.cat([pixel_centres(h, w, device=device) for h, w in shapes])
        output = torch.cat([source.flatten(2) for source in sources], dim=2).transpose(1, 2)
        for layer in self.encoder.layers:
            output = layer(output, position, reference_points, shapes)  # (B, S, C)
        levels = output.split([h * w for h, w in shapes], dim=1)
        return [
            level.unflatten(1, shape).permute(0, 3, 1, 2)
            for level, shape in zip(levels, shapes, strict=True)
        ]


class MSDeformAttnEncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, each with residual and post-norm."""

    def __init__(
        self, *, d_model: int, num_levels: int, nheads: int, num_points: int, dropout: float
    ) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(
            d_model=d_model, n_levels=num_levels, n_heads=nheads, n_points=num_points
        )
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = Linear(d_model, FEEDFORWARD_DIM)
        self.linear2 = Linear(FEEDFORWARD_DIM, d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self,
        source: Tensor,
        position: Tensor,
        reference_points: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """source: (B, S, C); position: (S, C); reference_points: (S, 2). Returns (B, S, C)."""
        attended = self.self_attn(source + position, reference_points, source, spatial_shapes)
        return by_tokens(self.after_attention, source, attended)

    def after_attention(self, source: Tensor, attended: Tensor) -> Tensor:
        """What every token goes through by itself; (B, n, C) each."""
        source = self.norm1(source + self.dropout(attended))
        tokens = source.flatten(0, 1)
        if _recompute_hidden(tokens):
            chunks = tokens.split(TOKENS_RECOMPUTED)
            transformed = torch.cat(
                [checkpoint(self.feed_forward, chunk, use_reentrant=False) for chunk in chunks]
            )
        else:
            transformed = self.feed_forward(tokens)
        return self.norm2(source + self.dropout(transformed.view_as(source)))

    def feed_forward(self, tokens: Tensor) -> Tensor:
        """(n, C) -> (n, C)."""
        return self.linear2(self.dropout(relu(self.linear1(tokens))))


def _recompute_hidden(tokens: Tensor) -> bool:
    """Whether backward computes the hidden channels again: an eighth less memory in training.

    On Linux, blocks from ``LARGE_BLOCK_IN_TRAINING`` on go back to the system, which clears them
    whenever they are taken: to compute the channels again takes no longer. Elsewhere it does.
    """
    if not torch.is_grad_enabled() or tokens.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    size = tokens.shape[0] * FEEDFORWARD_DIM * tokens.element_size()
    return size >= LARGE_BLOCK_IN_TRAINING


def by_tokens(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``function`` of (B, S, ...) tensors, as many tokens at a time as stay in a CPU's cache."""
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()  # sizes are not looked at
    at_once = recorded or torch.is_grad_enabled() or inputs[0].device.type != "cpu"
    if at_once or inputs[0].shape[1] <= TOKENS_IN_CACHE:
        return function(*inputs)
    joined = None
    for start in range(0, inputs[0].shape[1], TOKENS_IN_CACHE):
        part = slice(start, start + TOKENS_IN_CACHE)
        result = function(*(x[:, part] for x in inputs))
        if joined is None:  # a list of the results would leave holes between them in the heap
            joined = result.new_empty(*inputs[0].shape[:2], *result.shape[2:])
        joined[:, part] = result
    return joined


def pixel_centres(height: int, width: int, *, device: torch.device) -> Tensor:
    """(height * width, 2): x and y of the pixel centres, in [0, 1] of the picture, row by row."""
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    return torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).flatten(0, 1)
