"""Loading weights into a model, and saying what was loaded."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tabulate import tabulate
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import ConfigError
from .adapt import CLASS_HEAD, QUERIES, adapt_classes, adapt_queries, adapt_windows
from .names import to_current_names
from .reading import read_state_dict

logger = logging.getLogger(__name__)

MODULES = ("backbone", "sem_seg_head.pixel_decoder", "sem_seg_head.predictor")
# What follows from the configuration: never taken from a file, which may be of another one.
_DERIVED = ("relative_position_index", "criterion.empty_weight")
_NO_LOSS = (*_DERIVED, "num_batches_tracked")  # nothing is amiss without these


@dataclass
class LoadReport:
    """What became of the weights of a checkpoint.

    Attributes:
        loaded: per module of :data:`MODULES` the numbers loaded, and those that there are.
        missing: names of the model that the checkpoint lacks.
        unexpected: names of the checkpoint that the model lacks.
        mismatched: names, with the checkpoint's and the model's shape.
        notes: what was adapted, in words.
    """

    loaded: dict[str, tuple[int, int]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [
            (module, f"{100 * loaded / total:.1f} %", f"{loaded:,} of {total:,}")
            for module, (loaded, total) in self.loaded.items()
            if total
        ]
        lines = [tabulate(rows, headers=("module", "loaded", "numbers"))]
        shapes = [f"{n} {list(a)} instead of {list(b)}" for n, (a, b) in self.mismatched.items()]
        for title, names in (
            ("not in the file", self.missing),
            ("not in the model", self.unexpected),
            ("of another shape", shapes),
        ):
            if names:
                lines.append(f"{title}: {_shorten(names)}")
        return "\n".join([*lines, *self.notes])


def load_weights(
    model: nn.Module,
    path: str,
    *,
    class_names: Sequence[str] | None = None,
    source_class_names: Sequence[str] | None = None,
    complete: bool = False,
) -> LoadReport:
    """Load a checkpoint of this model, in any layout, or weights of its backbone; log what loaded.

    Args:
        path: a file, an address that Detectron2 can fetch, or a ``zoo://`` name.
        class_names: of the model's classes, in order.
        source_class_names: of the checkpoint's classes, unless it has them itself.
        complete: the model is to be used as it is: all of it must load, and nothing is adapted.

    Raises:
        ConfigError: the file cannot be read or is refused, or ``complete`` and something is
            missing or has another shape.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    checkpoint = read_state_dict(path)
    model_state = model.state_dict()
    state = to_current_names(checkpoint, model_state)
    report = LoadReport()
    if not complete:
        source_class_names = checkpoint.class_names or source_class_names
        for changed, notes in (
            adapt_windows(state, model_state),
            adapt_queries(state, model_state),
            adapt_classes(state, model_state, source_class_names, class_names),
        ):
            state |= changed
            report.notes += notes
    _compare(report, state, model_state)
    if class_names and checkpoint.class_names and complete:
        _compare_classes(path, checkpoint.class_names, class_names)
    if complete and (report.missing or report.mismatched):
        raise ConfigError(_refusal(path, report))
    if not any(loaded for loaded, _ in report.loaded.values()):
        theirs, ours = (", ".join(sorted(names)[:3]) for names in (state, model_state))
        raise ConfigError(
            f"nothing in {path} fits this model, which would start from random weights: its first "
            f"names are {theirs}, the model's {ours}"
        )
    fitting = {
        name: tensor
        for name, tensor in state.items()
        if name in model_state
        and tensor.shape == model_state[name].shape
        and not name.endswith(_DERIVED)
    }
    model.load_state_dict(fitting, strict=False)
    logger.info("weights of %s\n%s", path, report)
    if unused := [name for name in report.unexpected if name.startswith(MODULES)]:
        logger.log(
            logging.WARNING if complete else logging.INFO,
            "%s holds %d parameters that this model has no place for (%s): is the config the one "
            "that it was trained with?",
            *(path, len(unused), _shorten(unused, 2)),
        )
    return report


def _compare(
    report: LoadReport, state: Mapping[str, Tensor], model_state: Mapping[str, Tensor]
) -> None:
    report.loaded = dict.fromkeys(MODULES, (0, 0))
    for name, tensor in model_state.items():
        if name.endswith(_NO_LOSS):
            continue
        fits = name in state and state[name].shape == tensor.shape
        if name not in state:
            report.missing.append(name)
        elif not fits:
            report.mismatched[name] = (tuple(state[name].shape), tuple(tensor.shape))
        for module in MODULES:
            if name.startswith(f"{module}."):
                loaded, total = report.loaded[module]
                count = tensor.numel()
                report.loaded[module] = (loaded + count * fits, total + count)
    report.unexpected = [n for n in state if n not in model_state and not n.endswith(_NO_LOSS)]


def _compare_classes(path: str, trained: Sequence[str], wanted: Sequence[str]) -> None:
    for index, (name, other) in enumerate(zip(trained, wanted)):
        if name != other:
            logger.warning(
                "class %d of %s is %r, and %r in the data set: one is scored as the other, unless "
                "these are two names of the same",
                *(index, path, name, other),
            )
            return


def _refusal(path: str, report: LoadReport) -> str:
    head = f"{path} does not hold this model, which would be evaluated with random weights: "
    for name, what, key, extra in (
        (CLASS_HEAD[1], "its class head is for", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 1),
        (QUERIES[0], "its queries number", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 0),
    ):
        theirs, ours = (shape[0] - extra for shape in report.mismatched.get(name, ((0,), (0,))))
        if theirs != ours:
            return (
                f"{head}{what} {theirs}, {key} is {ours}; take the config it was trained with, or "
                "train it further with this one first"
            )
    if all(loaded == 0 for module, (loaded, _) in report.loaded.items() if module != "backbone"):
        return (
            f"{head}there is nothing of the heads in it, as in weights for a backbone; give "
            "MODEL.WEIGHTS a trained model"
        )
    wrong = [*report.missing, *report.mismatched]
    return (
        f"{head}{len(wrong)} parameters are missing or have another shape ({_shorten(wrong)}); "
        "take the config it was trained with"
    )


def _shorten(names: Sequence[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
