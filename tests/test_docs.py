"""The documents are true: examples run, links lead somewhere, tables are the results."""

import doctest
import importlib
import re
from pathlib import Path

import pytest
from segarena.datasets import images
from segarena.datasets.echo import images as echo_images
from segarena.datasets.echo import preparation
from segarena.datasets.liver import cases, lesions
from segarena.envs import rl4seg, spars

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize(
    ("module", "least"),
    [(spars, 6), (rl4seg, 6), (cases, 4), (lesions, 5), (echo_images, 4), (preparation, 5), (images, 6)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_examples_of_docstrings_run(module, least):
    failed, tried = doctest.testmod(module)
    assert tried >= least
    assert failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_configurations_exist(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    configurations = re.findall(r"configs/[\w/]+\.yaml", text)
    missing = [name for name in links if not (page.parent / name).exists()]
    missing += [name for name in configurations if not (ROOT / name).exists()]
    assert missing == []


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("tables")


@pytest.mark.parametrize(
    ("page", "folder", "number"),
    [
        ("spars", "spars_phantom", 1),
        ("spars", "spars_implanted", 1),
        ("spars", "spars_implanted_unseen_patient", 1),
        ("rl4seg", "rl4seg_phantom", 2),
        ("rl4seg", "rl4seg_camus", 2),
    ],
)
def test_the_tables_of_a_page_are_made_from_the_results(tables, page, folder, number):
    made = tables.tables_of(folder)
    assert len(made) == number
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert [table for table in made if table not in text] == []


@pytest.mark.parametrize("folder", ["spars_phantom", "rl4seg_phantom"])
def test_the_tables_of_the_readme_are_made_from_the_results(tables, folder):
    assert tables.readme_table(folder) in (ROOT / "README.md").read_text(encoding="utf-8")
