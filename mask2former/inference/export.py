"""A model as a graph of standard operators, for pictures of any size: torch.export and ONNX.

Shapes: B pictures of one size (H, W) with C channels; Q queries; K classes; N instances.
"""

import importlib.util
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

import mask2former_ops

from ..errors import ConfigError, UserError
from ..modeling.meta_arch import MaskFormer, thing_ids_of
from . import fixed_shapes
from .predictor import categories_of

# The outputs of each task, and what their dimensions are.
OUTPUTS = {
    "panoptic": ("segment_ids", "query_segments", "query_classes", "query_scores"),
    "instance": ("masks", "boxes", "scores", "classes"),
    "semantic": ("labels",),
    "raw": ("class_logits", "mask_logits"),
}
LEAST_OPSET, OPSET = 18, 20  # the exporter writes no older ones; the default
LEAST_SIDE = 33  # of a picture; a coarser map of one pixel would be a case of its own
DYNAMIC_SHAPES = {
    "images": {
        0: Dim("batch"),
        2: Dim("height", min=LEAST_SIDE),
        3: Dim("width", min=LEAST_SIDE),
    }
}
_TRACED_SIDES = (260, 300)  # none of the maps and windows of this size is a special case


class ExportableModel(nn.Module):
    """A :class:`MaskFormer` in inference as a function from a tensor to a tuple of tensors.

    Pictures are normalised and padded inside; results have the size of the pictures.
    """

    def __init__(self, model: MaskFormer, task: str) -> None:
        """
        Args:
            task: ``panoptic``, ``instance`` or ``semantic``, as the model is set to make it, or
                ``raw``: class logits (B, Q, K + 1) and mask logits of the padded pictures, of which
                a pixel is ``COMMON_STRIDE`` (4) pixels.
        """
        super().__init__()
        self.model = model
        self.postprocess = {
            "panoptic": partial(
                fixed_shapes.panoptic,
                thing_ids=model.thing_ids,
                object_mask_threshold=model.object_mask_threshold,
                overlap_threshold=model.overlap_threshold,
            ),
            "instance": partial(
                fixed_shapes.instance,
                topk=model.test_topk_per_image,
                thing_ids=model.thing_ids if model.panoptic_on else None,
            ),
            "semantic": fixed_shapes.semantic,
            "raw": lambda class_logits, mask_logits, resize: (class_logits, mask_logits),
        }[task]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W), channels and units as ``INPUT.FORMAT`` says -> ``OUTPUTS`` of the task."""
        size, divisor = images.shape[2:], self.model.size_divisibility
        padded = [(side + divisor - 1) // divisor * divisor for side in size]
        batch = (images - self.model.pixel_mean) / self.model.pixel_std
        batch = F.pad(batch, (0, padded[1] - size[1], 0, padded[0] - size[0]))
        outputs = self.model.sem_seg_head(self.model.backbone(batch))

        def resize(mask_logits: Tensor) -> Tensor:
            masks = F.interpolate(mask_logits, padded, mode="bilinear", align_corners=False)
            # A negative padding crops. A slice would be another case for each size without padding.
            return F.pad(masks, (0, size[1] - padded[1], 0, size[0] - padded[0]))

        return self.postprocess(outputs["pred_logits"], outputs["pred_masks"], resize)


def check_task(cfg: CfgNode, task: str) -> None:
    """
    Raises:
        ConfigError: the model is not set to make this segmentation, or not to compute in float32.
    """
    key = f"{task.upper()}_ON"
    if task != "raw" and not cfg.MODEL.MASK_FORMER.TEST[key]:
        raise ConfigError(
            f"--task {task}: this config makes no {task} segmentations; if its model can, add "
            f"MODEL.MASK_FORMER.TEST.{key} True"
        )
    if cfg.TEST.PRECISION != "float32":
        raise ConfigError(f"TEST.PRECISION is {cfg.TEST.PRECISION}; exports compute in float32")


def metadata_for_export(cfg: CfgNode, task: str) -> dict[str, str]:
    """What a program needs to know beside the graph; lists and numbers as JSON."""
    return {
        "task": task,
        "input_format": cfg.INPUT.FORMAT,
        "classes": json.dumps(categories_of(cfg), ensure_ascii=False),
        "thing_ids": json.dumps(thing_ids_of(cfg)),
        "shortest_side": json.dumps(cfg.INPUT.MIN_SIZE_TEST),
        "longest_side": json.dumps(cfg.INPUT.MAX_SIZE_TEST),
    }


@torch.no_grad()
def export_program(model: MaskFormer, task: str, *, compiled_op: bool = False) -> ExportedProgram:
    """The graph, with dynamic batch, height and width.

    Args:
        compiled_op: deformable attention by the compiled operator; whoever loads the graph must
            ``import mask2former_ops`` first. Otherwise by PyTorch's ``grid_sample``.

    Raises:
        ConfigError: pictures are not padded to multiples of 32.
    """
    if model.size_divisibility % 32 or model.size_divisibility < 32:
        raise ConfigError(
            f"MODEL.MASK_FORMER.SIZE_DIVISIBILITY is {model.size_divisibility}; an export for "
            "pictures of any size needs a multiple of 32"
        )
    images = torch.zeros(2, len(model.pixel_mean), *_TRACED_SIDES, device=model.device)
    with nullcontext() if compiled_op else mask2former_ops.plain():
        program = torch.export.export(
            ExportableModel(model, task).eval(),
            (images,),
            dynamic_shapes=DYNAMIC_SHAPES,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    _drop_assertions(program)
    return program


def _drop_assertions(program: ExportedProgram) -> None:
    """Without torch's conditions on sizes, by which it told cases of strides apart.

    They would refuse small pictures, such as those of one window of Swin's, although the graph
    holds for these.
    """
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.find_nodes(
                op="call_function", target=torch.ops.aten._assert_scalar.default
            ):
                module.graph.erase_node(node)
            module.graph.eliminate_dead_code()
            module.recompile()


def save_program(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a ``.pt2`` file; ``torch.export.load(path).module()`` is the model again."""
    extra_files = {"metadata.json": json.dumps(metadata)}
    torch.export.save(program, path, extra_files=extra_files)


@torch.no_grad()  # with gradients attention is decomposed otherwise, into views that do not exist
def save_onnx(
    program: ExportedProgram,
    path: Path,
    metadata: Mapping[str, str],
    *,
    task: str,
    opset: int = OPSET,
    optimize: bool = True,
) -> None:
    """Write an ONNX file of standard operators, with ``metadata`` as its ``metadata_props``.

    Args:
        optimize: fold constants and simplify the graph, which takes about as long as the rest.

    Raises:
        UserError: the packages that this needs are not installed.
    """
    require("onnx", "onnxscript")
    with _quiet("onnx_ir", "onnxscript"):
        onnx_program = torch.onnx.export(
            program,
            input_names=["images"],
            output_names=list(OUTPUTS[task]),
            dynamic_shapes=DYNAMIC_SHAPES,  # for their names
            opset_version=opset,
            optimize=optimize,
            verbose=False,
        )
    onnx_program.model.metadata_props.update(metadata)
    onnx_program.save(path)


def require(*packages: str) -> None:
    """
    Raises:
        UserError: one of ``packages`` is not installed.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"this needs {' and '.join(missing)}: pip install {' '.join(missing)}")


@contextmanager
def _quiet(*loggers: str) -> Iterator[None]:
    """Without what these loggers say below an error."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
