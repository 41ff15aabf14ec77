"""Prints the tables of the pages in docs/ from the result files in benchmarks/results: python benchmarks/tables.py"""

from dataclasses import replace
from pathlib import Path

from segarena.agents.papers import PAPERS
from segarena.agents.spars.evaluation import METRICS
from segarena.evaluation.results import read_results

SPARS = ("dice", METRICS["dice_at_0.5"], "lesion_recall", METRICS["terminal_hit"], METRICS["steps"])


def tables_of(folder: Path) -> list[str]:
    """The tables of one folder of results."""
    results = read_results(folder)
    paper = PAPERS[results[0].paper.lower()]
    return replace(paper, columns=SPARS).tables(results) if results[0].paper == "SPARS" else paper.tables(results)


if __name__ == "__main__":
    for folder in sorted(path for path in (Path(__file__).parent / "results").iterdir() if path.is_dir()):
        print(f"### {folder.name}\n\n" + "\n\n".join(tables_of(folder)) + "\n")
