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
    {"agents", "testing"},
    {"__init__", "__main__", "run_rl", "run_adversarial", "setup"},
]
"""From the ground up; neighbours on one floor do not know each other."""
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
PAPERS = {"spars", "rl4seg", "apga", "rp_pgd", "seat"}
SHARED = {"__init__", "command_line", "commands", "configuration", "program", "papers", "experiment", "generic"}
SHARED |= {
    "policy",
    "ppo",
    "learning",
    "open_loop",
    "context",
    "rollout_buffer",
    "recurrent",
    "callbacks",
    "cloning",
    "grid_policy",
    "dense_ppo",
    "catalogue",
    "schema",
    "packaged",
    "refusals",
}
SHARED |= {"attacking", "completion", "threads", "exits", "prediction", "predictor", "sweep", "sweep_engine"}
SHARED |= {"robust_segmenters"}
"""What all papers of `agents` share; only `papers`, the table, knows them."""
OUTSIDE = {"tests", "benchmarks", "docs", "build"}
"""Folders of the root that are no part of the package."""
ENVS_OF = {
    "spars": {
        *("spars", "spars_config", "spars_painting", "spars_parallel", "spars_pictures", "spars_rules"),
        *("spars_patch", "spars_search", "spars_starts", "spars_tables"),
    },
    "rl4seg": {"rl4seg", "rl4seg_config"},
    "apga": {"apga", "apga_actions", "apga_config", "apga_pictures"},
    "rp_pgd": {
        *("attack", "attack_actions", "attack_config", "attack_observations", "attack_pictures", "attack_starts"),
        "attack_tasks",
    },
    "seat": {
        *("seat", "seat_config", "seat_pictures", "seat_victims"),
        *("seat_attack", "seat_attack_actions", "seat_attack_config", "seat_attack_observations"),
        *("seat_attack_patches", "seat_attack_pictures", "seat_attack_victims"),
    },
}
"""Modules of `envs` that belong to one paper."""
SHARED_ENVS = {"__init__", "actions", "adapters", "core", "learner_env", "random", "samplers"}
LONGEST = 400
"""Lines of a file that is still read in one sitting."""


def modules_below(root):
    """Every Python file of the package; hidden folders, such as .venv, are none of it."""
    parts = {path: path.relative_to(root).parts for path in root.rglob("*.py")}
    return sorted(p for p, names in parts.items() if names[0] not in OUTSIDE and not any(n[0] == "." for n in names))


MODULES = modules_below(ROOT)


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


def paper_of(name):
    """The paper that a module of `envs` belongs to; None: all share it."""
    return next((paper for paper, names in ENVS_OF.items() if name in names), None)


def test_the_environments_are_a_papers_or_shared():
    names = {module.stem for module in MODULES if module.parent == ROOT / "envs"}
    assert names == SHARED_ENVS.union(*ENVS_OF.values()), "place it in ENVS_OF or SHARED_ENVS"
    assert ENVS_OF.keys() <= PAPERS


@by_module
def test_no_paper_imports_another(module):
    parts = module.relative_to(ROOT).with_suffix("").parts
    for node, target in targets_of(module, tree_of(module)):
        where = f"{module.relative_to(ROOT)}:{node.lineno} imports {'.'.join(target)}"
        if parts[0] == "agents" and target[:1] == ["agents"]:
            mine, other = parts[1], target[1]
            if other in PAPERS and mine != "papers":
                assert mine == other, where
        if parts[0] in ("envs", "agents") and target[:1] == ["envs"] and len(target) > 1:
            mine = parts[1] if parts[0] == "agents" else paper_of(parts[1])
            other = paper_of(target[1])
            if other is not None and mine != "papers":
                assert mine == other, where


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
def test_a_folder_with_python_is_a_package(module):
    assert module.parent == ROOT or (module.parent / "__init__.py").is_file()


def test_no_folder_escapes_these_tests(tmp_path):
    for name in ("attacks/core.py", "envs/core.py", "datasets/xray/mura.py", "docs/a.py", ".venv/b.py", "c/.d/e.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [str(module.relative_to(tmp_path)) for module in modules_below(tmp_path)]
    assert found == ["attacks/core.py", "datasets/xray/mura.py", "envs/core.py"]


@by_module
def test_a_file_can_be_read_in_one_sitting(module):
    assert len(module.read_text(encoding="utf-8").splitlines()) <= LONGEST


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


# -- nothing that is loaded runs code -------------------------------------------------------------------------------

FORBIDDEN = ("cloudpickle", "dill", "eval", "exec", "joblib", "marshal", "pickle", "shelve", "torch.package")
HARMLESS = {"pickle.UnpicklingError", "pickle.PickleError", "pickle.PicklingError"}


def full_names(tree):
    """What each name of a module that was imported stands for: `t` for torch after `import torch as t`."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.partition(".")[0]
                names[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def runs_code(name):
    """Whether what has this full name can run code that a file holds."""
    first, last = name.partition(".")[0], name.rpartition(".")[2]
    if name in HARMLESS:
        return False
    if first in ("torch", "yaml", "pickle") and last == "*":
        return True
    return (
        any(f"{name}.".startswith(f"{one}.") for one in FORBIDDEN)
        or (first == "torch" and last.startswith("load"))
        or (first == "yaml" and "load" in last and last != "safe_load")
    )


def is_literal(node, value):
    return isinstance(node, ast.Constant) and node.value is value


def loads_code(tree):
    """The nodes that could run code from a file: unpickling, and torch, NumPy and YAML without their safe options."""
    names, harmless = full_names(tree), set()

    def full(node):
        first, *others = name_of(node).split(".")
        return ".".join([names.get(first, first), *others])

    for node in ast.walk(tree):
        used = []
        if isinstance(node, ast.Call):
            given = {word.arg: word.value for word in node.keywords}
            if full(node.func) == "torch.load" and is_literal(given.get("weights_only"), True):
                harmless.add(id(node.func))
            hidden = full(node.func) == "numpy.load" and (len(node.args) > 2 or None in given)  # the third may be it
            if hidden or ("allow_pickle" in given and not is_literal(given["allow_pickle"], False)):
                yield node
        elif isinstance(node, ast.Import):
            used = [alias.name for alias in node.names if alias.name != "pickle"]  # its errors are caught
        elif isinstance(node, ast.ImportFrom) and not node.level:
            used = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            used = [full(node)]
            if used[0] in HARMLESS:
                harmless.add(id(node.value))
        elif isinstance(node, ast.Name):
            used = [full(node)]
        if id(node) not in harmless and any(map(runs_code, used)):
            yield node


@by_module
def test_nothing_that_is_loaded_runs_code(module):
    assert [f"{module.relative_to(ROOT)}:{node.lineno}" for node in loads_code(tree_of(module))] == []


@pytest.mark.parametrize(
    ("code", "refused"),
    [
        ("import torch\ntorch.load(f, weights_only=True)", False),
        ("import torch\ntorch.load(f)", True),
        ("import torch\ntorch.load(f, weights_only=safe)", True),
        ("import torch\nread = torch.load\nread(f)", True),
        ("import torch as t\nt.load(f)", True),
        ("import torch as t\nt.load(f, weights_only=True)", False),
        ("from torch import load as read", True),
        ("from torch import *", True),
        ("from torch import jit\njit.load(f)", True),
        ("import torch.jit as j\nj.load(f)", True),
        ("import torch\ntorch.hub.load_state_dict_from_url(u)", True),
        ("import pickle\ntry: f()\nexcept pickle.UnpicklingError: pass", False),
        ("import pickle\npickle.loads(b)", True),
        ("import pickle as p\np.load(f)", True),
        ("import pickle\nloader = pickle", True),
        ("from pickle import UnpicklingError", False),
        ("from pickle import loads", True),
        ("import joblib as j", True),
        ("import yaml\nyaml.safe_load(f)", False),
        ("import yaml as y\ny.load(f, y.Loader)", True),
        ("from yaml import full_load", True),
        ("import numpy as np\nnp.load(f)", False),
        ("import numpy as np\nnp.load(f, allow_pickle=False)", False),
        ("import numpy as np\nnp.load(f, allow_pickle=True)", True),
        ("import numpy as np\nnp.load(f, allow_pickle=trusted)", True),
        ("import numpy as np\nnp.load(f, None, True)", True),
        ("from numpy import load\nload(f, **options)", True),
        ("eval(f)", True),
        ("net.eval()\nnet.load_state_dict(w)", False),
    ],
)
def test_what_could_run_code_is_found_under_any_name(code, refused):
    assert bool(list(loads_code(ast.parse(code)))) is refused
