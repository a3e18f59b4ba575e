#!/usr/bin/env python
"""Mapillary Vistas v1.2: nothing is converted; checks that all files are there and fit together."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _prepare import (
    ADE20K_FOLDERS,
    check_values,
    existing,
    paired,
    parse_args,
    picture_size,
    read_labels,
    report,
    run_jobs,
)

from mask2former.data.builtin import load_categories
from mask2former.data.formats import read_json
from mask2former.errors import DatasetError, report_user_errors


def check(picture: Path, labels: Path, panoptic: Path, size: tuple[int, int]) -> None:
    actual = picture_size(picture)
    if actual != size:
        raise DatasetError(
            f"{picture} is {actual[1]} x {actual[0]} pixels, but panoptic_2018.json says "
            f"{size[1]} x {size[0]}"
        )
    check_values(labels, read_labels(labels, size), 65)
    if picture_size(panoptic) != size:
        raise DatasetError(f"{panoptic} has another size than its picture")


def check_categories(path: Path, content: dict[str, Any]) -> None:
    expected = {c["id"]: (c["name"], c["isthing"]) for c in load_categories("mapillary_vistas_65")}
    found = {c["id"]: (c["name"], c["isthing"]) for c in content["categories"]}
    if found != expected:
        different = sorted(i for i in expected | found if expected.get(i) != found.get(i))
        raise DatasetError(
            f"{path}: the categories {different} are not those of version 1.2; download that one"
        )


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(__doc__, argv, ADE20K_FOLDERS)
    problems = []
    for split in args.splits:
        root = args.root / "mapillary_vistas" / ADE20K_FOLDERS[split]
        pictures = existing(root / "images", "the pictures")
        for name in ("labels", "panoptic"):
            if (root / "v1.2" / name).exists() and not (root / name).exists():
                raise DatasetError(
                    f"{(root / 'v1.2' / name).absolute()}: move or link it to {root / name}"
                )
        labels = existing(root / "labels", "the label maps")
        panoptic = existing(root / "panoptic", "the panoptic PNG files and panoptic_2018.json")
        path = existing(panoptic / "panoptic_2018.json", "the panoptic segments")
        content = read_json(str(path))
        check_categories(path, content)
        sizes = {
            Path(image["file_name"]).stem: (image["height"], image["width"])
            for image in content["images"]
        }
        stems, alone = paired(pictures, labels, panoptic)
        problems += alone
        problems += [f"{path} has no picture {s}.jpg" for s in stems if s not in sizes]
        jobs = [
            (pictures / f"{s}.jpg", labels / f"{s}.png", panoptic / f"{s}.png", sizes[s])
            for s in stems
            if s in sizes
        ]
        problems += run_jobs(check, jobs, workers=args.workers, title=split)[1]
    return report(problems)


if __name__ == "__main__":
    with report_user_errors():
        sys.exit(main())
