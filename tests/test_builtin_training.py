"""Every builtin data set: prepared from a tiny tree in its official layout, two steps, evaluated.

With its published config, on a model that is much smaller.
"""

import importlib.util
import math
from pathlib import Path

import pytest
from builtin_trees import (
    paint_ade20k,
    paint_ade20k_full,
    paint_cityscapes,
    paint_coco,
    paint_coco_stuff_10k,
    paint_mapillary_vistas,
    registered_below,
    script,
)

from mask2former import load_config
from mask2former.trainer import Trainer, check_names

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
CITYSCAPES = importlib.util.find_spec("cityscapesscripts") and importlib.util.find_spec("shapely")

TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 64,
    "MODEL.MASK_FORMER.DEC_LAYERS": 4,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 10,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 64,
    "INPUT.IMAGE_SIZE": 64,
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MAX_SIZE_TRAIN": 128,
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 128,
    "INPUT.CROP.SIZE": (64, 64),
    "INPUT.SIZE_DIVISIBILITY": 64,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.AMP.ENABLED": False,
    "TEST.EVAL_PERIOD": 2,
}

SEMANTIC = {"sem_seg": "mIoU"}
INSTANCE = {"segm": "AP"}
PANOPTIC = {"panoptic_seg": "PQ", "sem_seg": "mIoU", "segm": "AP"}

# Data set, painter, preparation, published config, other settings, results.
ADE20K_SCRIPTS = ["ade20k_sem_seg", "ade20k_ins_seg", "ade20k_pan_seg"]
COCO_SCRIPTS = ["coco_semantic_annos_from_panoptic_annos"]
CASES = [
    ("ade20k_sem_seg_val", paint_ade20k, ADE20K_SCRIPTS[:1], "ade20k/semantic", {}, SEMANTIC),
    ("ade20k_instance_val", paint_ade20k, ADE20K_SCRIPTS[1:2], "ade20k/instance", {}, INSTANCE),
    ("ade20k_panoptic_val", paint_ade20k, ADE20K_SCRIPTS, "ade20k/panoptic", {}, PANOPTIC),
    (
        "ade20k_full_sem_seg_val",
        paint_ade20k_full,
        ["ade20k_full_sem_seg"],
        "ade20k/semantic",
        {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 847, "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": 65535},
        SEMANTIC,
    ),
    ("coco_2017_val", paint_coco, [], "coco/instance", {}, INSTANCE),
    ("coco_2017_val_panoptic", paint_coco, [], "coco/panoptic", {}, PANOPTIC),
    (
        "coco_2017_val_panoptic_with_sem_seg",
        paint_coco,
        COCO_SCRIPTS,
        "coco/panoptic",
        {},
        PANOPTIC,
    ),
    (
        "coco_2017_test_stuff_10k_sem_seg",
        paint_coco_stuff_10k,
        ["coco_stuff_10k_v1.0_sem_seg"],
        "ade20k/semantic",
        {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 171},
        SEMANTIC,
    ),
    (
        "mapillary_vistas_sem_seg_val",
        paint_mapillary_vistas,
        ["mapillary_vistas"],
        "mapillary-vistas/semantic",
        {},
        SEMANTIC,
    ),
    (
        "mapillary_vistas_panoptic_val",
        paint_mapillary_vistas,
        ["mapillary_vistas"],
        "mapillary-vistas/panoptic",
        {},
        {"panoptic_seg": "PQ", "sem_seg": "mIoU"},
    ),
    *(
        pytest.param(
            *(f"cityscapes_fine_{name}_val", paint_cityscapes, ["cityscapes"]),
            *(f"cityscapes/{task}", {}, results),
            marks=pytest.mark.skipif(not CITYSCAPES, reason="needs cityscapesscripts and shapely"),
            id=f"cityscapes_fine_{name}_val",
        )
        for name, task, results in (
            ("sem_seg", "semantic", {"sem_seg": "IoU"}),
            ("instance_seg", "instance", INSTANCE),
            ("panoptic", "panoptic", PANOPTIC | {"sem_seg": "IoU"}),
        )
    ),
]


@pytest.mark.parametrize(
    "name, paint, scripts, published, settings, expected",
    [case if hasattr(case, "values") else pytest.param(*case, id=case[0]) for case in CASES],
)
def test_prepared_trained_evaluated(tmp_path, name, paint, scripts, published, settings, expected):
    with registered_below(tmp_path):
        paint(tmp_path)
        split = "test" if "test" in name else "val"
        for prepare in scripts:
            arguments = ["--root", str(tmp_path), "--splits", split, "--workers", "1"]
            assert script(f"prepare_{prepare}.py").main(arguments) == 0

        (config_file,) = CONFIGS.glob(f"{published}-segmentation/maskformer*_R50_*.yaml")
        names = {"DATASETS.TRAIN": (name,), "DATASETS.TEST": (name,)}
        options = TINY | names | settings | {"OUTPUT_DIR": str(tmp_path / "output")}
        cfg = load_config(config_file, [x for item in options.items() for x in item])
        check_names(cfg, training=True, weights=True)
        trainer = Trainer(cfg)
        trainer.train()
    results = trainer._last_eval_results
    assert trainer.iter == 2
    assert math.isfinite(trainer.storage.latest()["total_loss"][0])
    for kind, figure in expected.items():
        assert 0 <= results[kind][figure] <= 100, kind
