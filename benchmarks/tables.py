"""Prints the tables of README.md and docs/ from the result files in benchmarks/results: python benchmarks/tables.py"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from segarena.agents.papers import PAPERS
from segarena.agents.spars.evaluation import METRICS
from segarena.evaluation import echo
from segarena.evaluation.report import table
from segarena.evaluation.results import Result, read_results

RESULTS = Path(__file__).parent / "results"
SPARS = ("dice", "lesion_recall", *(METRICS[name] for name in ("terminal_hit", "steps", "windows")))
"""Columns of the tables of SPARS in docs/spars.md."""
SEARCH = ("dice", METRICS["dice_at_0.5"], "hd95_mm", "lesion_recall", METRICS["windows"], METRICS["found"])
"""Columns of the table of SPARS search."""
README = {
    "spars_phantom": (
        ("score map (mean)", "SPARS", "blind_walk"),
        ("dice", METRICS["terminal_hit"], METRICS["steps"]),
    ),
    "spars_search": (
        ("score map (mean)", "SPARS search", "search_gp_straddle", "search_random", "search_prior"),
        ("dice", METRICS["windows"], METRICS["found"]),
    ),
    "rl4seg_phantom": (
        ("source only", "gold and corrected self-training", "RL4Seg"),
        tuple(echo.METRICS[name] for name in ("dice_avg", "hd_epi_mm", "valid")),
    ),
}
"""Rows and columns of the tables in README.md, by the folder of their results."""
ROWS = {
    "SPARS": (
        *("position prior", "score map (mean)", "score map (min)", "score map (max)"),
        *("best window", "union of the k best windows", "stem read-out", "Grad-CAM", "Grad-CAM plus plus"),
        *("intensity in the liver", "3-D U-Net", "oracle_bfs"),
        *("blind_walk", "random", "constant0", "greedy", "SPARS, paper", "SPARS, window CNN"),
        *("SPARS", "SPARS, τ = 0.3", "single-agent PPO", "bfs_to_tau"),
        *(f"search_{name}" for name in ("prior", "random", "sub_lattice", "hill_climb", "best_first")),
        *(f"search_{name}" for name in ("coarse_to_fine", "atlas_to_fine", "gp_ucb", "gp_straddle", "thompson")),
        *("SPARS search", "SPARS search, single", "SPARS search, cooperative"),
        *("SPARS search, single, from equal chances", "SPARS search, single, 8 windows"),
        *(
            f"SPARS search, single, 8 windows, {more}"
            for more in ("twice as long", "features", "features, twice as long")
        ),
        "search_clairvoyant",
    ),
    "PPO": (
        *("random", "bim", "mi_fgsm", "segpgd", "cospgd", "masked_ce", "js", "rp_region", "rp_pgd", "rp_pgd_pp"),
        *("rp_global", "noop", "fgsm", "pgd", "open-loop schedule", "learned attack"),
    ),
    "SEAT": ("clean", "clean, 5 passes", "Free-5", "SEAT", "SEAT+", "PGD-AT", "TRADES"),
    "RL4Seg": (
        *("source only", "AdaBN", "entropy minimisation", "TI-ST", "UDAS", "corrector", "MC dropout", "ensemble"),
        *("AdaBN + corrector", "AdaBN + corrector where invalid"),
        *("test-time augmentation", "gold self-training", "gold and corrected self-training"),
        *("RL4Seg", "RL4Seg, softmax", "policy gradient", "oracle RL", "target-supervised"),
    ),
}
"""Rows of the tables of each paper: baselines, the method, its variants, upper bounds."""
PAGES = (
    "apga_full",
    "apga_shot100",
    "scene_trainings",
    *(f"spars_sweep_{name}" for name in ("cohorts", "rewards", "thresholds", "windows")),
)
"""Folders with a page of their own, which the program made."""


def ordered(folder: str) -> list[Result]:
    """The results of a folder below benchmarks/results, in the order of `ROWS`."""
    results = read_results(RESULTS / folder)
    return sorted(results, key=lambda result: (ROWS[result.paper].index(result.method), result.seed))


def tables_of(folder: str) -> list[str]:
    """The tables in docs/ of one folder of results."""
    results = ordered(folder)
    paper = PAPERS[results[0].paper.lower()]
    if results[0].paper != "SPARS":
        return paper.tables(results)
    return replace(paper, columns=SEARCH if folder.startswith("spars_search") else SPARS).tables(results)


def masks_table() -> str:
    """The table in docs/spars.md of the ways of making masks, by benchmarks/spars_masks.py."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for row in json.loads((RESULTS / "spars_masks.json").read_text())["rows"]:
        way = ("cells" if row["paint"] == "cells" else "windows", row["reduce"], row["upsample"], row["mask"])
        mean, low, high = (100 * value for value in row["interval"])
        rows.setdefault(way, {})[row["source"]] = f"{mean:.1f} [{low:.1f}, {high:.1f}]"
    sources = list(next(iter(rows.values())))
    head = ["paint", "reduce", "upsample", "evaluation.mask", *(f"{source}, Dice (%)" for source in sources)]
    cells = [head, *([*way, *(found[source] for source in sources)] for way, found in rows.items())]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    lines = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells]
    return "\n".join([lines[0], "| " + " | ".join("-" * width for width in widths) + " |", *lines[1:]])


def readme_table(folder: str) -> str:
    """The table in README.md of one folder of results, without the lines below it."""
    rows, columns = README[folder]
    results: Sequence[Result] = [result for result in ordered(folder) if result.method in rows]
    return table(results, columns).split("\n\n")[0]


if __name__ == "__main__":
    for folder in sorted(path.name for path in RESULTS.iterdir() if path.is_dir() and path.name not in PAGES):
        print(f"### {folder}\n\n" + "\n\n".join(tables_of(folder)) + "\n")
    print(f"### spars_masks\n\n{masks_table()}\n")
    for folder in README:
        print(f"### README.md, {folder}\n\n{readme_table(folder)}\n")
