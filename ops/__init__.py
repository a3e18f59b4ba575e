"""Multi-scale deformable attention, the compiled operator of Mask2Former.

`ms_deform_attn` calls the compiled library for the tensors' device; where there is none, it warns
once and calls `ms_deform_attn_reference`. `backend` tells which, and why. An error inside the
compiled operator is raised as it is.
"""

from .library import BackendStatus, backend
from .ms_deform_attn import ms_deform_attn
from .reference import ms_deform_attn_reference

__all__ = ["BackendStatus", "backend", "ms_deform_attn", "ms_deform_attn_reference"]
