"""The optimizer: parameter groups and gradient clipping of the published training recipe."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import maybe_add_gradient_clipping, reduce_param_groups
from torch import nn

NORM_LAYERS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW or SGD over :func:`parameter_groups`, with the gradient clipping of the config.

    ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE: full_model`` bounds the norm of all gradients together;
    ``norm`` and ``value`` are Detectron2's.
    """
    solver = cfg.SOLVER
    groups = parameter_groups(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_embed=solver.WEIGHT_DECAY_EMBED,
        backbone_multiplier=solver.BACKBONE_MULTIPLIER,
    )
    if solver.OPTIMIZER == "ADAMW":
        # On the CPU the fused step saves a tenth of a small model's iteration. On a GPU it would
        # take over the unscaling of AMP's gradients, and clipping would see them scaled.
        on_cpu = all(p.device.type == "cpu" for group in groups for p in group["params"])
        optimizer = torch.optim.AdamW(groups, lr=solver.BASE_LR, fused=on_cpu or None)
    elif solver.OPTIMIZER == "SGD":
        optimizer = torch.optim.SGD(groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM)
    else:
        raise ValueError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER}; it must be ADAMW or SGD")

    clip = solver.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE == "full_model":
        if clip.CLIP_VALUE <= 0:  # as published: off
            return optimizer
        # A hook sees the gradients that AMP's scaler has unscaled already.
        optimizer.register_step_pre_hook(_FullModelClipping(clip.CLIP_VALUE, clip.NORM_TYPE))
        return optimizer
    return maybe_add_gradient_clipping(cfg, optimizer)


class _FullModelClipping:
    def __init__(self, max_norm: float, norm_type: float) -> None:
        self.max_norm = max_norm
        self.norm_type = norm_type

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.max_norm, self.norm_type)


def parameter_groups(
    model: nn.Module,
    *,
    base_lr: float,
    weight_decay: float,
    weight_decay_norm: float,
    weight_decay_embed: float,
    backbone_multiplier: float,
) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate and weight decay.

    The backbone learns at ``backbone_multiplier`` times the base rate; normalisation layers,
    embeddings and Swin's position tables have a weight decay of their own.
    """
    groups: list[dict[str, Any]] = []
    seen: set[nn.Parameter] = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            decay = weight_decay
            if name in ("relative_position_bias_table", "absolute_pos_embed"):
                decay = 0.0
            elif isinstance(module, NORM_LAYERS):
                decay = weight_decay_norm
            elif isinstance(module, nn.Embedding):
                decay = weight_decay_embed
            in_backbone = "backbone" in module_name.split(".")
            groups.append(
                {
                    "params": [parameter],
                    "lr": base_lr * (backbone_multiplier if in_backbone else 1.0),
                    "weight_decay": decay,
                }
            )
    return reduce_param_groups(groups)
