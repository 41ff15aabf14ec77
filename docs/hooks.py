"""What MkDocs does beside its own work, when it builds the site (mkdocs.yml).

Pages that stand elsewhere in the repository become pages of the site, links between files of the repository become
links between pages, and every public module of the package gets a page of the reference, from its docstrings.
"""

import ast
import json
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "classifier_card.md": "classifiers/weights/presence_phantom.md",
}
"""Pages of the site by name, and the files of the repository that they are."""
FOLDERS = ("envs", "agents", "rewards", "attacks", "classifiers", "segmenters", "datasets", "evaluation", "common")
"""Folders of the package, in the order of the reference."""
FILE = re.compile(r"(?<![\[`])`((?:\w+/)+\w+)\.py`(?![\]`])")
"""A file of Python that a page names."""
ROOT_MODULES = ("testing",)
"""Public modules beside the folders."""
LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")


def modules():
    """Public modules by folder: dotted name below `segarena` and first line of the docstring."""
    found = {}
    files = {folder: sorted((ROOT / folder).rglob("*.py")) for folder in FOLDERS}
    for folder, paths in {"testing": [ROOT / f"{name}.py" for name in ROOT_MODULES], **files}.items():
        for path in paths:
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            if docstring and not any(part.startswith("_") for part in parts):
                found.setdefault(folder, {})[".".join(parts)] = docstring.splitlines()[0]
    return found


def public_names():
    """Names that `segarena` itself exports, and the modules below it that they come from."""
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    assigned = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    return ast.literal_eval(assigned["_MODULES"])


def reference():
    """Pages of the reference: text by path below docs/."""
    index = [
        "# Reference",
        "",
        "Every public module, from its docstrings. `import segarena` registers the environments.",
    ]
    index += ["", "## Names of segarena", "", "| name | from |", "|---|---|"]
    for name, module in public_names().items():
        index.append(f"| [`segarena.{name}`][segarena.{module}.{name}] | [`segarena.{module}`]({module}.md) |")
    pages = {}
    for folder, names in modules().items():
        index += ["", f"## {folder}", "", "| module | what |", "|---|---|"]
        for name, line in names.items():
            index.append(f"| [`segarena.{name}`]({name}.md) | {line} |")
            pages[f"reference/{name}.md"] = f"# segarena.{name}\n\n::: segarena.{name}\n"
    return {"reference/index.md": "\n".join(index) + "\n", **pages}


def schemas():
    """JSON Schemas of the configurations: text by path below docs/."""
    catalogue = json.loads((ROOT / "agents" / "catalogue.json").read_text(encoding="utf-8"))
    return {f"schemas/{name}.schema.json": json.dumps(schema) for name, schema in catalogue["schemas"].items()}


def on_config(config):
    """Every page of the reference stands in the navigation."""
    pages = next(part["Reference"] for part in config.nav if "Reference" in part)
    pages += [{folder: [{name: f"reference/{name}.md"} for name in names]} for folder, names in modules().items()]
    return config


def on_files(files, config):
    """Pages that are no files below docs/."""
    for uri, source in ELSEWHERE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
    for uri, text in (reference() | schemas()).items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links to files of the repository lead to their pages; names of modules are links to the reference.

    Where configurations are explained, the site has their schemas too.
    """
    if page.file.src_uri == "configuration.md":
        links = ", ".join(f"[{Path(uri).name}]({uri})" for uri in schemas())
        markdown = markdown.replace(
            "\n## Configurations of SPARS", f"\nThey lie here too: {links}.\n\n## Configurations of SPARS"
        )
    source = ROOT / ELSEWHERE.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    pages = {(ROOT / name).resolve(): uri for uri, name in ELSEWHERE.items()}

    def replaced(match):
        target = (source.parent / match[2]).resolve()
        uri = pages.get(target)
        if uri is None and target.is_relative_to(ROOT / "docs"):
            uri = target.relative_to(ROOT / "docs").as_posix()
        if uri is None:
            return match[0]
        return match[1] + posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".") + match[3]

    def linked(match):
        uri = f"reference/{match[1].replace('/', '.').removesuffix('.__init__')}.md"
        if files.get_file_from_path(uri) is None:
            return match[0]
        return f"[{match[0]}]({posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or '.')})"

    return FILE.sub(linked, LINK.sub(replaced, markdown))
