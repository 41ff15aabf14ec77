"""The page of a robustness report, and its figures."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..common.files import write_text

if TYPE_CHECKING:
    from .robustness_report import RobustnessReport

PAGE = "index.md"


def write_page(report: "RobustnessReport", folder: Path) -> Path:
    """Writes index.md into the folder; returns its path."""
    write_text(folder / PAGE, f"# Robustness\n\n{report.table()}\n")
    return folder / PAGE
