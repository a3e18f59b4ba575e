"""torchvision's (and timm's) ResNet weights -> names of Detectron2's ResNet.

The architectures agree if ``MODEL.RESNETS.STRIDE_IN_1X1`` is False: torchvision strides in the 3x3
convolution, Detectron2 by default in the 1x1 before it, with the same parameter shapes. Pictures
are RGB, normalised by the ImageNet mean and standard deviation of pixels in 0..255, as
``configs/base.yaml`` has it. ``FrozenBN`` keeps the four tensors of a batch norm, not its count.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from ..errors import UserError

# (kind of block, blocks of each stage) -> MODEL.RESNETS.DEPTH
RESNET_DEPTHS = {
    ("basic", (2, 2, 2, 2)): 18,
    ("basic", (3, 4, 6, 3)): 34,
    ("bottleneck", (3, 4, 6, 3)): 50,
    ("bottleneck", (3, 4, 23, 3)): 101,
    ("bottleneck", (3, 8, 36, 3)): 152,
}
# The classifier, and the count that only a norm with a cumulative average would use.
_DROPPED = re.compile(r"fc\.|.*\.num_batches_tracked$")
_STEM = {"conv1": "stem.conv1", "bn1": "stem.conv1.norm"}
_LAYER = {
    r"conv(\d)": r"conv\1",
    r"bn(\d)": r"conv\1.norm",
    r"downsample\.0": "shortcut",
    r"downsample\.1": "shortcut.norm",
}


def from_torchvision_resnet(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of ``torchvision.models.resnetN``, N from 18 to 152, as ``backbone.`` weights.

    Raises:
        UserError: a name is none of a plain ResNet's.
    """
    return {
        f"backbone.{_rename(name)}": tensor
        for name, tensor in state_dict.items()
        if not _DROPPED.match(name)
    }


def _rename(name: str) -> str:
    module, _, parameter = name.rpartition(".")
    if module in _STEM:
        return f"{_STEM[module]}.{parameter}"
    if match := re.fullmatch(r"layer([1-4])\.(\d+)\.(.+)", module):
        stage, block, layer = match.groups()
        for pattern, replacement in _LAYER.items():
            if re.fullmatch(pattern, layer):
                layer = re.sub(pattern, replacement, layer)
                return f"res{int(stage) + 1}.{block}.{layer}.{parameter}"
    raise UserError(
        f"{name} is no parameter of torchvision's ResNet; only plain ones, from resnet18 to "
        "resnet152, can be converted"
    )


def resnet_depth(state_dict: Mapping[str, Tensor]) -> int:
    """``MODEL.RESNETS.DEPTH`` of torchvision weights.

    Raises:
        UserError: Detectron2 builds no ResNet with these blocks.
    """
    blocks = {match[0] for name in state_dict if (match := re.match(r"layer\d\.\d+\.", name))}
    depths = tuple(sum(b.startswith(f"layer{stage}.") for b in blocks) for stage in range(1, 5))
    kind = "bottleneck" if "layer1.0.conv3.weight" in state_dict else "basic"
    if (kind, depths) not in RESNET_DEPTHS:
        raise UserError(f"there is no standard ResNet with {depths} {kind} blocks in its stages")
    return RESNET_DEPTHS[kind, depths]
