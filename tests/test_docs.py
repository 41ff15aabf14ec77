"""What the documents say is true: examples run, links lead somewhere, tables are the results."""

import doctest
import re
from pathlib import Path

import pytest
from segarena.agents.papers import PAPERS
from segarena.agents.spars.evaluation import METRICS
from segarena.envs import rl4seg, spars
from segarena.evaluation import echo
from segarena.evaluation.report import table
from segarena.evaluation.results import read_results

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("module", [spars, rl4seg], ids=lambda module: module.__name__)
def test_the_examples_of_the_environment_run(module):
    failed, tried = doctest.testmod(module)
    assert tried >= 6
    assert failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_configurations_exist(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    configurations = re.findall(r"configs/[\w/]+\.yaml", text)
    missing = [name for name in links if not (page.parent / name).exists()]
    missing += [name for name in configurations if not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize("folder", ["spars_phantom", "spars_implanted", "spars_implanted_unseen_patient"])
def test_the_tables_of_the_page_are_made_from_the_results(folder):
    columns = ("dice", METRICS["dice_at_0.5"], "lesion_recall", METRICS["terminal_hit"], METRICS["steps"])
    made = table(read_results(ROOT / "benchmarks" / "results" / folder), columns, baseline="score map (mean)")
    page = (ROOT / "docs" / "spars.md").read_text(encoding="utf-8")
    assert all(line in page for line in made.splitlines())


@pytest.mark.parametrize("folder", ["rl4seg_phantom", "rl4seg_camus"])
def test_the_tables_of_the_second_page_are_made_from_the_results(folder):
    made = PAPERS["rl4seg"].tables(read_results(ROOT / "benchmarks" / "results" / folder))
    assert len(made) == 2
    page = (ROOT / "docs" / "rl4seg.md").read_text(encoding="utf-8")
    assert all(line in page for text in made for line in text.splitlines())


def test_the_table_of_the_readme_is_made_from_the_results():
    results = read_results(ROOT / "benchmarks" / "results" / "spars_phantom")
    made = table(results, ("dice", METRICS["terminal_hit"], METRICS["steps"])).split("\n\n")[0]
    assert made in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_second_table_of_the_readme_is_made_from_the_results():
    results = read_results(ROOT / "benchmarks" / "results" / "rl4seg_phantom")
    made = table(results, [echo.METRICS[name] for name in ("dice_avg", "hd_epi_mm", "valid")]).split("\n\n")[0]
    assert made in (ROOT / "README.md").read_text(encoding="utf-8")
