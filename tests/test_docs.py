"""The documents are true: examples run, links lead somewhere, tables are the results."""

import doctest
import importlib
import importlib.util
import re
import shlex
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from segarena.agents import packaged
from segarena.agents.catalogue import schema
from segarena.agents.commands import COMMANDS
from segarena.agents.schema import keys
from segarena.datasets import images
from segarena.datasets.echo import images as echo_images
from segarena.datasets.echo import preparation
from segarena.datasets.liver import cases, lesions, slices
from segarena.envs import apga, attack_tasks, rl4seg, seat_attack, spars

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize(
    ("module", "least"),
    [
        (spars, 6),
        (rl4seg, 6),
        (cases, 4),
        (lesions, 5),
        (echo_images, 4),
        (preparation, 5),
        (images, 6),
        (slices, 3),
        (attack_tasks, 6),
        (apga, 6),
        (seat_attack, 7),
    ],
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
        ("spars", "spars_search", 1),
        ("spars", "spars_search_8", 1),
        ("spars", "spars_baselines", 1),
        ("spars", "spars_implanted", 1),
        ("spars", "spars_implanted_unseen_patient", 1),
        ("rp-pgd", "scene_learned_attack", 1),
        ("rl4seg", "rl4seg_phantom", 3),
        ("rl4seg", "rl4seg_camus", 3),
    ],
)
def test_the_tables_of_a_page_are_made_from_the_results(tables, page, folder, number):
    made = tables.tables_of(folder)
    assert len(made) == number
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert [table for table in made if table not in text] == []


def test_the_table_of_ways_of_making_masks_is_made_from_its_results(tables):
    assert tables.masks_table() in (ROOT / "docs" / "spars.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", ["spars_phantom", "spars_search", "rl4seg_phantom"])
def test_the_tables_of_the_readme_are_made_from_the_results(tables, folder):
    assert tables.readme_table(folder) in (ROOT / "README.md").read_text(encoding="utf-8")


def commands_of(page):
    """The commands of the program in the fenced blocks of a page."""
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        lines = [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines()]
        for words in lines:
            if words[:1] == ["segarena-rl"]:
                yield words[1:]
            elif words[:1] == ["python"] and words[1] in ("run_rl.py", "run_adversarial.py"):
                yield words[2:]


def options_of(command):
    parser = importlib.import_module(f"segarena.agents.commands.{command}").parser(None)
    known = set(parser._option_string_actions)
    if command == "train":
        papers = ("spars", "rl4seg", "rp_pgd", "seat", "apga", "ppo")
        known |= {f"--{key}" for paper in papers for key in keys(schema(paper))}
    return known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_that_a_page_prints_exist(page):
    for command, *words in commands_of(page):
        assert command in COMMANDS
        unknown = {word.split("=")[0] for word in words if word.startswith("--")} - options_of(command)
        assert not unknown, f"{page.name}: {command} has no {unknown}"
        configs = [value for option, value in pairwise(words) if option == "--config" and not value.endswith(".yaml")]
        assert set(configs) <= set(packaged.names(sweeps=command == "sweep")), f"{page.name}: {configs}"


def test_the_readme_shows_every_command():
    shown = {command for command, *_ in commands_of(ROOT / "README.md")}
    assert shown >= COMMANDS.keys() - {"schema", "cache"}
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


# -- the site --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hooks():
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    return hooks


def pages_in(nav):
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [page for part in parts for page in pages_in(part)]


def test_every_page_stands_in_the_navigation_once(hooks):
    config = SimpleNamespace(**yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    pages = pages_in(hooks.on_config(config).nav)
    there = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(pages) == sorted([*there, *hooks.ELSEWHERE, *hooks.reference()])
    assert all((ROOT / name).is_file() for name in hooks.ELSEWHERE.values())


def test_the_reference_has_every_public_module_and_what_it_is(hooks):
    pages = hooks.reference()
    assert "::: segarena.envs.spars\n" in pages["reference/envs.spars.md"]
    assert "::: segarena.agents.dense_ppo.ppo\n" in pages["reference/agents.dense_ppo.ppo.md"]
    folders = [folder for folder in hooks.FOLDERS if (ROOT / folder).is_dir()]
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert sorted(folders) == sorted(packages), "a folder of the package that the reference leaves out"
    names = hooks.public_names()
    assert names.keys() >= {"SparsEnv", "LearnerEnv", "DensePPO"}
    assert all(f"reference/{module}.md" in pages for module in names.values())
    assert pages["reference/index.md"].count("](") == len(pages) - 1 + len(names)
    roots = {path.stem for path in ROOT.glob("*.py")} - {"__init__", "__main__", "setup", "run_rl", "run_adversarial"}
    assert set(hooks.ROOT_MODULES) == roots


@pytest.mark.parametrize(
    ("page", "text", "expected"),
    [
        ("architecture.md", "[a](../CONTRIBUTING.md)", "[a](contributing.md)"),
        ("contributing.md", "[a](docs/glossary.md#spars)", "[a](glossary.md#spars)"),
        ("tutorials/x.md", "[a](../spars.md) [b](https://e.org)", "[a](../spars.md) [b](https://e.org)"),
        ("spars.md", "`envs/core.py`", "[`envs/core.py`](reference/envs.core.md)"),
        ("spars.md", "`benchmarks/tables.py`", "`benchmarks/tables.py`"),
    ],
)
def test_links_of_the_repository_are_links_of_the_site(hooks, page, text, expected):
    known = SimpleNamespace(get_file_from_path=hooks.reference().get)
    shown = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    assert hooks.on_page_markdown(text, page=shown, config=None, files=known) == expected
