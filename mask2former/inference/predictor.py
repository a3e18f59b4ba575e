"""Pictures in, segmentations out."""

import dataclasses
import math
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from PIL import Image

from ..checkpoint import find_model, load_weights
from ..checkpoint.classes import know_classes
from ..checkpoint.zoo import PREFIX
from ..config import adapt_to_machine, read_config
from ..data import class_names
from ..data.dataset_mapper import to_tensor
from ..errors import ConfigError
from ..modeling.fusion import prepare_for_inference
from ..modeling.meta_arch import QueryPrediction
from ..modeling.postprocessing import instance_inference, panoptic_inference, semantic_labels
from .cleanup import replace_small_regions
from .picture import Picture, as_array
from .prediction import Instances, Panoptic, Prediction, Semantic

TASKS = ("panoptic", "instance", "semantic")
INSTANCE_SCORE = 0.5  # least score of instances, where no threshold is given


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a predictor makes of the model's queries.

    Attributes:
        tasks: which segmentations to make, of ``TASKS``.
        score_threshold: least score of an instance, and least class probability of a query that
            takes part in a panoptic segmentation; None: 0.5 and the config's
            ``OBJECT_MASK_THRESHOLD``.
        overlap_threshold: a panoptic segment that keeps less of its area than this is dropped.
        minimum_area: instances and panoptic segments of fewer pixels are dropped.
        clean_up: connected regions of fewer pixels are given to their surroundings: holes are
            filled, islands removed.
        one_label_per_query: an object is one instance, of its best class. Otherwise, as COCO's AP
            rewards, it may be several of different classes.
        most_instances: of a picture.
    """

    tasks: tuple[str, ...] = TASKS
    score_threshold: float | None = None
    overlap_threshold: float = 0.8
    minimum_area: int = 0
    clean_up: int = 0
    one_label_per_query: bool = False
    most_instances: int = 100

    def __post_init__(self) -> None:
        unknown = set(self.tasks) - set(TASKS)
        if unknown or not self.tasks or isinstance(self.tasks, str):
            raise ValueError(f"tasks is {self.tasks!r}; it must be some of {TASKS}, as a tuple")
        for name in ("score_threshold", "overlap_threshold"):
            value = getattr(self, name)
            if value is None and name == "score_threshold":
                continue
            if value is None or not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it must be in [0, 1]")
        for name in ("minimum_area", "clean_up", "most_instances"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")


class Predictor:
    """A model with its weights, ready for pictures. Threads may share it.

        predictor = Predictor("zoo://coco/panoptic/R50")
        prediction = predictor("street.jpg", score_threshold=0.7)
        for segment in prediction.panoptic.segments:
            print(segment.category, segment.score, segment.box)

    Attributes:
        options: those that a call without others uses: the tasks and thresholds of the config.
        image_format: channels that the model takes, ``INPUT.FORMAT``.
        metadata: class names and colours of ``DATASETS.TEST[0]``; without it those of the
            checkpoint; where neither names classes, numbers.
        categories: the names of the K classes.
    """

    def __init__(
        self,
        config: CfgNode | str | os.PathLike,
        weights: str | os.PathLike | None = None,
        *,
        overrides: Sequence[str] = (),
    ) -> None:
        """
        Args:
            config: a config, the path of its YAML file, or a published model by name
                (``zoo://coco/panoptic/R50``), whose weights are used unless others are given.
            weights: path of a checkpoint; by default the config's ``MODEL.WEIGHTS``.
            overrides: ``[KEY, VALUE, ...]``, in place of the config's.

        Raises:
            ConfigError: there are no weights, they do not fit, or the data set has another number
                of classes.
        """
        cfg = config_of(config, overrides)
        if weights is not None:
            cfg.MODEL.WEIGHTS = os.fspath(weights)
        if not cfg.MODEL.WEIGHTS:
            raise ConfigError("there are no weights: name a checkpoint (--weights, MODEL.WEIGHTS)")
        know_classes(cfg)
        adapt_to_machine(cfg)
        self.metadata, self.categories = metadata_of(cfg), categories_of(cfg)
        self.model = build_model(cfg).eval()
        load_weights(self.model, cfg.MODEL.WEIGHTS, complete=True)
        prepare_for_inference(self.model, cfg.TEST.COMPILE)
        self.image_format = cfg.INPUT.FORMAT
        self.resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        switches = (self.model.panoptic_on, self.model.instance_on, self.model.semantic_on)
        self.options = Options(
            tasks=tuple(task for task, on in zip(TASKS, switches) if on) or TASKS,
            overlap_threshold=self.model.overlap_threshold,
            most_instances=self.model.test_topk_per_image,
        )
        self._lock = threading.Lock()

    def __call__(
        self,
        picture: Picture | Sequence[Picture],
        options: Options | None = None,
        **changes: object,
    ) -> Prediction | list[Prediction]:
        """Segment a picture, or each of a list.

        Args:
            picture: a path, a PIL image, an array or a tensor, see :func:`as_array`; or a list.
            options: by default the predictor's own.
            changes: single fields of :class:`Options`.

        Returns:
            The prediction, or a list; those of a list are what each picture gives alone.
        """
        options = dataclasses.replace(options or self.options, **changes)
        if isinstance(picture, list | tuple):
            return list(self.stream(picture, options))
        return next(self.stream([picture], options))

    def stream(
        self, pictures: Iterable[Picture], options: Options | None = None
    ) -> Iterator[Prediction]:
        """Predictions of pictures, one after the other, as they are asked for."""
        for picture in pictures:
            yield self.run(self.read(picture), options)

    def read(self, picture: Picture) -> np.ndarray:
        """A picture (H, W, C), channels as ``image_format`` says; raises what `as_array` does."""
        return as_array(picture, self.image_format)

    def run(
        self, image: np.ndarray, options: Options | None = None, *, most_pixels: int | None = None
    ) -> Prediction:
        """Segment a picture that was :meth:`read`.

        Args:
            most_pixels: that the model sees; the picture is made smaller than the config says where
                that would be more.
        """
        prediction = self.predict(self.resized(image, most_pixels))
        return self.segment(prediction, image.shape[:2], options or self.options)

    def resized(self, image: np.ndarray, most_pixels: int | None = None) -> np.ndarray:
        """A picture (H, W, C) at the size that the config tests at."""
        transform = self.resize.get_transform(image)
        height, width = image.shape[:2]
        if isinstance(transform, T.ResizeTransform):
            height, width = transform.new_h, transform.new_w
        shrink = min(1.0, math.sqrt((most_pixels or math.inf) / max(1, height * width)))
        # Of a line of pixels, the transform would leave none.
        new_size = tuple(max(1, int(side * shrink)) for side in (height, width))
        if new_size == image.shape[:2]:
            return image
        return T.ResizeTransform(*image.shape[:2], *new_size, Image.BILINEAR).apply_image(image)

    @torch.inference_mode()
    def predict(self, image: np.ndarray) -> QueryPrediction:
        """Classes and masks in a picture (h, w, C) that is of the model's size already."""
        with self._lock:  # two at a time would only take the processor from each other
            return self.model.predict([to_tensor(image)])[0]

    @torch.inference_mode()
    def segment(
        self, prediction: QueryPrediction, size: tuple[int, int], options: Options
    ) -> Prediction:
        """What the classes and masks amount to in a picture of (height, width)."""
        results = {}
        if "panoptic" in options.tasks:
            results["panoptic"] = self._panoptic(prediction, size, options)
        if "instance" in options.tasks:
            results["instances"] = self._instances(prediction, size, options)
        if "semantic" in options.tasks:
            results["semantic"] = self._semantic(prediction, size, options)
        return Prediction(*size, **results)

    def _panoptic(
        self, prediction: QueryPrediction, size: tuple[int, int], options: Options
    ) -> Panoptic:
        threshold = options.score_threshold
        ids, segments = panoptic_inference(
            prediction.class_logits,
            prediction.mask_logits,
            prediction.resize_to(size),
            thing_ids=self.model.thing_ids,
            object_mask_threshold=(
                self.model.object_mask_threshold if threshold is None else threshold
            ),
            overlap_threshold=options.overlap_threshold,
        )
        ids = ids.cpu().numpy()
        if options.clean_up:
            ids = replace_small_regions(ids, options.clean_up)
        return Panoptic.of(ids, segments, self.categories, least_area=options.minimum_area)

    def _instances(
        self, prediction: QueryPrediction, size: tuple[int, int], options: Options
    ) -> Instances:
        threshold = options.score_threshold
        found = instance_inference(
            prediction.class_logits,
            prediction.mask_logits,
            prediction.resize_to(size),
            topk=options.most_instances,
            thing_ids=self.model.thing_ids,
            one_label_per_query=options.one_label_per_query,
            score_threshold=INSTANCE_SCORE if threshold is None else threshold,
        )
        masks = found.pred_masks.cpu().numpy()
        if options.clean_up:
            for mask in masks:
                mask[:] = replace_small_regions(mask, options.clean_up)
        return Instances.of(
            masks,
            found.pred_classes.cpu().numpy(),
            found.scores.cpu().numpy(),
            self.categories,
            least_area=options.minimum_area,
        )

    def _semantic(
        self, prediction: QueryPrediction, size: tuple[int, int], options: Options
    ) -> Semantic:
        scores = self.model.semantic_scores(prediction, size)
        labels = torch.empty(size, dtype=torch.int32)
        for rows, band in scores.bands():
            labels[rows] = semantic_labels(band).to(labels.dtype).cpu()
        labels = labels.numpy()
        if options.clean_up:
            labels = replace_small_regions(labels, options.clean_up)
        return Semantic(labels, self.categories)


def config_of(config: CfgNode | str | os.PathLike, overrides: Sequence[str]) -> CfgNode:
    """A config of one's own: a copy, or read from a file, or that of a published model."""
    if isinstance(config, CfgNode):
        cfg = config.clone()
        cfg.defrost()
        cfg.merge_from_list(list(overrides))
        return cfg
    model = find_model(os.fspath(config)) if os.fspath(config).startswith(PREFIX) else None
    if model is None:
        return read_config(config, overrides)
    path = Path(__file__).resolve().parents[2] / model.config
    if not path.is_file():
        raise ConfigError(
            f"{config}: {path} does not exist; the configs are in Mask2Former's checkout: pass the "
            f"path of {model.config} there, and weights={os.fspath(config)!r}"
        )
    return read_config(path, ["MODEL.WEIGHTS", os.fspath(config), *overrides])


def categories_of(cfg: CfgNode) -> tuple[str, ...]:
    """The names of the K classes that a config is about; numbers where nothing names them."""
    names = class_names(metadata_of(cfg).name)
    return tuple(names or (f"class {i}" for i in range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)))


def metadata_of(cfg: CfgNode) -> Metadata:
    """Class names and colours of the data set that a config is about, or numbers for names.

    Raises:
        ConfigError: the data set has another number of classes than the model.
    """
    num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    if not names:
        metadata = MetadataCatalog.get(f"{num_classes} classes without names")
        classes = [f"class {i}" for i in range(num_classes)]
        metadata.set(thing_classes=classes, stuff_classes=classes)
        return metadata
    classes = class_names(names[0])
    if classes is not None and len(classes) != num_classes:
        raise ConfigError(
            f"data set {names[0]} has {len(classes)} classes, the model "
            f"(MODEL.SEM_SEG_HEAD.NUM_CLASSES) {num_classes}; let DATASETS.TEST name the data set "
            "that the weights were trained for, or none: ()"
        )
    return MetadataCatalog.get(names[0])
