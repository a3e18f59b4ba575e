"""The published code, from a checkout of it, in a process of its own: its package has this one's
name. Run as a script in there, this module imports nothing of the project but :mod:`.measuring`.

Where its CUDA extension is not built, its op is PyTorch's ``grid_sample``. It would then refuse to
be imported, so an empty module stands for the extension.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import types
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from torch import Tensor, nn


def add_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--published",
        type=_checkout,
        metavar="FOLDER",
        help="measure the published code, too: the folder of a checkout, with mask2former/ in it",
    )


def _checkout(folder: str) -> Path:
    if not Path(folder, "mask2former", "maskformer_model.py").is_file():
        raise argparse.ArgumentTypeError(
            f"there is no mask2former/maskformer_model.py in {folder}: name the folder of a "
            "checkout of the published code"
        )
    return Path(folder)


def run_published(
    folder: Path,
    cfg: CfgNode,
    state: Mapping[str, Tensor],
    inputs: list[dict[str, Any]],
    **job: Any,
) -> dict[str, Any]:
    """What :func:`main` finds there.

    Args:
        state: the weights.
        inputs: as a model of Detectron2 takes them.
        job: ``training``, ``repeats``, ``threads`` and ``precision``.
    """
    from mask2former.errors import UserError

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "job.pt")
        job |= {"folder": folder.resolve(), "cfg": cfg.dump()}
        torch.save(job | {"state": dict(state), "inputs": inputs}, path)
        packages = [str(folder.resolve()), os.environ.get("PYTHONPATH", "")]
        done = subprocess.run(
            [sys.executable, __file__, str(path)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, packages))},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            raise UserError(f"--published {folder}: it failed, see above")
        return torch.load(path, weights_only=False)


def main() -> None:
    """Times in milliseconds by name, the peak of memory, which op it was, and of a model in
    inference its outputs, in training its first loss.
    """
    path = Path(sys.argv[1])
    job = torch.load(path, weights_only=False)
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    op = _find_op()
    model = _build(job)
    if model.device.type == "cpu":
        op = "grid_sample"  # it has no other on CPUs
    result = (_training if job["training"] else _inference)(model, job)
    result |= {"peak GB": measuring.peak_memory(model.device), "op": op}
    if not job["training"]:
        result |= _outputs(model, job)
    torch.save(result, path)


def _find_op() -> str:
    try:
        import MultiScaleDeformableAttention  # noqa: F401
    except ImportError:
        name = "MultiScaleDeformableAttention"
        sys.modules[name] = types.ModuleType(name)
        return "grid_sample"
    return "its compiled op"


def _build(job: dict[str, Any]) -> nn.Module:
    from detectron2.modeling import build_model
    from detectron2.projects.deeplab import add_deeplab_config

    import mask2former
    from mask2former import add_maskformer2_config

    if not Path(mask2former.__file__).is_relative_to(job["folder"]):
        raise SystemExit(f"this is the package of another folder: {mask2former.__file__}")
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    _merge_known(CfgNode.load_cfg(job["cfg"]), cfg)
    model = build_model(cfg)
    state = OrderedDict(job.pop("state"))
    state._metadata = model.state_dict()._metadata  # versions, not to be taken for an older one
    model.load_state_dict(state)
    return model


def _merge_known(source: CfgNode, target: CfgNode) -> None:
    """The keys that the published code has."""
    for key, value in source.items():
        if key in target:
            if isinstance(value, CfgNode):
                _merge_known(value, target[key])
            else:
                target[key] = value


@torch.no_grad()
def _inference(model: nn.Module, job: dict[str, Any]) -> dict[str, Any]:
    model.eval()
    times: dict[str, list[float]] = {"forward ms": [], "total ms": []}
    now = partial(measuring.synchronize, model.device)
    model.backbone.register_forward_pre_hook(lambda *_: moments.append(now()))
    model.sem_seg_head.register_forward_hook(lambda *_: moments.append(now()))
    for _ in range(job["repeats"] + 2):
        moments = [now()]
        model(job["inputs"])
        started, backbone, head = moments
        times["forward ms"].append(1000 * (head - backbone))
        times["total ms"].append(1000 * (now() - started))
    return {name: values[2:] for name, values in times.items()}


@torch.no_grad()
def _outputs(model: nn.Module, job: dict[str, Any]) -> dict[str, Tensor]:
    """Class and mask logits."""
    outputs = {}
    model.sem_seg_head.register_forward_hook(lambda module, x, output: outputs.update(output))
    model(job["inputs"])
    return {name: outputs[name] for name in ("pred_logits", "pred_masks")}


def _training(model: nn.Module, job: dict[str, Any]) -> dict[str, Any]:
    model.train()
    spent, first_loss = measuring.training_steps(
        lambda: sum(model(job["inputs"]).values()),
        measuring.clipped_adamw(model),
        repeats=job["repeats"],
        device=model.device,
        precision=job["precision"],
    )
    return spent | {"first loss": first_loss}


if __name__ == "__main__":
    import measuring

    sys.path.pop(0)  # the other modules beside this one have common names
    main()
