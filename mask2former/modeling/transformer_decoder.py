"""The transformer decoder with masked attention (Mask2Former, section 3.2).

Shapes: B pictures, Q queries, C = ``hidden_dim`` channels, M heads, K classes, S pixels of one
memory; a mask map is (H, W), at the stride of the mask features.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d
from detectron2.utils.registry import Registry
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .linear import Linear, batched_product, linear, relu
from .position_encoding import sine_position_encoding

TRANSFORMER_DECODER_REGISTRY = Registry("TRANSFORMER_MODULE")
TRANSFORMER_DECODER_REGISTRY.__doc__ = """
Transformer decoders, called as ``decoder(cfg, in_channels, mask_classification=True)`` and then as
``decoder(memories, mask_features)``; see :class:`MultiScaleMaskedTransformerDecoder`.
"""


@TRANSFORMER_DECODER_REGISTRY.register()
class MultiScaleMaskedTransformerDecoder(nn.Module):
    """N queries look at the memories in turn, each inside the mask it predicts so far."""

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        hidden_dim: int,
        num_queries: int,
        nheads: int,
        dim_feedforward: int,
        dec_layers: int,
        num_feature_levels: int,
        pre_norm: bool,
        mask_dim: int,
        enforce_input_project: bool,
    ) -> None:
        """
        Args:
            in_channels: channels of each memory.
            num_classes: K, without the "no object" class.
            dec_layers: number of layers (each cross-attention, self-attention, feed-forward).
            num_feature_levels: number of memories; layer i attends to memory i modulo this.
            pre_norm: normalise before each sub-layer instead of after it.
            mask_dim: channels of the mask features.
        """
        super().__init__()
        self.num_heads = nheads
        self.num_feature_levels = num_feature_levels
        shared = {"d_model": hidden_dim, "pre_norm": pre_norm}
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(nheads=nheads, **shared) for _ in range(dec_layers)
        )
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(nheads=nheads, **shared) for _ in range(dec_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FFNLayer(dim_feedforward=dim_feedforward, **shared) for _ in range(dec_layers)
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(num_feature_levels, hidden_dim)
        self.input_proj = nn.ModuleList()
        for _ in range(num_feature_levels):
            if in_channels == hidden_dim and not enforce_input_project:
                self.input_proj.append(nn.Identity())
            else:
                self.input_proj.append(Conv2d(in_channels, hidden_dim, kernel_size=1))
                c2_xavier_fill(self.input_proj[-1])
        self.class_embed = Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, num_layers=3)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, in_channels: int, mask_classification: bool = True
    ) -> dict[str, Any]:
        mask_former = cfg.MODEL.MASK_FORMER
        if not mask_classification:
            raise ValueError("MultiScaleMaskedTransformerDecoder always classifies its masks")
        if mask_former.ENC_LAYERS:
            raise ValueError(
                f"MODEL.MASK_FORMER.ENC_LAYERS is {mask_former.ENC_LAYERS}, but this decoder has "
                "no encoder; set it to 0 (MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS counts the "
                "layers of the pixel decoder's)"
            )
        if mask_former.DEC_LAYERS < 2:
            raise ValueError(
                f"MODEL.MASK_FORMER.DEC_LAYERS is {mask_former.DEC_LAYERS}; it counts the "
                "predictions, one more than the decoder's layers, and must be at least 2"
            )
        return {
            "in_channels": in_channels,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "hidden_dim": mask_former.HIDDEN_DIM,
            "num_queries": mask_former.NUM_OBJECT_QUERIES,
            "nheads": mask_former.NHEADS,
            "dim_feedforward": mask_former.DIM_FEEDFORWARD,
            "dec_layers": mask_former.DEC_LAYERS - 1,
            "num_feature_levels": 3,
            "pre_norm": mask_former.PRE_NORM,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "enforce_input_project": mask_former.ENFORCE_INPUT_PROJ,
        }

    def forward(self, memories: Sequence[Tensor], mask_features: Tensor) -> dict[str, Any]:
        """
        Args:
            memories: ``num_feature_levels`` maps (B, in_channels, h, w), coarse to fine.
            mask_features: (B, mask_dim, H, W).

        Returns:
            In inference ``pred_logits`` (B, Q, K + 1), class logits, the last class is "no
            object", and ``pred_masks`` (B, Q, H, W), mask logits. In training, of all L =
            ``dec_layers`` + 1 predictions, ``pred_logits`` (L, B, Q, K + 1) and
            ``mask_embeddings`` (L, B, Q, mask_dim), and the ``mask_features`` as they came: their
            products are the mask logits, of which the losses need few.
        """
        if len(memories) != self.num_feature_levels:
            raise ValueError(f"expected {self.num_feature_levels} memories, got {len(memories)}")
        values, keys, level_mask_features = [], [], []
        for level, memory in enumerate(memories):
            size = memory.shape[-2:]
            source = self.input_proj[level](memory) + self.level_embed.weight[level, :, None, None]
            position = sine_position_encoding(*size, source.shape[1], device=source.device)
            values.append(source.flatten(2).transpose(1, 2))  # (B, S, C)
            keys.append((source + position).flatten(2).transpose(1, 2))
            # Bilinear resizing commutes with the product of queries and mask features: resizing
            # the features once per level spares resizing Q mask logits in every layer.
            level_mask_features.append(
                F.interpolate(
                    mask_features.detach(), size=size, mode="bilinear", align_corners=False
                ).flatten(2)
            )
        batch = mask_features.shape[0]
        queries = self.query_feat.weight.expand(batch, -1, -1)  # (B, Q, C)
        query_position = self.query_embed.weight

        decoded = []  # queries before each layer and after the last
        for i, (cross_attention, self_attention, ffn) in enumerate(
            zip(
                self.transformer_cross_attention_layers,
                self.transformer_self_attention_layers,
                self.transformer_ffn_layers,
                strict=True,
            )
        ):
            level = i % self.num_feature_levels
            decoded.append(self.decoder_norm(queries))
            # Not under no_grad: autocast may keep the weights it casts there, without gradients.
            mask_embedding = self.mask_embed(decoded[-1]).detach()
            attend = attention_mask(mask_embedding, level_mask_features[level])
            queries = cross_attention(queries, keys[level], values[level], attend, query_position)
            queries = self_attention(queries, query_position)
            queries = ffn(queries)
        decoded.append(self.decoder_norm(queries))
        if self.training:
            predictions = torch.stack(decoded)  # (L, B, Q, C)
            return {
                "pred_logits": self.class_embed(predictions),
                "mask_embeddings": self.mask_embed(predictions),
                "mask_features": mask_features,
            }
        mask_embedding = self.mask_embed(decoded[-1])
        mask_logits = mask_product(mask_embedding, mask_features.flatten(2))
        return {
            "pred_logits": self.class_embed(decoded[-1]),
            "pred_masks": mask_logits.unflatten(2, mask_features.shape[2:]),
        }


def mask_product(mask_embedding: Tensor, mask_features: Tensor) -> Tensor:
    """(B, Q, mask_dim) and (B, mask_dim, S) -> (B, Q, S) mask logits.

    An embedding of one channel more ends in a constant, see :func:`.fusion.fold_mask_features`.
    """
    mask_dim = mask_features.shape[1]
    logits = batched_product(mask_embedding[..., :mask_dim], mask_features)
    if mask_embedding.shape[-1] > mask_dim:
        logits += mask_embedding[..., mask_dim:]
    return logits


def attention_mask(mask_embedding: Tensor, level_mask_features: Tensor) -> Tensor:
    """Where each query may look: inside its own mask (equation 3), or anywhere if that is empty.

    Args:
        mask_embedding: as of :func:`mask_product`.
        level_mask_features: (B, mask_dim, S), mask features resized to the memory.

    Returns:
        (B, 1, Q, S) bool, true where the query attends; broadcasts over the heads.
    """
    attend = mask_product(mask_embedding, level_mask_features) >= 0  # sigmoid(x) >= 0.5
    return (attend | ~attend.any(dim=-1, keepdim=True)).unsqueeze(1)


class MultiheadAttention(nn.Module):
    """Multi-head attention with the parameters of :class:`torch.nn.MultiheadAttention`.

    Unlike torch's module it keeps a boolean mask boolean, and one for all heads.
    """

    def __init__(self, d_model: int, nheads: int) -> None:
        super().__init__()
        self.nheads = nheads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = Linear(d_model, d_model)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attend: Tensor | None = None
    ) -> Tensor:
        """query: (B, Q, C); key, value: (B, S, C); attend: (B, 1, Q, S) bool. -> (B, Q, C)."""
        projected = [
            linear(x, weight, bias).unflatten(-1, (self.nheads, -1)).transpose(1, 2)
            for x, weight, bias in zip(
                (query, key, value),
                self.in_proj_weight.chunk(3),
                self.in_proj_bias.chunk(3),
                strict=True,
            )
        ]  # (B, M, Q or S, C / M) each
        with _backends(query):
            attended = F.scaled_dot_product_attention(*projected, attn_mask=attend)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


def _backends(query: Tensor) -> AbstractContextManager:
    """Which of torch's kernels may compute attention.

    On GPUs, that for float32 and a mask keeps one multiprocessor busy for a head and 64 queries:
    most of them have nothing to do. Products and a softmax are faster, for the price of the
    weights' memory, which would stay for the gradients.
    """
    if (
        query.device.type != "cuda"
        or query.dtype != torch.float32
        or torch.is_autocast_enabled("cuda")
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
    ):
        return nullcontext()
    return sdpa_kernel(SDPBackend.MATH)


class ResidualLayer(nn.Module):
    """A sub-layer's residual connection and normalisation, after or before it."""

    def __init__(self, d_model: int, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.norm = nn.LayerNorm(d_model)

    def residual(self, queries: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre_norm:
            return queries + sublayer(self.norm(queries))
        return self.norm(queries + sublayer(queries))


class CrossAttentionLayer(ResidualLayer):
    """Masked attention of the queries to one memory."""

    def __init__(self, *, d_model: int, nheads: int, pre_norm: bool) -> None:
        super().__init__(d_model, pre_norm)
        self.multihead_attn = MultiheadAttention(d_model, nheads)

    def forward(
        self, queries: Tensor, key: Tensor, value: Tensor, attend: Tensor, query_position: Tensor
    ) -> Tensor:
        return self.residual(
            queries, lambda q: self.multihead_attn(q + query_position, key, value, attend)
        )


class SelfAttentionLayer(ResidualLayer):
    """Attention of the queries to each other."""

    def __init__(self, *, d_model: int, nheads: int, pre_norm: bool) -> None:
        super().__init__(d_model, pre_norm)
        self.self_attn = MultiheadAttention(d_model, nheads)

    def forward(self, queries: Tensor, query_position: Tensor) -> Tensor:
        def attend(q: Tensor) -> Tensor:
            positioned = q + query_position
            return self.self_attn(positioned, positioned, q)

        return self.residual(queries, attend)


class FFNLayer(ResidualLayer):
    """The feed-forward network."""

    def __init__(self, *, d_model: int, dim_feedforward: int, pre_norm: bool) -> None:
        super().__init__(d_model, pre_norm)
        self.linear1 = Linear(d_model, dim_feedforward)
        self.linear2 = Linear(dim_feedforward, d_model)
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, queries: Tensor) -> Tensor:
        return self.residual(queries, lambda q: self.linear2(relu(self.linear1(q))))


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, *, num_layers: int) -> None:
        super().__init__()
        dims = [in_dim] + [hidden_dim] * (num_layers - 1) + [out_dim]
        self.layers = nn.ModuleList(Linear(dims[i], dims[i + 1]) for i in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = relu(layer(x))
        return self.layers[-1](x)
