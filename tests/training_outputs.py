"""What the transformer decoder returns in training, for mask logits that a test made up."""

import torch
from torch import Tensor


def training_outputs(class_logits: Tensor, mask_logits: Tensor) -> dict[str, Tensor]:
    """(L, B, Q, K + 1) and (L, B, Q, h, w): the mask logits are the features themselves."""
    num_layers, batch, num_queries = mask_logits.shape[:3]
    channels = num_layers * num_queries
    unit = torch.eye(channels).view(num_layers, 1, num_queries, channels)
    return {
        "pred_logits": class_logits,
        "mask_embeddings": unit.repeat(1, batch, 1, 1),
        "mask_features": mask_logits.transpose(0, 1).flatten(1, 2),
    }
