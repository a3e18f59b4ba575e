"""What is wrong with a data set, before hours of training tell (docs/CHECK_DATASET.md).

``records`` needs no file but the annotations, ``annotations`` reads these as they were written,
``pictures`` opens every picture, ``report`` puts the three together, and ``sheet`` draws.
"""

from .findings import Finding, format_findings, has_errors
from .records import record_findings
from .report import DatasetReport, check_dataset

__all__ = [
    "DatasetReport",
    "Finding",
    "check_dataset",
    "format_findings",
    "has_errors",
    "record_findings",
]
