"""3x3 convolutions, on CPUs by Winograd's filtering where that is faster."""

import torch
from detectron2.layers import Conv2d
from torch import Tensor, nn

from mask2former_ops import winograd_convolution
from mask2former_ops.library import use_compiled, vector_lanes
from mask2former_ops.winograd import CHANNELS

from .linear import processor

FEWEST_PIXELS = 256  # of all pictures; torch's own convolution is as fast with fewer
_WIDE_VECTORS = vector_lanes() >= 8
_FAST_BFLOAT16 = "amx_bf16" in processor()  # in torch's own convolution


class Conv3x3(Conv2d):
    """Detectron2's convolution, 3x3 with a padding of 1; by Winograd where that is faster."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = _computed_in(x, self.weight)
        if not is_faster(x, dtype):
            return super().forward(x)
        x = winograd_convolution(x.to(dtype), self.weight.to(dtype), self.bias)
        x = x if self.norm is None else self.norm(x)
        return x if self.activation is None else self.activation(x)


def use_winograd(module: nn.Module) -> None:
    """Make every convolution of Detectron2 in it that can be a :class:`Conv3x3`, in place.

    Its parameters, their names, and its hooks stay. Unlike Detectron2's, it has no forward-mode
    gradients, and ``torch.jit.script`` does not take it; ``torch.jit.trace`` and exports do.
    """
    for conv in module.modules():
        if type(conv) is Conv2d and (
            (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
            and (conv.dilation, conv.groups, conv.padding_mode) == ((1, 1), 1, "zeros")
            and not (conv.in_channels % CHANNELS or conv.out_channels % CHANNELS)
        ):
            conv.__class__ = Conv3x3


def _computed_in(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """What torch's own convolution computes in; None if it is neither of these, or is refused."""
    single = (torch.float32, torch.bfloat16)
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        known = x.dtype in single and weight.dtype in single
        return torch.get_autocast_dtype("cpu") if known else None
    return x.dtype if x.dtype == weight.dtype else None


def is_faster(x: Tensor, dtype: torch.dtype | None) -> bool:
    """Whether :func:`winograd_convolution` of x, (B, C, H, W), in ``dtype`` is, and can be used."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    in_bfloat16 = not _FAST_BFLOAT16 and not torch.is_grad_enabled()
    return (
        x.device.type == "cpu"
        and _WIDE_VECTORS
        and (dtype == torch.float32 or (dtype == torch.bfloat16 and in_bfloat16))
        and x.dim() == 4
        and len(x) * x.shape[2] * x.shape[3] >= FEWEST_PIXELS
        and use_compiled("cpu")
    )
