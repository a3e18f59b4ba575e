"""The augmentations of the published recipes, built from Detectron2's."""

import inspect
import logging

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform

logger = logging.getLogger(__name__)
COLOUR_FORMATS = ("RGB", "BGR")


def build_resize_augmentation(
    cfg: CfgNode, *, crop_by_category: bool, ignore_label: int
) -> list[T.Augmentation]:
    """``mask_former_*`` mappers: resize, crop, colour jitter, flip.

    Args:
        crop_by_category: heed ``INPUT.CROP.SINGLE_CATEGORY_MAX_AREA``; takes semantic label maps.
        ignore_label: the value in these that is no category.
    """
    sizes = (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)
    augmentations: list[T.Augmentation] = [T.ResizeShortestEdge(*sizes)]
    crop = cfg.INPUT.CROP
    if crop.ENABLED and not crop_by_category:
        augmentations.append(T.RandomCrop(crop.TYPE, crop.SIZE))
    elif crop.ENABLED:
        augmentations.append(
            T.RandomCrop_CategoryAreaConstraint(
                crop.TYPE,
                crop.SIZE,
                crop.SINGLE_CATEGORY_MAX_AREA,
                ignore_label,
            )
        )
    if cfg.INPUT.COLOR_AUG_SSD and cfg.INPUT.FORMAT in COLOUR_FORMATS:
        augmentations.append(RandomColorSSD(cfg.INPUT.FORMAT))
    elif cfg.INPUT.COLOR_AUG_SSD:
        logger.warning(
            "INPUT.COLOR_AUG_SSD is left out: pictures of INPUT.FORMAT %s have no 8-bit colours",
            cfg.INPUT.FORMAT,
        )
    return augmentations + _flip(cfg)


def build_large_scale_jitter(cfg: CfgNode, padding: float) -> list[T.Augmentation]:
    """``coco_*_lsj`` mappers: flip, then large-scale jitter into a square of fixed size.

    Args:
        padding: what pictures get beyond their border.
    """
    side = cfg.INPUT.IMAGE_SIZE
    # Detectron2 0.6 pads masks with 0; today's has an argument for it, which is 255 by default.
    parameters = inspect.signature(T.FixedSizeCrop).parameters
    label_padding = {"seg_pad_value": 0} if "seg_pad_value" in parameters else {}
    return [
        *_flip(cfg),
        T.ResizeScale(
            min_scale=cfg.INPUT.MIN_SCALE,
            max_scale=cfg.INPUT.MAX_SCALE,
            target_height=side,
            target_width=side,
        ),
        T.FixedSizeCrop(crop_size=(side, side), pad_value=padding, **label_padding),
    ]


def _flip(cfg: CfgNode) -> list[T.Augmentation]:
    direction = cfg.INPUT.RANDOM_FLIP
    if direction == "none":
        return []
    return [T.RandomFlip(horizontal=direction == "horizontal", vertical=direction == "vertical")]


class RandomColorSSD(T.Augmentation):
    """Brightness, contrast, saturation and hue, each with probability 1/2 (SSD, Liu et al. 2016).

    Contrast comes either before or after saturation and hue.
    """

    def __init__(
        self,
        image_format: str,
        *,
        brightness: int = 32,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: int = 18,
    ) -> None:
        """
        Args:
            image_format: RGB or BGR.
            brightness: largest shift, in units of 8-bit pixels.
            contrast, saturation: ranges of the factors.
            hue: largest shift, in units of 2 degrees.
        """
        super().__init__()
        if image_format not in COLOUR_FORMATS:
            raise ValueError(f"INPUT.FORMAT is {image_format}; colour jitter needs RGB or BGR")
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> Transform:
        def draw(low: float, high: float) -> float | None:
            return np.random.uniform(low, high) if np.random.rand() < 0.5 else None

        return ColorSSDTransform(
            image_format=self.image_format,
            brightness=draw(-self.brightness, self.brightness),
            contrast=draw(*self.contrast),
            saturation=draw(*self.saturation),
            hue=draw(-self.hue, self.hue),
            contrast_first=bool(np.random.rand() < 0.5),
        )


class ColorSSDTransform(Transform):
    """A fixed colour change; ``None`` leaves that property alone. Geometry is untouched."""

    def __init__(
        self,
        *,
        image_format: str,
        brightness: float | None,
        contrast: float | None,
        saturation: float | None,
        hue: float | None,
        contrast_first: bool,
    ) -> None:
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: np.ndarray, interp: str | None = None) -> np.ndarray:
        """(h, w, 3) uint8 -> (h, w, 3) uint8."""
        if self.brightness is not None:
            img = _affine(img, 1.0, self.brightness)
        if self.contrast is not None and self.contrast_first:
            img = _affine(img, self.contrast, 0.0)
        if self.saturation is not None or self.hue is not None:
            img = self._saturation_and_hue(img)
        if self.contrast is not None and not self.contrast_first:
            img = _affine(img, self.contrast, 0.0)
        return img

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation

    def _saturation_and_hue(self, img: np.ndarray) -> np.ndarray:
        rgb = self.image_format == "RGB"
        hsv = cv2.cvtColor(img, cv2.COLOR_RGB2HSV if rgb else cv2.COLOR_BGR2HSV)
        if self.saturation is not None:
            hsv[..., 1] = _affine(hsv[..., 1], self.saturation, 0.0)
        if self.hue is not None:
            # OpenCV stores the hue of 8-bit pictures as degrees / 2.
            hsv[..., 0] = (hsv[..., 0].astype(int) + int(self.hue)) % 180
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB if rgb else cv2.COLOR_HSV2BGR)


def _affine(img: np.ndarray, factor: float, shift: float) -> np.ndarray:
    return np.clip(img.astype(np.float32) * factor + shift, 0, 255).astype(np.uint8)
