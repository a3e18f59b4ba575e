#!/usr/bin/env python
"""Convert weights between layouts, and prove it by running both models.

    python tools/convert_checkpoint.py model_final.pth --to huggingface -o folder \\
        --config-file X.yaml
    python tools/convert_checkpoint.py folder --to mask2former -o model.pth
    python tools/convert_checkpoint.py resnet50.pth --to mask2former -o R50.pth

SOURCE is a file (.pth, .pkl, .safetensors) or a folder of transformers (config.json beside the
weights). Its layout is told by its names: Mask2Former as published or as in transformers, or a
classification backbone of torchvision, of timm or of the official Swin. A folder of transformers
becomes weights and, beside them, a YAML file with all keys of the model.

The exit status is 1 if an output of the two models differs by more than 1e-3 of its largest value.
"""

import argparse
import ast
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from mask2former.checkpoint.classes import know_classes
from mask2former.checkpoint.huggingface import from_huggingface, to_huggingface
from mask2former.checkpoint.huggingface_config import (
    class_names_from_huggingface,
    huggingface_config,
    huggingface_preprocessor,
    overrides_from_huggingface,
)
from mask2former.checkpoint.names import detect_layout, to_current_names
from mask2former.checkpoint.reading import Checkpoint, read_state_dict
from mask2former.checkpoint.swin import from_swin
from mask2former.checkpoint.torchvision_resnet import from_torchvision_resnet
from mask2former.checkpoint.verification import (
    Difference,
    check_fits,
    compare_with_timm_swin,
    compare_with_torchvision,
    compare_with_transformers,
)
from mask2former.config import get_maskformer2_cfg, load_config, read_config
from mask2former.errors import UserError, positive, report_user_errors

TOLERANCE = 1e-3  # of the largest value of an output
# The package that holds the model to compare with.
REFERENCE = {
    "mask2former": "transformers",
    "huggingface": "transformers",
    "torchvision": "torchvision",
    "swin": "timm",
    "timm": "timm",
}


def main() -> int:
    args = parse_arguments()
    source = read_weights(args.source)
    layout = args.layout if args.layout != "auto" else detect_layout(source)
    if layout not in REFERENCE:
        raise UserError(
            f"{args.source}: its names, such as {next(iter(source))}, are of no layout that can be "
            f"converted; name it with --from if you know better ({', '.join(REFERENCE)})"
        )
    if layout == args.to:
        raise UserError(f"{args.source} has the layout {layout} already; name the other with --to")
    if layout != "mask2former" and args.to == "huggingface":
        raise UserError(
            f"{args.source} has only a backbone, in the layout {layout}; it can be converted "
            "--to mask2former"
        )
    verify = should_verify(args, layout)
    make_output(args)
    if layout == "mask2former":
        differences = convert_to_huggingface(args, source, verify)
    elif layout == "huggingface":
        differences = convert_from_huggingface(args, source, verify)
    else:
        differences = convert_backbone(args, source, layout, verify)
    return report(differences) if verify else 0


def convert_to_huggingface(
    args: argparse.Namespace, source: Mapping[str, Tensor], verify: bool
) -> list[Difference]:
    """Write a folder that ``Mask2FormerForUniversalSegmentation.from_pretrained`` reads."""
    if args.config_file is None:
        raise UserError(f"name the config file that {args.source} belongs to: --config-file X.yaml")
    cfg = read_config(args.config_file)
    cfg.MODEL.WEIGHTS = str(args.source)
    know_classes(cfg)
    source = to_current_names(Checkpoint(dict(source)), {})
    source = {name: t for name, t in source.items() if not name.startswith("pixel_")}
    check_fits(cfg, source, str(args.source))
    config, preprocessor = huggingface_config(cfg), huggingface_preprocessor(cfg)
    converted = to_huggingface(source)
    write_json(config, args.output / "config.json")
    write_json(preprocessor, args.output / "preprocessor_config.json")
    save_weights(converted, args.output / "model.safetensors")
    if not verify:
        return []
    return compare_with_transformers(cfg, source, args.output, random_pictures(args))


def convert_from_huggingface(
    args: argparse.Namespace, source: Mapping[str, Tensor], verify: bool
) -> list[Difference]:
    """Write weights, and all the keys of the model unless ``--config-file`` has them."""
    converted, classes = from_huggingface(source), None
    if args.source.is_dir():
        config = read_json(args.source / "config.json")
        classes = class_names_from_huggingface(config)
    if args.config_file is not None:
        cfg = load_config(args.config_file)
    elif args.source.is_dir():
        preprocessor = read_json(args.source / "preprocessor_config.json", missing={})
        overrides = overrides_from_huggingface(config, preprocessor)
        if any(name.endswith(".num_batches_tracked") for name in converted):
            overrides += ["MODEL.RESNETS.NORM", "BN"]  # norms that were trained stay trainable
        cfg = get_maskformer2_cfg()
        cfg.merge_from_list(overrides)
    else:
        raise UserError(
            f"{args.source} does not say what model it is: give its folder with config.json "
            "instead of the file, or --config-file X.yaml"
        )
    check_fits(cfg, converted, str(args.source))
    save_weights(converted, args.output, classes)
    if args.config_file is None:
        write_yaml(overrides, args.output.with_suffix(".yaml"))
    if not verify:
        return []
    return compare_with_transformers(cfg, converted, args.source, random_pictures(args))


def convert_backbone(
    args: argparse.Namespace, source: Mapping[str, Tensor], layout: str, verify: bool
) -> list[Difference]:
    """Write weights of the backbone alone."""
    converted = from_torchvision_resnet(source) if layout == "torchvision" else from_swin(source)
    save_weights(converted, args.output)
    if not verify:
        return []
    if layout == "torchvision":
        pictures = random_pictures(args)
        return compare_with_torchvision(get_maskformer2_cfg(), source, converted, pictures)
    return compare_with_timm_swin(source, converted, args.batch)


def should_verify(args: argparse.Namespace, layout: str) -> bool:
    """As wished, or if what is needed to build the other model is there."""
    package, lacks = REFERENCE[layout], ""
    if importlib.util.find_spec(package) is None:
        lacks = f"{package} (pip install {package})"
    elif layout == "huggingface" and not args.source.is_dir():
        lacks = f"the folder of {args.source}, with its config.json"
    if lacks and args.verify:
        raise UserError(f"--verify needs {lacks}")
    if lacks and args.verify is None:
        print(f"not verified, which needs {lacks}")
    return not lacks if args.verify is None else args.verify


def report(differences: Sequence[Difference]) -> int:
    """Print the largest differences; the exit status."""
    for d in differences:
        print(
            f"{d.name}: largest difference {d.absolute:.2e}, "
            f"relative to the largest value {d.relative:.2e}"
        )
    # Not "greater than": a NaN is no agreement.
    if all(d.relative <= TOLERANCE for d in differences):
        return 0
    print(f"error: the models differ by more than {TOLERANCE:g}", file=sys.stderr)
    return 1


def random_pictures(args: argparse.Namespace) -> Tensor:
    return torch.randn(args.batch, 3, *args.size, generator=torch.Generator().manual_seed(0))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights of a file, or of all the files of a folder of transformers."""
    if not path.exists():
        raise UserError(f"{path} does not exist; SOURCE is a file or a folder of transformers")
    if not path.is_dir():
        return read_state_dict(str(path)).state_dict
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = path / f"{name}.index.json"
        if index.is_file():
            files = sorted(set(read_json(index)["weight_map"].values()))
        elif (path / name).is_file():
            files = [name]
        else:
            continue
        weights = {}
        for file in files:
            weights |= read_state_dict(str(path / file)).state_dict
        return weights
    raise UserError(f"{path} holds neither model.safetensors nor pytorch_model.bin; name a file")


def make_output(args: argparse.Namespace) -> None:
    """Make the folder that the output is, or is in.

    Raises:
        UserError: it cannot be made.
    """
    folder = args.output if args.to == "huggingface" else args.output.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"-o {args.output}: {folder} is no folder to write to: {error}") from error


def save_weights(
    state_dict: Mapping[str, Tensor], path: Path, class_names: Sequence[str] | None = None
) -> None:
    """Write a file of weights; one of torch holds the names of the classes, too."""
    if path.suffix not in (".pth", ".safetensors"):
        raise UserError(f"-o {path}: weights are written as .pth or .safetensors")
    weights = {name: tensor.contiguous() for name, tensor in state_dict.items()}
    if path.suffix == ".pth":
        torch.save({"model": weights} | ({"class_names": class_names} if class_names else {}), path)
    else:
        if importlib.util.find_spec("safetensors") is None:
            raise UserError(f"{path} needs safetensors: pip install safetensors")
        from safetensors.torch import save_file

        save_file(weights, path, metadata={"format": "pt"})
    print(f"{path}: {len(weights)} tensors")


def read_json(path: Path, missing: Any = None) -> Any:
    if missing is not None and not path.is_file():
        return missing
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error


def write_json(contents: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(contents, indent=2) + "\n")
    print(path)


def write_yaml(overrides: Sequence[str], path: Path) -> None:
    """``[KEY, VALUE, ...]`` as a config file without ``_BASE_``."""
    tree: dict[str, Any] = {"VERSION": 2}
    for key, text in zip(overrides[::2], overrides[1::2], strict=True):
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        try:
            node[leaf] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            node[leaf] = text
    path.write_text(yaml.safe_dump(tree, sort_keys=False, default_flow_style=None))
    print(path)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("--to", choices=("huggingface", "mask2former"), required=True)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="a folder for huggingface, else a file"
    )
    parser.add_argument("--config-file", help="what model the weights are of")
    parser.add_argument(
        "--from",
        dest="layout",
        choices=("auto", *REFERENCE),
        default="auto",
        help="layout of SOURCE; auto: what its names tell",
    )
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        help="run both models on random pictures (default: if the other one is installed)",
    )
    parser.add_argument(
        "--size",
        type=positive,
        nargs=2,
        default=(257, 381),
        metavar=("H", "W"),
        help="of the pictures",
    )
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="number of pictures")
    return parser.parse_args()


if __name__ == "__main__":
    with report_user_errors():
        sys.exit(main())
