"""Sources can be opened: every "docs/<page>.md, Method n" names a heading, every "Eq. n.m" of code an equation of the
page that its file names, and every file that a page names exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HIDDEN = {".venv", ".git", ".typing", "build", "dist", "runs", "results"}
SOURCES = sorted(
    path
    for kind in ("*.py", "*.yaml", "*.md")
    for path in ROOT.rglob(kind)
    if not HIDDEN & set(path.relative_to(ROOT).parts) and not path.is_symlink()
)
PAGES = [path for path in SOURCES if path.suffix == ".md"]
METHOD = re.compile(r"(?:docs/([\w-]+)\.md, )?\bMethod (\d+(?:(?:-|, | and )\d+)*)")
EQUATIONS_OF = re.compile(r"Eq\. n\.m are those of docs/([\w-]+)\.md, Method n\b")
EQUATION = re.compile(r"\bEq\. (\d+\.\d+(?:(?:-| and )\d+\.\d+)*)")
OF_NOTES = re.compile(
    r"\b[Ss]ections? \d|\b[Oo]racles? \d|\boracle \d+-\d+|\(papers?: (?:SPARS|RL4Seg|section)|\"\"\"O\d+\b|_oracle_\d"
)
"""Numbers of notes that are not in the project."""
PATH = re.compile(r"`((?:[\w.-]+/)+[\w-]+\.(?:py|yaml|md|json))`")


def name_of(path):
    return str(path.relative_to(ROOT))


def one_line(text):
    """The text without line breaks and comment signs, so that a reference may stand on two lines."""
    return re.sub(r"\s*\n\s*(?:# )?", " ", text)


def numbers(words):
    """ "1-3 and 5" -> 1, 2, 3, 5."""
    for part in re.split(r", | and ", words):
        first, *last = (int(number) for number in part.split("-"))
        yield from range(first, (last[0] if last else first) + 1)


def method_headings(page):
    """Numbers of the headings below "## Method", in their order."""
    part = page.read_text(encoding="utf-8").partition("\n## Method\n")[2].partition("\n## ")[0]
    return [int(number) for number in re.findall(r"^### (\d+)\. \S", part, re.MULTILINE)]


def unresolved(path, text):
    """References in a text that lead nowhere; a page may leave out its own name."""
    for match in METHOD.finditer(one_line(text)):
        page = ROOT / "docs" / f"{match[1]}.md" if match[1] else path
        known = method_headings(page) if page.is_file() else []
        if not set(numbers(match[2])) <= set(known):
            yield match[0]


def anchors(page):
    """Anchors of a page: its headings as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["spars", "rl4seg", "rp-pgd", "seat", "apga"])
def test_the_methods_of_a_paper_are_numbered_without_gap(name):
    found = method_headings(ROOT / "docs" / f"{name}.md")
    assert len(found) >= 10
    assert found == list(range(1, len(found) + 1))


def test_every_reference_to_a_method_names_a_heading():
    apart = ("glossary.md", Path(__file__).name)  # the glossary's numbers belong to the page above them, see below
    sources = [path for path in SOURCES if path.name not in apart]
    wrong = {name_of(path): list(unresolved(path, path.read_text(encoding="utf-8"))) for path in sources}
    assert {name: found for name, found in wrong.items() if found} == {}


def test_the_methods_of_the_glossary_are_those_of_the_paper_above_them():
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    found = []
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        page = ROOT / "docs" / f"{part.splitlines()[0].lower()}.md"
        found += METHOD.findall(part)
        assert list(unresolved(page, part)) == []
    assert len(found) >= 15


def test_nothing_points_to_notes_outside_of_the_project():
    sources = [path for path in SOURCES if path != Path(__file__).resolve()]
    left = {name_of(path): OF_NOTES.findall(path.read_text(encoding="utf-8")) for path in sources}
    assert {name: found for name, found in left.items() if found} == {}


@pytest.mark.parametrize(
    "text", ["docs/rl4seg.md, Method 99", "# docs/spars.md,\n# Method 2 and 99", "docs/none.md, Method 1", "Method 1"]
)
def test_a_wrong_reference_is_found(text):
    assert list(unresolved(ROOT / "README.md", text)) != []


def test_code_cites_the_pages():
    code = [path for path in SOURCES if path.suffix == ".py" and path.relative_to(ROOT).parts[0] != "tests"]
    cited = {match[1] for path in code for match in METHOD.finditer(one_line(path.read_text(encoding="utf-8")))}
    assert {"spars", "rl4seg", "rp-pgd", "seat", "apga"} <= cited


def equations_of(page):
    """Numbers "n.m" of the equations of a page, each of which stands in front of its line."""
    return re.findall(r"^\((\d+\.\d+)\) ", page.read_text(encoding="utf-8"), re.MULTILINE)


def unresolved_equations(text):
    """Numbers of equations that a file of code names, but not the page that its docstring names."""
    page = EQUATIONS_OF.search(one_line(text))
    known = equations_of(ROOT / "docs" / f"{page[1]}.md") if page else []
    for match in EQUATION.finditer(text):
        yield from (number for number in re.split(r"-| and ", match[1]) if number not in known)


def test_every_equation_that_code_names_stands_in_the_page_that_its_file_names():
    code = [path for path in SOURCES if path.suffix == ".py" and path.relative_to(ROOT).parts[0] != "tests"]
    wrong = {name_of(path): list(unresolved_equations(path.read_text(encoding="utf-8"))) for path in code}
    assert {name: found for name, found in wrong.items() if found} == {}
    assert equations_of(ROOT / "docs" / "rl4seg.md") == ["4.1", "4.2", "4.3", "4.4", "4.5"]
    assert list(unresolved_equations("Eq. n.m are those of docs/rl4seg.md, Method n. Eq. 4.1-4.9")) == ["4.9"]
    assert list(unresolved_equations("# Eq. 4.1")) == ["4.1"]


def test_links_to_headings_lead_to_headings():
    wrong = []
    for path in PAGES:
        for page, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", path.read_text(encoding="utf-8")):
            if not page.startswith("http") and anchor not in anchors((path.parent / page) if page else path):
                wrong.append(f"{name_of(path)}: {page}#{anchor}")
    assert wrong == []


def test_files_named_by_a_page_exist():
    named = [(path, name) for path in PAGES for name in PATH.findall(path.read_text(encoding="utf-8"))]
    inside = [(path, name) for path, name in named if (ROOT / name.split("/")[0]).is_dir()]
    assert len(inside) > 50
    assert [f"{name_of(path)}: {name}" for path, name in inside if not (ROOT / name).exists()] == []
