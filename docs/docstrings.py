"""How docstrings become pages of the reference."""

import re

import griffe

SESSION = re.compile(r"^( *)>>> .*(?:\n(?! *$).+)*", re.MULTILINE)
"""A session, and what follows it until a blank line."""
PAGE = re.compile(r"(?<![`\w/])docs/(\w+)\.md")
"""A page that a docstring cites as the source of a formula."""


class Docstrings(griffe.Extension):
    """Sessions become blocks of code, pages that are cited become links."""

    def on_object(self, *, obj, **_):
        """Change the docstring of an object that griffe has just read."""
        if obj.docstring:
            text = PAGE.sub(r"[docs/\1.md](../\1.md)", obj.docstring.value)
            obj.docstring.value = SESSION.sub(lambda found: f"{found[1]}```pycon\n{found[0]}\n{found[1]}```", text)
