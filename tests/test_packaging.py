"""What a package holds and says of itself, and what the hosted tests run."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from email.parser import BytesParser
from pathlib import Path

import pytest
import segarena
import yaml
from segarena.envs import ENVIRONMENTS

ROOT = Path(__file__).resolve().parents[1]
HIDDEN = ("[.]*", "__pycache__", "*.egg-info", "build", "dist", "runs", "site")


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """The source package and the wheel of these files, made without network."""
    pytest.importorskip("setuptools", minversion="77")
    copy = tmp_path_factory.mktemp("package") / "segarena"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*HIDDEN))
    for hidden in (".ci", ".github"):
        shutil.copytree(ROOT / hidden, copy / hidden)
    code = "import setuptools.build_meta as build; build.build_sdist('dist'); build.build_wheel('dist')"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return copy / "dist"


@pytest.fixture(scope="module")
def wheel(packages):
    return zipfile.ZipFile(next(packages.glob("*.whl")))


def test_the_wheel_holds_what_the_package_needs_and_nothing_else(wheel):
    names = set(wheel.namelist())
    configs = {f"segarena/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert len(configs) > 20
    needed = {"py.typed", "classifiers/weights/presence_phantom.safetensors", "datasets/liver/splits/spars_v1.json"}
    needed |= {
        f"segmenters/weights/{name}.safetensors"
        for name in ("scene_phantom", "liver_slice_phantom", "toy_volume_phantom")
    }
    assert names >= configs | {f"segarena/{name}" for name in needed}
    parts = {Path(name).parts[1] for name in names if name.startswith("segarena/")}
    assert parts.isdisjoint({"tests", "benchmarks", "docs", "setup.py"})


def test_the_source_package_holds_tests_pages_and_constraints(packages):
    with tarfile.open(next(packages.glob("*.tar.gz"))) as package:
        names = {name.partition("/")[2] for name in package.getnames()}
    files = ("constraints.txt", "Makefile", "mkdocs.yml", "CHANGELOG.md", "CITATION.cff", "ruff.toml", ".ci/run")
    for pattern in ("tests/**/*.py", "tests/**/*.yaml", "docs/**/*.*", "benchmarks/*.py", ".github/**/*.yml", *files):
        found = {str(path.relative_to(ROOT)) for path in ROOT.glob(pattern) if "__pycache__" not in path.parts}
        assert found, pattern
        assert found <= names, pattern


def test_the_description_has_no_link_that_only_the_repository_can_follow(wheel):
    name = next(name for name in wheel.namelist() if name.endswith("/METADATA"))
    metadata = BytesParser().parsebytes(wheel.read(name))
    text = metadata.get_payload()
    assert "SPARS-LiverCT-v0" in text
    assert re.findall(r"\]\((?!https?:|#)[^)]*\)", text) == []
    assert metadata["Author"] == "SegArena contributors"
    assert "reinforcement learning" in metadata["Keywords"]
    assert metadata["Version"] == segarena.__version__


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (None, "a  b docs c [d](https://e.org) [f](#g)"),
        (
            "https://host.org/files/",
            "a ![p](https://host.org/files/docs/p.png) b [docs](https://host.org/files/docs/x.md#h) c "
            "[d](https://e.org) [f](#g)",
        ),
    ],
)
def test_links_of_the_description_lead_to_the_repository_or_are_its_words(source, expected):
    pytest.importorskip("setuptools")
    spec = importlib.util.spec_from_file_location("setup", ROOT / "setup.py")
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    text = "a ![p](docs/p.png) b [docs](docs/x.md#h) c [d](https://e.org) [f](#g)"
    assert setup.description(text, source) == expected


def test_the_citation_names_this_version_and_its_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == segarena.__version__
    for work in (citation, *citation["references"]):
        assert work["title"]
        assert all(author.keys() & {"name", "family-names"} for author in work["authors"])
    assert citation["message"]
    assert citation["license"] == "MIT"
    known = {number["value"] for paper in citation["references"] for number in paper["identifiers"]}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = " ".join((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("rp-pgd", "seat"))
    named = {f"arXiv:{number}" for number in re.findall(r"arXiv (\d{4}\.\d{5})", readme)}
    assert known == named | {number for number in known if number.startswith("10.") and number in pages}
    environments = {one for paper in citation["references"] for one in paper["notes"].split(", ")}
    assert environments == set(ENVIRONMENTS)
    assert {one for one in ENVIRONMENTS if f"`{one}`" not in readme} == set()


def test_every_library_that_is_pinned_is_one_that_the_package_names():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = config["options"]["install_requires"].splitlines()
    lines += [line for extra in config["options.extras_require"].values() for line in extra.splitlines()]
    named = {re.match(r"[\w-]+", line)[0].lower() for line in lines if line and not line.startswith("#")}
    pinned = re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert {name.lower() for name in pinned} - named <= {"griffelib"}, "an extra of setup.cfg needs each of the others"


def commands_of_ci():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("make ")]


def test_the_hosted_tests_run_the_commands_of_ci():
    hosted = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
    steps = hosted["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if step.get("run", "").startswith("make ")] == commands_of_ci()
    assert commands_of_ci() == ["make test", "make docs"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [command for command in commands_of_ci() if command not in readme] == []
