"""Hugging Face's model with the weights of one here, where transformers is installed."""

import importlib.util
from collections.abc import Mapping

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from mask2former.checkpoint.huggingface import name_in_files, to_huggingface
from mask2former.checkpoint.huggingface_config import huggingface_config
from mask2former.errors import ConfigError


def transformers_model(
    cfg: CfgNode, state: Mapping[str, Tensor], device: torch.device | str
) -> nn.Module | None:
    """Its model in evaluation mode; None, with a line that says why, where there is none."""
    if importlib.util.find_spec("transformers") is None:
        print("no comparison: transformers is not installed")
        return None
    import transformers

    try:
        config = transformers.Mask2FormerConfig(**huggingface_config(cfg))
    except ConfigError as error:
        print(f"no comparison with transformers: {error}")
        return None
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    renamed = {name_in_files(name): name for name in model.state_dict()}
    model.load_state_dict({renamed.get(k, k): v for k, v in to_huggingface(state).items()})
    return model.eval().to(device)
