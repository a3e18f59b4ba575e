"""What the tests of tools/web_demo.py share: a predictor of which the answers are known."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata
from PIL import Image

from mask2former.inference import Instances, Options, Panoptic, Prediction, Semantic
from mask2former.inference.picture import as_array

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
pytest.importorskip("gradio", reason='the page needs gradio: pip install "gradio>=6.31"')
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import web_demo
import web_requests
from web.segmenting import Limits

__all__ = ["LIMITS", "NAMES", "Halves", "save_picture", "web_demo", "web_requests"]

NAMES = ("grass <b>", "car")
LIMITS = Limits(bytes=1 << 20, pixels=1_000_000)


QUERIES = SimpleNamespace(mask_logits=torch.zeros(2, 16, 16))


class Halves:
    """A predictor for which the left half is grass, surely, and the right a car, perhaps."""

    image_format = "RGB"
    categories = NAMES
    metadata = Metadata(
        stuff_classes=list(NAMES),
        thing_classes=list(NAMES),
        stuff_dataset_id_to_contiguous_id={10: 0},
        thing_dataset_id_to_contiguous_id={20: 1},
    )
    options = Options(overlap_threshold=0.7)
    model = SimpleNamespace(object_mask_threshold=0.5)

    def __init__(self):
        self.calls, self.options_seen = [], []

    def read(self, picture):
        return as_array(picture, "RGB")

    def resized(self, image):
        return image

    def predict(self, image):
        self.calls.append(image)
        return QUERIES

    def segment(self, prediction, size, options):
        assert prediction is QUERIES
        self.options_seen.append(options)
        height, width = size
        right = np.arange(width)[None].repeat(height, axis=0) >= width // 2
        scores = np.array([0.9, 0.6], np.float32)
        kept = scores >= options.score_threshold
        if "panoptic" in options.tasks:
            ids = (right + 1).astype(np.int32)
            found = [
                {"id": i + 1, "category_id": i, "isthing": bool(i), "score": scores[i]}
                for i in range(2)
            ]
            for i in np.flatnonzero(~kept):
                ids[ids == i + 1] = 0
            return Prediction(height, width, panoptic=Panoptic.of(ids, found, NAMES))
        if "instance" in options.tasks:
            masks = np.stack([np.ones_like(right), right])[kept]  # they overlap
            classes = np.array([0, 1])[kept]
            return Prediction(
                height, width, instances=Instances.of(masks, classes, scores[kept], NAMES)
            )
        return Prediction(height, width, semantic=Semantic(right.astype(np.int32), NAMES))


def save_picture(folder):
    path = folder / "street.jpg"
    Image.new("RGB", (600, 500), (90, 120, 40)).save(path)
    return path
