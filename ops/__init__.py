"""The compiled operators of Mask2Former.

`ms_deform_attn`, and `ms_deform_attn_fused` for the projections before they are locations and
weights, call the compiled library for the tensors' device; where there is none, they warn once and
call `ms_deform_attn_reference`. `backend` tells which, and why; inside `plain()` it is always the
latter. An error inside the compiled operator is raised as it is. `resize_rows`, `mask_sums` and
`weighted_sigmoids`, of post-processing, do likewise, on CPUs. `winograd_convolution` has no other
implementation than the compiled one.
"""

from .library import BackendStatus, backend, plain
from .maps import mask_sums, resize_rows, source_rows
from .ms_deform_attn import ms_deform_attn, ms_deform_attn_fused
from .reference import ms_deform_attn_reference
from .weighted_sigmoids import weighted_sigmoids
from .winograd import winograd_convolution

__all__ = [
    "BackendStatus",
    "backend",
    "mask_sums",
    "ms_deform_attn",
    "ms_deform_attn_fused",
    "ms_deform_attn_reference",
    "plain",
    "resize_rows",
    "source_rows",
    "weighted_sigmoids",
    "winograd_convolution",
]
