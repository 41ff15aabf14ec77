"""Sessions in docstrings (`>>>` and what follows until a blank line) become blocks of code in the reference."""

import re

import griffe

SESSION = re.compile(r"^( *)>>> .*(?:\n(?! *$).+)*", re.MULTILINE)


class Sessions(griffe.Extension):
    """Fences the sessions of every docstring."""

    def on_object(self, *, obj, **_):
        """Fence those of one object, which griffe has just read."""
        if obj.docstring and ">>> " in obj.docstring.value:
            text = SESSION.sub(lambda found: f"{found[1]}```pycon\n{found[0]}\n{found[1]}```", obj.docstring.value)
            obj.docstring.value = text
