"""Swin Transformer (Liu et al., ICCV 2021) as a backbone for pictures of any size.

Parameter names are those of the official checkpoints. Shapes: B pictures; (H, W) a stage's map;
C channels; w the window size, N = w * w; W windows of all pictures together; M heads, d = C / M.
Maps are channels-last, (B, H, W, C), throughout.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from ..linear import Linear

# Added to the logits of pairs that the cyclic shift, not the picture, made neighbours: the value
# of the official code, large enough for their weight to vanish in float32.
NOT_NEIGHBOURS = -100.0


@BACKBONE_REGISTRY.register()
class D2SwinTransformer(Backbone):
    """Pictures -> features ``res2`` to ``res5`` with strides 4 to 32 (for patches of 4 pixels)."""

    @configurable
    def __init__(
        self,
        *,
        pretrain_img_size: int = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.3,
        ape: bool = False,
        patch_norm: bool = True,
        out_features: Collection[str] = ("res2", "res3", "res4", "res5"),
        freeze_at: int = 0,
        use_checkpoint: bool = False,
    ) -> None:
        """
        Args:
            pretrain_img_size: side of the pictures of the classification training, in pixels;
                it decides the shape of the absolute position embedding.
            depths, num_heads: blocks, and heads of each block, of every stage.
            qk_scale: factor of the attention logits; None: ``d ** -0.5``.
            drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
            ape: add an absolute position embedding to the patches.
            freeze_at: as Detectron2's: 1 freezes the patch embedding, 2 also the stage of res2, ...
            use_checkpoint: compute activations a second time in the backward pass, to save memory.

        Raises:
            ValueError: stages, heads or names of features do not fit together.
        """
        super().__init__()
        names = [f"res{i + 2}" for i in range(len(depths))]
        if len(num_heads) != len(depths):
            raise ValueError(
                f"MODEL.SWIN.NUM_HEADS {list(num_heads)} and MODEL.SWIN.DEPTHS {list(depths)} must "
                "name the same stages"
            )
        if unknown := set(out_features) - set(names):
            raise ValueError(
                f"MODEL.SWIN.OUT_FEATURES {sorted(unknown)} do not exist; there are {names}"
            )
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim, norm=patch_norm)
        self.absolute_pos_embed = None
        if ape:
            side = pretrain_img_size // patch_size
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, embed_dim, side, side))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.pos_drop = nn.Dropout(drop_rate)

        last_block = max(sum(depths) - 1, 1)
        drop_path = [drop_path_rate * block / last_block for block in range(sum(depths))]
        self.layers = nn.ModuleList()
        for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            stage = SwinStage(
                dim=embed_dim * 2**i,
                num_heads=heads,
                window_size=window_size,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                drop=drop_rate,
                attn_drop=attn_drop_rate,
                drop_path=drop_path[sum(depths[:i]) :][:depth],
                downsample=i + 1 < len(depths),
                use_checkpoint=use_checkpoint,
            )
            self.layers.append(stage)
        for i, name in enumerate(names):
            if name in out_features:
                self.add_module(f"norm{i}", nn.LayerNorm(embed_dim * 2**i))
        self.apply(_init_weights)

        self._out_features = [name for name in names if name in out_features]
        self._out_feature_channels = {n: embed_dim * 2**i for i, n in enumerate(names)}
        self._out_feature_strides = {n: patch_size * 2**i for i, n in enumerate(names)}
        self.freeze_at = freeze_at
        for module in self._frozen():
            module.requires_grad_(False)
        if freeze_at >= 2 and ape:
            self.absolute_pos_embed.requires_grad_(False)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        swin = cfg.MODEL.SWIN
        return {
            "pretrain_img_size": swin.PRETRAIN_IMG_SIZE,
            "patch_size": swin.PATCH_SIZE,
            "in_chans": input_shape.channels,
            "embed_dim": swin.EMBED_DIM,
            "depths": swin.DEPTHS,
            "num_heads": swin.NUM_HEADS,
            "window_size": swin.WINDOW_SIZE,
            "mlp_ratio": swin.MLP_RATIO,
            "qkv_bias": swin.QKV_BIAS,
            "qk_scale": swin.QK_SCALE,
            "drop_rate": swin.DROP_RATE,
            "attn_drop_rate": swin.ATTN_DROP_RATE,
            "drop_path_rate": swin.DROP_PATH_RATE,
            "ape": swin.APE,
            "patch_norm": swin.PATCH_NORM,
            "out_features": swin.OUT_FEATURES,
            "freeze_at": swin.FREEZE_AT,
            "use_checkpoint": swin.USE_CHECKPOINT,
        }

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, in_chans, H, W) -> (B, C, ceil(H / stride), ceil(W / stride)) by name."""
        if x.dim() != 4:
            raise ValueError(f"expected pictures of shape (B, C, H, W), got {tuple(x.shape)}")
        x = self.patch_embed(x)
        if self.absolute_pos_embed is not None:
            position = F.interpolate(self.absolute_pos_embed, size=x.shape[1:3], mode="bicubic")
            x = x + position.permute(0, 2, 3, 1)
        x = self.pos_drop(x)
        features = {}
        for i, stage in enumerate(self.layers):
            out, x = stage(x)
            name = f"res{i + 2}"
            if name in self._out_features:
                features[name] = getattr(self, f"norm{i}")(out).permute(0, 3, 1, 2).contiguous()
        return features

    def train(self, mode: bool = True) -> "D2SwinTransformer":
        super().train(mode)
        for module in self._frozen():
            module.eval()  # no dropout, no stochastic depth
        return self

    def _frozen(self) -> list[nn.Module]:
        if self.freeze_at < 1:
            return []
        return [self.patch_embed, *self.layers[: self.freeze_at - 1]]


class PatchEmbed(nn.Module):
    """Non-overlapping patches -> vectors; the picture is padded to whole patches."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int, *, norm: bool) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dim) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, H / patch_size, W / patch_size, C)."""
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % self.patch_size, 0, -height % self.patch_size))
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class SwinStage(nn.Module):
    """Blocks at one resolution, every other one with shifted windows, and the way to the next."""

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        window_size: int,
        drop_path: Sequence[float],
        downsample: bool,
        use_checkpoint: bool,
        **block: Any,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.use_checkpoint = use_checkpoint
        self.blocks = nn.ModuleList(
            SwinTransformerBlock(
                dim=dim,
                num_heads=num_heads,
                window_size=window_size,
                shift_size=0 if i % 2 == 0 else window_size // 2,
                drop_path=rate,
                **block,
            )
            for i, rate in enumerate(drop_path)
        )
        self.downsample = PatchMerging(dim) if downsample else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, W, C) -> the same shape, and (B, H / 2, W / 2, 2 C) for the next stage."""
        mask = shift_mask(x.shape[1:3], self.window_size, x.device)
        for block in self.blocks:
            if self.use_checkpoint and torch.is_grad_enabled():
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        return x, x if self.downsample is None else self.downsample(x)


class SwinTransformerBlock(nn.Module):
    """Attention within windows and an MLP, each with norm before and a residual around."""

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        window_size: int,
        shift_size: int,
        mlp_ratio: float,
        qkv_bias: bool,
        qk_scale: float | None,
        drop: float,
        attn_drop: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift_size = shift_size
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(
            dim=dim,
            num_heads=num_heads,
            window_size=window_size,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            attn_drop=attn_drop,
            proj_drop=drop,
        )
        self.drop_path = StochasticDepth(drop_path, mode="row")
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: (B, H, W, C); mask: see :func:`shift_mask`, used if this block's windows shift."""
        height, width = x.shape[1:3]
        padded = (next_multiple(height, self.window_size), next_multiple(width, self.window_size))
        windows = self.norm1(x)
        # As in the official code, padding comes after the norm and takes part in the attention.
        windows = F.pad(windows, (0, 0, 0, padded[1] - width, 0, padded[0] - height))
        if self.shift_size:
            windows = windows.roll((-self.shift_size, -self.shift_size), dims=(1, 2))
        windows = window_partition(windows, self.window_size)
        windows = self.attn(windows, mask if self.shift_size else None)
        attended = window_reverse(windows, self.window_size, padded)
        if self.shift_size:
            attended = attended.roll((self.shift_size, self.shift_size), dims=(1, 2))
        x = x + self.drop_path(attended[:, :height, :width])
        return x + self.drop_path(self.mlp(self.norm2(x)))


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a bias for each relative position."""

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        window_size: int,
        qkv_bias: bool,
        qk_scale: float | None,
        attn_drop: float,
        proj_drop: float,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = qk_scale
        self.attn_drop = attn_drop
        num_positions = (2 * window_size - 1) ** 2
        self.relative_position_bias_table = nn.Parameter(torch.zeros(num_positions, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        # Checkpoints hold it, though it follows from the window size.
        self.register_buffer("relative_position_index", relative_position_index(window_size))
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """windows: (W, N, C); mask: (windows of one picture, N, N) or None. -> (W, N, C)."""
        qkv = self.qkv(windows).unflatten(-1, (3, self.num_heads, -1))  # (W, N, 3, M, d)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (W, M, N, d) each
        bias = self.relative_position_bias_table[self.relative_position_index]  # (N, N, M)
        # (1, M, N, N), contiguous, as the fused kernels of GPUs want it.
        bias = bias.permute(2, 0, 1)[None].contiguous().to(query.dtype)
        if mask is not None:
            bias = bias + mask[:, None].to(query.dtype)
            bias = bias.repeat(windows.shape[0] // mask.shape[0], 1, 1, 1)
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=bias,
            dropout_p=self.attn_drop if self.training else 0.0,
            scale=self.scale,
        )
        return self.proj_drop(self.proj(attended.transpose(1, 2).flatten(2)))


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, hidden_dim: int, drop: float) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


class PatchMerging(nn.Module):
    """Each 2x2 neighbourhood becomes one vector of twice the channels; odd sizes are padded."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2 C)."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, H / 2, 2, W / 2, 2, C)
        # The order of the four in checkpoints: down first, then right.
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)  # (B, H / 2, W / 2, 4 C)
        return self.reduction(self.norm(x))


def next_multiple(length: int, size: int) -> int:
    """The least multiple of ``size`` that is no less than ``length``."""
    return (length + size - 1) // size * size  # torch.export sees that this is a multiple


def window_partition(x: Tensor, size: int) -> Tensor:
    """(B, H, W, C) with sides that are multiples of ``size`` -> (windows, size * size, C)."""
    x = x.unflatten(2, (-1, size)).unflatten(1, (-1, size))  # (B, rows, w, columns, w, C)
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def window_reverse(windows: Tensor, size: int, shape: tuple[int, int]) -> Tensor:
    """(windows, size * size, C) -> (B, H, W, C) with (H, W) = ``shape``."""
    rows, columns = shape[0] // size, shape[1] // size
    x = windows.unflatten(1, (size, size)).unflatten(0, (-1, rows, columns))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def shift_mask(shape: Sequence[int], size: int, device: torch.device) -> Tensor:
    """Attention bias of shifted windows: 0 between pixels that were neighbours before the shift.

    Args:
        shape: (H, W) of the map before padding.

    Returns:
        (windows, N, N) float32 of 0 and ``NOT_NEIGHBOURS``.
    """
    regions = []
    for length in shape:
        length = next_multiple(length, size)
        position = torch.arange(length, device=device)
        # The last window's pixels, and those of it that the shift brought from the other side.
        last, wrapped = position >= length - size, position >= length - size // 2
        regions.append(last.long() + (wrapped & (size > 1)))
    region = 3 * regions[0][:, None] + regions[1]  # (H, W)
    region = window_partition(region[None, :, :, None], size)  # (windows, N, 1)
    return (region != region.transpose(1, 2)) * NOT_NEIGHBOURS


def relative_position_index(size: int) -> Tensor:
    """(N, N) int64: the row of the bias table for each pair of a window's pixels."""
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    row, column = row.flatten(), column.flatten()
    down, right = row[:, None] - row, column[:, None] - column  # (N, N), from -(w-1) to w-1
    return (down + size - 1) * (2 * size - 1) + right + size - 1


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
