#!/usr/bin/env python
"""Segment a picture with a file of tools/export.py; needs numpy, Pillow and onnxruntime alone.

    python tools/onnx_example.py model.onnx picture.jpg -o out

Writes out/<picture>.png, the picture with its segments in colours; out/<picture>_ids.png, the id of
each pixel's segment (0: none; of semantic models the class, from 1 on); and out/<picture>.json, the
segments: areas as drawn, and boxes of instances' whole masks, in pixels of the picture.
"""

import argparse
import colorsys
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

Segments = list[dict[str, Any]]


def main() -> None:
    args = parse_arguments()
    try:
        session = onnxruntime.InferenceSession(args.model, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's have no class in common but this
        sys.exit(f"error: {args.model} cannot be read as an ONNX model ({error})")
    metadata = session.get_modelmeta().custom_metadata_map
    task = metadata.get("task")
    if task not in SEGMENTS:
        sys.exit(f"error: {args.model} is no panoptic, instance or semantic model but {task!r}")
    if metadata["input_format"] not in ("RGB", "BGR"):
        sys.exit(f"error: {args.model} takes {metadata['input_format']} pictures, this tool RGB")
    picture = read(args.picture)
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(None, {"images": preprocess(picture, metadata)})
    outputs = {name: output[0] for name, output in zip(names, outputs)}
    ids, segments = SEGMENTS[task](outputs, args.threshold)
    classes = json.loads(metadata["classes"])
    if task == "semantic":  # a model of one class has a label for none of it
        ids[ids > len(classes)] = 0
        segments = [segment for segment in segments if segment["category_id"] < len(classes)]
    for segment in segments:
        segment["category"] = classes[segment["category_id"]]
        segment["isthing"] = segment["category_id"] in json.loads(metadata["thing_ids"])
    save(args.output, args.picture.stem, picture, ids, segments)


def read(path: Path) -> Image.Image:
    """The picture in RGB, turned as its EXIF data say."""
    try:
        picture = Image.open(path)
        if picture.mode.startswith(("I", "F")):  # Pillow would clip the values at 255
            sys.exit(f"error: {path} has more than 8 bits a pixel; save it with 8")
        return ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        sys.exit(f"error: {path} cannot be read as a picture ({error})")


def preprocess(picture: Image.Image, metadata: dict[str, str]) -> np.ndarray:
    """(1, 3, H, W) float32 in 0 ... 255, of the size that the model's test pictures have."""
    shortest, longest = json.loads(metadata["shortest_side"]), json.loads(metadata["longest_side"])
    if shortest:  # 0: as they are
        scale = min(shortest / min(picture.size), longest / max(picture.size))
        width, height = (max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture, np.float32)
    if metadata["input_format"] == "BGR":
        pixels = pixels[:, :, ::-1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def panoptic(outputs: dict[str, np.ndarray], threshold: float) -> tuple[np.ndarray, Segments]:
    """(H, W) ids, and the segments; those below the threshold are left out."""
    ids, queries = outputs["segment_ids"].copy(), outputs["query_segments"]
    segments = []
    for segment in range(1, queries.max(initial=0) + 1):
        own = queries == segment
        score = outputs["query_scores"][own].max()
        if score < threshold:
            ids[ids == segment] = 0
            continue
        category = outputs["query_classes"][own][0]
        segments.append({"id": segment, "category_id": int(category), "score": float(score)})
    return ids, segments


def instance(outputs: dict[str, np.ndarray], threshold: float) -> tuple[np.ndarray, Segments]:
    """(H, W) ids, surer instances over less sure ones, and the instances with their boxes."""
    ids = np.zeros(outputs["masks"].shape[1:], np.int32)
    order = np.argsort(outputs["scores"], kind="stable")
    order = order[outputs["scores"][order] >= threshold]
    segments = []
    for number, i in enumerate(order, start=1):
        ids[outputs["masks"][i]] = number
        segment = {"id": number, "category_id": int(outputs["classes"][i])}
        box = outputs["boxes"][i].tolist()  # x0, y0, x1, y1
        segments.append(segment | {"score": float(outputs["scores"][i]), "box": box})
    return ids, segments


def semantic(outputs: dict[str, np.ndarray], threshold: float) -> tuple[np.ndarray, Segments]:
    """(H, W) classes plus 1, and the classes that there are."""
    ids = outputs["labels"] + 1
    return ids, [{"id": int(i), "category_id": int(i) - 1} for i in np.unique(ids)]


SEGMENTS = {"panoptic": panoptic, "instance": instance, "semantic": semantic}


def save(
    folder: Path, name: str, picture: Image.Image, ids: np.ndarray, segments: Segments
) -> None:
    """Write the three files; ids and boxes are those of the picture as the model saw it."""
    scales = [new / old for new, old in zip(picture.size, ids.shape[::-1])] * 2
    for segment in segments:
        if "box" in segment:
            segment["box"] = [side * scale for side, scale in zip(segment["box"], scales)]
    ids = np.asarray(Image.fromarray(ids.astype(np.int32)).resize(picture.size, 0))
    colours = np.zeros((ids.max(initial=0) + 1, 3))
    for i in range(1, len(colours)):  # hues a golden ratio apart
        colours[i] = 255 * np.array(colorsys.hsv_to_rgb(i * 0.618 % 1, 0.8, 1.0))
    overlay = np.where(ids[..., None] > 0, 0.5 * np.asarray(picture) + 0.5 * colours[ids], picture)
    for segment in segments:
        segment["area"] = int((ids == segment["id"]).sum())
        print(segment)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(overlay.astype(np.uint8)).save(folder / f"{name}.png")
    Image.fromarray(ids.astype(np.uint16)).save(folder / f"{name}_ids.png")
    (folder / f"{name}.json").write_text(json.dumps(segments, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL.onnx")
    parser.add_argument("picture", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="a folder")
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="least score of a segment (default: 0.5)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
