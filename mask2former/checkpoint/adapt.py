"""Fitting weights to a model that differs in classes, queries or Swin's window.

Each function takes the weights and those of the model, and returns what replaces the former, with
a sentence for the log. K classes of the model, J of the checkpoint.
"""

import math
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_PREDICTOR = "sem_seg_head.predictor."
CLASS_HEAD = (f"{_PREDICTOR}class_embed.weight", f"{_PREDICTOR}class_embed.bias")
QUERIES = (f"{_PREDICTOR}query_feat.weight", f"{_PREDICTOR}query_embed.weight")
Adapted = tuple[dict[str, Tensor], list[str]]


def adapt_classes(
    state: Mapping[str, Tensor],
    model_state: Mapping[str, Tensor],
    source_names: Sequence[str] | None,
    class_names: Sequence[str] | None,
) -> Adapted:
    """Rows of the class head by the names of the classes; the others stay as initialised.

    The last row, "no object", is always kept. Without names, or without any in common, a head of
    another size is left as initialised, and one of the same size taken over as it is.

    Args:
        source_names, class_names: J names of the checkpoint's classes, K of the model's.
    """
    if any(name not in state or name not in model_state for name in CLASS_HEAD):
        return {}, []
    weight = CLASS_HEAD[0]
    if state[weight].shape[1:] != model_state[weight].shape[1:]:
        return {}, []  # another width: nothing of it fits
    num_source, num_classes = (len(s[CLASS_HEAD[1]]) - 1 for s in (state, model_state))
    source_names = source_names if source_names and len(source_names) == num_source else None
    class_names = class_names if class_names and len(class_names) == num_classes else None
    if not source_names or not class_names:
        if num_source == num_classes:
            return {}, []
        return {name: model_state[name] for name in CLASS_HEAD}, [
            f"class head: initialised anew, for {num_classes} classes instead of {num_source}; the "
            f"names of the {'checkpoint' if not source_names else 'data set'}'s classes are unknown"
        ]
    if list(source_names) == list(class_names):
        return {}, []
    rows = match_classes(source_names, class_names)
    if num_source == num_classes and not any(row is not None for row in rows):
        return {}, ["class head: loaded as it is; none of its classes' names is known here"]
    pairs = [(new, old) for new, old in enumerate(rows) if old is not None]
    to, of = ([*column] for column in zip(*pairs, (num_classes, num_source), strict=True))
    adapted = {}
    for name in CLASS_HEAD:
        adapted[name] = model_state[name].clone()
        adapted[name][to] = state[name][of].to(adapted[name])
    kept = [class_names[new] for new, _ in pairs]
    fresh = [class_names[new] for new, old in enumerate(rows) if old is None]
    return adapted, [
        f"class head: {len(kept)} of {num_classes} rows by name ({', '.join(kept) or 'none'}); "
        f"{len(fresh)} new ({', '.join(fresh) or 'none'})"
    ]


def match_classes(source_names: Sequence[str], class_names: Sequence[str]) -> list[int | None]:
    """For each class the index of the source class of that name, or None.

    Case does not count, nor what COCO's panoptic names end in (-merged, -stuff, -other). Of
    synonyms, as ADE20K lists them with commas, the first ones are compared first, then any. No
    source class is taken twice.
    """
    sources = [_synonyms(name) for name in source_names]
    rows: list[int | None] = [None] * len(class_names)
    taken: set[int] = set()
    for depth in (1, None):  # the first synonym, then any
        for i, name in enumerate(class_names):
            wanted = _synonyms(name)[:depth]
            for j, synonyms in enumerate(sources):
                if rows[i] is None and j not in taken and set(wanted) & set(synonyms[:depth]):
                    rows[i] = j
                    taken.add(j)
    return rows


def _synonyms(name: str) -> list[str]:
    parts = (part.strip().lower() for part in re.split("[,;]", name))
    return [re.sub("-(other-)?(merged|stuff|other)$", "", part) for part in parts if part]


def adapt_queries(state: Mapping[str, Tensor], model_state: Mapping[str, Tensor]) -> Adapted:
    """The first queries are kept; those beyond the checkpoint's stay as initialised."""
    adapted, notes = {}, []
    for name in QUERIES:
        old, new = state.get(name), model_state.get(name)
        if old is None or new is None or len(old) == len(new) or old.shape[1:] != new.shape[1:]:
            continue
        count = min(len(old), len(new))
        adapted[name] = new.clone()
        adapted[name][:count] = old[:count].to(new)
        notes = [f"queries: {len(new)} instead of {len(old)}; the first {count} are loaded"]
    return adapted, notes


def adapt_windows(state: Mapping[str, Tensor], model_state: Mapping[str, Tensor]) -> Adapted:
    """Swin's bias tables ((2 w - 1)^2, heads) of another window size w, resized bicubically."""
    adapted = {}
    for name, old in state.items():
        new = model_state.get(name)
        if not name.endswith("relative_position_bias_table") or new is None:
            continue
        if old.shape == new.shape or old.shape[1] != new.shape[1]:
            continue
        old_side, new_side = (math.isqrt(len(table)) for table in (old, new))
        maps = old.float().t().reshape(1, -1, old_side, old_side)
        maps = F.interpolate(maps, size=(new_side, new_side), mode="bicubic", align_corners=False)
        adapted[name] = maps.flatten(2)[0].t().to(torch.float32)
    note = f"Swin: {len(adapted)} bias tables resized to another window size"
    return adapted, [note] if adapted else []
