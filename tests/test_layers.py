"""The house keeps its order: who may import whom, what the wheel holds, and that nothing which is loaded runs code."""

import ast
from configparser import ConfigParser
from pathlib import Path

import pytest
import segarena

ROOT = Path(segarena.__file__).parent
FLOORS = [
    {"common"},
    {"datasets"},
    {"classifiers", "segmenters"},
    {"attacks", "rewards"},
    {"evaluation"},
    {"envs"},
    {"agents"},
    {"__init__", "run_rl", "run_adversarial"},
]
"""From the ground up; neighbours on one floor do not know each other."""
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
PAPERS = {"spars", "rl4seg", "apga", "rp_pgd", "seat"}
SHARED = {"__init__", "command_line", "papers", "experiment", "generic", "policy", "ppo", "callbacks", "dense_ppo"}
"""What all papers of `agents` share; only `papers`, the table, and the command line above it know them."""
OUTSIDE = {"tests", "benchmarks", "docs"}
FOLDERS = sorted(path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name not in OUTSIDE)
MODULES = sorted([*ROOT.glob("*.py"), *(module for folder in FOLDERS for module in folder.rglob("*.py"))])


def tree_of(module):
    return ast.parse(module.read_text(encoding="utf-8"), str(module))


def room_of(module):
    """The folder, or the module of the root, that a file belongs to."""
    first, *inside = module.relative_to(ROOT).parts
    return first if inside else module.stem


def targets_of(module, tree):
    """The line and the parts below `segarena` of every import from the package, absolute or relative."""
    package = module.relative_to(ROOT).parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            above = ["segarena", *package][: len(package) + 2 - node.level]
            base = above + (node.module.split(".") if node.module else [])
            found = [[*base, alias.name] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [[*(node.module or "").split("."), alias.name] for alias in node.names]
        else:
            continue
        for first, *rest in found:
            if first == "segarena":
                yield node, rest


def name_of(node):
    """`a.b.c` of an expression, or the part of it that has a name."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


by_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(ROOT)))


def test_every_folder_and_module_has_its_floor():
    rooms = {room_of(module) for module in MODULES}
    assert rooms <= FLOOR.keys(), "place it in FLOORS"
    assert {"common", "datasets", "envs", "agents", "run_rl"} <= rooms


@by_module
def test_imports_point_down(module):
    room = room_of(module)
    for node, target in targets_of(module, tree_of(module)):
        there = target[0] if target else "__init__"
        where = f"{module.relative_to(ROOT)}:{node.lineno} imports {there}"
        if there not in FLOOR:
            assert room != "__init__", where
            assert target == ["__version__"], where
        elif there != room:
            assert FLOOR[there] < FLOOR[room], f"{where}, which stands above it or beside it"


@by_module
def test_no_paper_imports_another(module):
    parts = module.relative_to(ROOT).with_suffix("").parts
    for node, target in targets_of(module, tree_of(module)):
        where = f"{module.relative_to(ROOT)}:{node.lineno} imports {'.'.join(target)}"
        if parts[0] == "agents" and target[:1] == ["agents"]:
            mine, other = parts[1], target[1]
            if other in PAPERS and mine not in ("papers", "command_line"):
                assert mine == other, where
        if parts[0] == "envs" and target[:1] == ["envs"] and len(target) > 1:
            mine, other = ({name for name in PAPERS if f"{at}_".startswith(f"{name}_")} for at in (parts[1], target[1]))
            assert not other or mine == other, where


def test_the_agents_are_a_paper_or_shared():
    names = {
        path.stem for path in (ROOT / "agents").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert names - PAPERS <= SHARED, "a paper's own files belong into its folder"


def test_every_folder_with_python_is_in_the_wheel():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    folders = {module.parent.relative_to(ROOT) for module in MODULES}
    names = {".".join(("segarena", *folder.parts)) for folder in folders}
    assert set(config["options"]["packages"].split()) == names


@by_module
def test_imports_are_relative_inside_and_absolute_in_the_drivers(module):
    is_driver = module.stem.startswith("run_") and module.parent == ROOT
    for node, _ in targets_of(module, tree_of(module)):
        relative = isinstance(node, ast.ImportFrom) and node.level > 0
        assert relative != is_driver, f"{module.relative_to(ROOT)}:{node.lineno}"


@by_module
def test_no_module_opens_a_window_system(module):
    """matplotlib.pyplot chooses a backend when it is imported: only the function that shows a window may do that."""
    tree = tree_of(module)
    local = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        plots = [name for name in names if name.startswith(("matplotlib.pyplot", "pylab", "matplotlib.pylab"))]
        assert not plots or id(node) in local, f"{module.relative_to(ROOT)}:{node.lineno}"


LOADERS = {"cloudpickle", "dill", "joblib", "marshal", "shelve"}
HARMLESS = {"UnpicklingError", "PickleError", "PicklingError"}


@by_module
def test_nothing_that_is_loaded_runs_code(module):
    tree = tree_of(module)
    for node in ast.walk(tree):
        where = f"{module.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & LOADERS, where
        elif isinstance(node, ast.ImportFrom):
            first = (node.module or "").split(".")[0]
            assert first not in LOADERS, where
            assert first != "pickle" or {alias.name for alias in node.names} <= HARMLESS, where
            assert first not in ("torch", "yaml") or "load" not in {alias.name for alias in node.names}, where
        elif isinstance(node, ast.Attribute) and name_of(node).startswith("pickle."):
            assert node.attr in HARMLESS, where
        elif isinstance(node, ast.Call):
            name = name_of(node.func)
            given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
            assert name not in ("eval", "exec", "torch.jit.load", "torch.package.PackageImporter"), where
            assert name != "torch.load" or given.get("weights_only") is True, where
            assert not given.get("allow_pickle"), where
            assert not name.startswith("yaml.") or "load" not in name or name == "yaml.safe_load", where
