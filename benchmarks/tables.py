"""Prints the tables of docs/spars.md from the result files in benchmarks/results: python benchmarks/tables.py"""

from pathlib import Path

from segarena.evaluation.report import table
from segarena.evaluation.results import read_results

METRICS = ("dice", "dice_at_0.5", "lesion_recall", "terminal_hit", "steps")

if __name__ == "__main__":
    for folder in sorted(path for path in (Path(__file__).parent / "results").iterdir() if path.is_dir()):
        print(f"### {folder.name}\n\n{table(read_results(folder), METRICS, baseline='score map (mean)')}\n")
