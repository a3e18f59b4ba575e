"""One finding about a data set, and how many of them are shown."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a data set that is wrong (error) or worth knowing (warning).

    An error ends training or evaluation, or makes them learn or score something wrong.
    """

    severity: Severity
    kind: str
    """What findings are grouped by: the same few words for the same fault."""
    file: str
    """Path of the file to look into, or the data set's name where there is none."""
    id: str
    """What in the file: ``image id 3, annotation id 17``."""
    message: str
    """What is wrong, and what to do about it."""

    def __str__(self) -> str:
        return f"{self.file} ({self.id}): {self.message}"


def record_id(record: Mapping[str, Any], key: str = "", value: Any = None) -> str:
    """``image id 3``, or with a part of the record, ``image id 3, annotation id 17``."""
    where = f"image id {record.get('image_id')}"
    return f"{where}, {key} {value}" if key else where


def annotation_id(record: Mapping[str, Any], index: int) -> str:
    """Names an annotation: by its id, or where Detectron2 has dropped that, by its position."""
    annotation = record["annotations"][index]
    if "id" in annotation:
        return record_id(record, "annotation id", annotation["id"])
    return record_id(record, "annotation number", index + 1)


def has_errors(findings: Iterable[Finding]) -> bool:
    return any(finding.severity == "error" for finding in findings)


def format_findings(findings: Iterable[Finding], *, limit: int | None = 5) -> str:
    """Findings of one kind under one heading, errors first; "" if there are none.

    Args:
        limit: how many of a kind are shown; None: all.
    """
    groups: dict[tuple[Severity, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.severity, finding.kind), []).append(finding)
    lines = []
    # "error" sorts before "warning"; within a severity the kinds stay in the order of the checks.
    for (severity, kind), group in sorted(groups.items(), key=lambda item: item[0][0]):
        lines.append(f"{severity.upper()} {kind} ({len(group)})")
        lines += [f"  {finding}" for finding in group[:limit]]
        if left := len(group) - len(group[:limit]):
            lines.append(f"  ... and {left} more")
    return "\n".join(lines)
