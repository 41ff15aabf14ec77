"""The description of the package is README.md, with links that a package index can follow; the rest is in setup.cfg."""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)")
"""A link, or with "!" a picture, to a file of the repository."""


def description(readme: str, source: str | None) -> str:
    """The text of README.md for readers who do not have the files beside it.

    Args:
        readme: text of README.md.
        source: address of the files of the repository, below which relative links lead; None: links to files become
            their texts, and pictures are left out.
    """
    if source is None:
        return LINK.sub(lambda link: "" if link[1] else link[2], readme)
    return LINK.sub(lambda link: f"{link[1]}[{link[2]}]({source.rstrip('/')}/{link[3]})", readme)


if __name__ == "__main__":
    here = Path(__file__).parent
    config = ConfigParser()
    config.read(here / "setup.cfg", encoding="utf-8")
    source = config.get("segarena", "readme_links_below", fallback=None)
    setup(
        script_name="setup.py",  # this file is no module of the package, whose folder it stands in
        long_description=description((here / "README.md").read_text(encoding="utf-8"), source),
        long_description_content_type="text/markdown",
    )
