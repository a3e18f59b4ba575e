"""The data sets that the published configs name: classes, folders, and where files come from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# What the folders and files hold that metadata names by these keys.
CONTENTS = {
    "image_root": "the pictures",
    "image_dir": "the pictures",
    "gt_dir": "the official annotations",
    "sem_seg_root": "the semantic label maps",
    "panoptic_root": "the panoptic PNG files",
    "panoptic_json": "the panoptic segments",
    "json_file": "the instance annotations",
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the files of a data set come from, for the error that says what is missing.

    Attributes:
        title: the data set's official name.
        made_by: for the keys of :data:`CONTENTS` that are no download, the script in datasets/.
        probes: for a key, a glob pattern that must match, and the script that makes these files.
        modules: packages that Detectron2's loader imports.
    """

    title: str
    made_by: Mapping[str, str] = field(default_factory=dict)
    probes: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    modules: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Builtin:
    """A data set in splits. ``{split}`` and ``{folder}`` are replaced in its name and paths.

    Attributes:
        splits: folder of each split.
        categories: class table, in mask2former/data/categories, or ``coco``: Detectron2's.
        paths: keys of :data:`CONTENTS`, and paths below the root.
        ids_in_results: semantic results are written with the table's ids, not with 0, 1, 2, ...
        all_things: ``thing_classes`` lists all classes.
    """

    task: Literal["semantic", "instance", "panoptic"]
    evaluator_type: str
    splits: Mapping[str, str]
    categories: str
    paths: Mapping[str, str]
    source: Source
    ignore_label: int = 255
    ids_in_results: bool = False
    all_things: bool = False


TRAIN_VAL = {"train": "training", "val": "validation"}
ADE = "ADEChallengeData2016"
ADE_FULL = "ADE20K_2021_17_01"
STUFF_10K = "coco/coco_stuff_10k"

BUILTIN = {
    "ade20k_full_sem_seg_{split}": Builtin(
        task="semantic",
        evaluator_type="sem_seg",
        splits=TRAIN_VAL,
        categories="ade20k_full_847",
        paths={
            "image_root": f"{ADE_FULL}/images_detectron2/{{folder}}",
            "sem_seg_root": f"{ADE_FULL}/annotations_detectron2/{{folder}}",
        },
        source=Source(
            title="ADE20K (2021_17_01)",
            made_by=dict.fromkeys(("image_root", "sem_seg_root"), "prepare_ade20k_full_sem_seg.py"),
        ),
        ignore_label=65535,
    ),
    "ade20k_instance_{split}": Builtin(
        task="instance",
        evaluator_type="coco",
        splits=TRAIN_VAL,
        categories="ade20k_instance_100",
        paths={
            "image_root": f"{ADE}/images/{{folder}}",
            "json_file": f"{ADE}/ade20k_instance_{{split}}.json",
        },
        source=Source(
            title="ADE20K, SceneParse150", made_by={"json_file": "prepare_ade20k_ins_seg.py"}
        ),
    ),
    "ade20k_panoptic_{split}": Builtin(
        task="panoptic",
        evaluator_type="ade20k_panoptic_seg",
        splits=TRAIN_VAL,
        categories="ade20k_150",
        paths={
            "image_root": f"{ADE}/images/{{folder}}",
            "panoptic_root": f"{ADE}/ade20k_panoptic_{{split}}",
            "panoptic_json": f"{ADE}/ade20k_panoptic_{{split}}.json",
            "sem_seg_root": f"{ADE}/annotations_detectron2/{{folder}}",
            "json_file": f"{ADE}/ade20k_instance_{{split}}.json",
        },
        source=Source(
            title="ADE20K, SceneParse150",
            made_by={
                "panoptic_root": "prepare_ade20k_pan_seg.py",
                "panoptic_json": "prepare_ade20k_pan_seg.py",
                "sem_seg_root": "prepare_ade20k_sem_seg.py",
            },
        ),
    ),
    "coco_2017_{split}_panoptic_with_sem_seg": Builtin(
        task="panoptic",
        evaluator_type="coco_panoptic_seg",
        splits={"train": "train2017", "val": "val2017"},
        categories="coco",
        paths={
            "image_root": "coco/{folder}",
            "panoptic_root": "coco/panoptic_{folder}",
            "panoptic_json": "coco/annotations/panoptic_{folder}.json",
            "sem_seg_root": "coco/panoptic_semseg_{folder}",
            "json_file": "coco/annotations/instances_{folder}.json",
        },
        source=Source(
            title="COCO 2017",
            made_by={"sem_seg_root": "prepare_coco_semantic_annos_from_panoptic_annos.py"},
        ),
    ),
    "coco_2017_{split}_stuff_10k_sem_seg": Builtin(
        task="semantic",
        evaluator_type="sem_seg",
        splits={"train": "train", "test": "test"},
        categories="coco_stuff_171",
        paths={
            "image_root": f"{STUFF_10K}/images_detectron2/{{folder}}",
            "sem_seg_root": f"{STUFF_10K}/annotations_detectron2/{{folder}}",
        },
        source=Source(
            title="COCO-Stuff 10K v1.0",
            made_by=dict.fromkeys(
                ("image_root", "sem_seg_root"), "prepare_coco_stuff_10k_v1.0_sem_seg.py"
            ),
        ),
        ids_in_results=True,
    ),
    "mapillary_vistas_sem_seg_{split}": Builtin(
        task="semantic",
        evaluator_type="sem_seg",
        splits=TRAIN_VAL,
        categories="mapillary_vistas_65",
        paths={
            "image_root": "mapillary_vistas/{folder}/images",
            "sem_seg_root": "mapillary_vistas/{folder}/labels",
        },
        source=Source(title="Mapillary Vistas v1.2"),
        ignore_label=65,
    ),
    "mapillary_vistas_panoptic_{split}": Builtin(
        task="panoptic",
        evaluator_type="mapillary_vistas_panoptic_seg",
        splits=TRAIN_VAL,
        categories="mapillary_vistas_65",
        paths={
            "image_root": "mapillary_vistas/{folder}/images",
            "panoptic_root": "mapillary_vistas/{folder}/panoptic",
            "panoptic_json": "mapillary_vistas/{folder}/panoptic/panoptic_2018.json",
            "sem_seg_root": "mapillary_vistas/{folder}/labels",
        },
        source=Source(title="Mapillary Vistas v1.2"),
        ignore_label=65,
        all_things=True,
    ),
}

CITYSCAPES = "prepare_cityscapes.py"
TRAIN_IDS = ("*/*_gtFine_labelTrainIds.png", CITYSCAPES)
PANOPTIC_IMGS = dict.fromkeys(("panoptic_root", "panoptic_json"), CITYSCAPES)
COCO_2017 = Source(title="COCO 2017")

# Those that Detectron2 registers, with its own loaders.
DETECTRON2_SOURCES = {
    "ade20k_sem_seg_{split}": Source(
        title="ADE20K, SceneParse150", made_by={"sem_seg_root": "prepare_ade20k_sem_seg.py"}
    ),
    "cityscapes_fine_instance_seg_{split}": Source(
        title="Cityscapes", modules=("cityscapesscripts", "shapely")
    ),
    "cityscapes_fine_sem_seg_{split}": Source(title="Cityscapes", probes={"gt_dir": TRAIN_IDS}),
    "cityscapes_fine_panoptic_{split}": Source(
        title="Cityscapes", made_by=PANOPTIC_IMGS, probes={"gt_dir": TRAIN_IDS}
    ),
    "coco_2017_{split}": COCO_2017,
    "coco_2017_{split}_panoptic": COCO_2017,
}

SOURCES: dict[str, Source] = {
    name.format(split=split): source
    for name, source in (
        *DETECTRON2_SOURCES.items(),
        *((name, builtin.source) for name, builtin in BUILTIN.items()),
    )
    for split in ("train", "val", "test")
}
