"""What a model costs, from shapes alone: parameters, FLOPs, activations, memory.

FLOPs are multiply-adds, each counted once (as fvcore and the papers do), of convolutions, matrix
products, attention and the sampling of deformable attention. Everything element by element
(normalisation, activation functions, resizing, softmax) counts nothing. Activations are the
elements that convolutions and matrix products write, the scores of attention among them, also
where a fused kernel never stores those.
"""

import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import prod
from operator import mul
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_sem_seg_head
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

from mask2former_ops import backend

Shape = tuple[int, ...]

# What scaled_dot_product_attention runs on a CPU; old versions of torch (2.10) do not count it.
_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class Cost(NamedTuple):
    """Of one module with all below it."""

    parameters: int
    flops: int
    activations: int


class Analysis(NamedTuple):
    """One forward pass in inference."""

    modules: dict[str, Cost]  # by name, in the order of definition; "" is the whole model
    peak_bytes: int  # see PeakMemory; without weights and input


class Counts(NamedTuple):
    """What a forward pass took; by module name, "Global" is all of it."""

    flops: dict[str, int]
    activations: dict[str, int]
    peak_bytes: int


def build_network(cfg: CfgNode) -> nn.Module:
    """Backbone and head, one after the other, without memory (on the meta device).

    Losses and what makes segmentations of the logits have no parameters and are left out.
    """
    with torch.device("meta"):
        backbone = build_backbone(cfg)
        head = build_sem_seg_head(cfg, backbone.output_shape())
    return nn.Sequential(OrderedDict(backbone=backbone, sem_seg_head=head)).eval()


def padded_size(size_divisibility: int, network: nn.Module, size: tuple[int, int]) -> Shape:
    """The (height, width) to which the model pads pictures of ``size``, see :class:`MaskFormer`."""
    if size_divisibility < 0:
        size_divisibility = network.backbone.size_divisibility
    divisor = max(size_divisibility, 1)
    return tuple(-(-side // divisor) * divisor for side in size)


def analyze(network: nn.Module, input_shape: Shape) -> Analysis:
    """Run ``network``, whose parameters may be on the meta device, on a picture without contents.

    Operators see float32 tensors on the CPU that have a shape and no values, so that PyTorch takes
    the kernels it would take there, but computes nothing.
    """
    tensors = [*network.named_parameters(), *network.named_buffers()]
    with FakeTensorMode():
        state = {name: torch.empty(t.shape, dtype=t.dtype) for name, t in tensors}
        inputs = torch.empty(input_shape)
        counts = count(lambda: torch.func.functional_call(network, state, (inputs,)))
    root = type(network).__name__
    modules = {
        name: Cost(
            sum(parameter.numel() for parameter in module.parameters()),
            _total(f"{root}.{name}" if name else root, module, counts.flops),
            _total(f"{root}.{name}" if name else root, module, counts.activations),
        )
        for name, module in network.named_modules()
    }
    return Analysis(modules, counts.peak_bytes)


def average(analyses: Sequence[Analysis], weights: Sequence[int]) -> Analysis:
    """Costs of the same model's modules on inputs of several sizes, weighted; the largest peak."""

    def mean(costs: Sequence[int]) -> int:
        return round(sum(map(mul, costs, weights)) / sum(weights))

    modules = {
        name: Cost(*map(mean, zip(*(analysis.modules[name] for analysis in analyses))))
        for name in analyses[0].modules
    }
    return Analysis(modules, max(analysis.peak_bytes for analysis in analyses))


def _total(name: str, module: nn.Module, counts: dict[str, int]) -> int:
    """A module that is never called itself, such as a list, costs what its children do."""
    if name in counts:
        return counts[name]
    return sum(_total(f"{name}.{key}", child, counts) for key, child in module.named_children())


def count(forward: Callable[[], object]) -> Counts:
    """Call ``forward`` without gradients and count what its operators do."""
    flops = FlopCounterMode(display=False, custom_mapping=_flop_formulas())
    written = dict.fromkeys([*flop_registry, _CPU_ATTENTION], _written)
    activations = FlopCounterMode(display=False, custom_mapping=written)
    memory = PeakMemory()
    with torch.no_grad(), flops, activations, memory:
        forward()
    return Counts(
        # The counter's own formulas count two for each multiply-add, and so do those below.
        {name: sum(ops.values()) // 2 for name, ops in flops.get_flop_counts().items()},
        {name: sum(ops.values()) for name, ops in activations.get_flop_counts().items()},
        memory.peak_bytes,
    )


class PeakMemory(TorchDispatchMode):
    """Most bytes at once of tensors that operators made inside the block and that are still alive.

    Tensors from before do not count, nor does what a kernel allocates and frees within.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._live_bytes = 0
        self._storages: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        inputs = (args, kwargs or {})
        # An operator in place, or one that makes a view, makes no new storage.
        known = {x.untyped_storage() for x in tree_leaves(inputs) if isinstance(x, Tensor)}
        output = function(*args, **inputs[1])
        for leaf in tree_leaves(output):
            storage = leaf.untyped_storage() if isinstance(leaf, Tensor) else None
            if storage is None or storage in known or storage in self._storages:
                continue
            self._storages.add(storage)
            self._live_bytes += storage.nbytes()
            weakref.finalize(storage, self._free, storage.nbytes())
        self.peak_bytes = max(self.peak_bytes, self._live_bytes)
        return output

    def _free(self, num_bytes: int) -> None:
        self._live_bytes -= num_bytes


def _flop_formulas() -> dict[object, Callable[..., int]]:
    """Those that the counter does not have.

    Deformable attention: for each channel of a sample point one multiply-add for each of the four
    pixels around it, and one for the attention weight; the same count for the compiled operator and
    for PyTorch's grid_sample. (By grid_sample the latter are element by element and follow it;
    nothing else samples in a forward pass.)
    """
    formulas = {
        _CPU_ATTENTION: _attention_flops,
        torch.ops.aten.grid_sampler_2d: _grid_sample_flops,
    }
    if backend("cpu").name == "compiled":
        formulas[torch.ops.mask2former.ms_deform_attn] = _ms_deform_attn_flops
        formulas[torch.ops.mask2former.ms_deform_attn_fused] = _ms_deform_attn_flops
    return formulas


def _attention_flops(
    query: Shape, key: Shape, value: Shape, *args: object, **kwargs: object
) -> int:
    return sdpa_flop_count(query, key, value)


def _ms_deform_attn_flops(value: Shape, *args: object, **kwargs: object) -> int:
    """value: (B, S, M, D); last, weights or logits (B, Q, M, L, P), one for each sample point."""
    return 2 * 5 * prod(args[-1]) * value[-1]


def _grid_sample_flops(*args: object, out_shape: Shape, **kwargs: object) -> int:
    """out_shape: (B * M, D, Q, P), for each level."""
    return 2 * 5 * prod(out_shape)


def _written(*args: object, out_shape: Shape | tuple[Shape, ...], **kwargs: object) -> int:
    """Elements of the output, and of the scores (B, M, Q, S) of fused attention."""
    if isinstance(out_shape, torch.Size):
        return prod(out_shape)
    query, key = args[:2]  # (B, M, Q, d) and (B, M, S, d); the outputs are more than one
    return prod(out_shape[0]) + prod(query[:3]) * key[2]
