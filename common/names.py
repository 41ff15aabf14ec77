"""Names of methods and runs as parts of file names."""

import hashlib
import unicodedata

from .reading import quoted

LONGEST_NAME = 100
"""Characters of a name."""
LONGEST = 80
"""Characters of a slug."""
DIGITS = 8
"""Hexadecimal digits of the digest in a slug."""
_LOST = "\N{REPLACEMENT CHARACTER}"
"""In place of a letter or symbol that has no spelling in ASCII."""


def slug(name: str) -> str:
    """The name as part of a file's name: 1 to `LONGEST` ASCII letters, digits and single underscores.

    Accents are left out, Greek letters and plus signs spelt. Where other letters are lost, or there are too many, or
    none is left, a digest of the name ends it. Different names may have one slug.
    """
    spelt = "".join(map(_spelt, unicodedata.normalize("NFKD", name)))
    words = "_".join("".join(c if c.isalnum() and c.isascii() else " " for c in spelt).split())
    if words and len(words) <= LONGEST and _LOST not in spelt:
        return words
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]
    return "_".join(filter(None, (words[: LONGEST - DIGITS - 1].rstrip("_"), digest)))


def check_name(name: str) -> None:
    """Check that `name` can stand in a table, a figure and, as its slug, in a file's name.

    Raises:
        ValueError: it is empty, too long, or has line breaks or other characters that are not printed.
    """
    if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
        raise ValueError(
            f"name is {quoted(name)} but must be one line of 1 to {LONGEST_NAME} characters that are printed; choose "
            f"another with --name"
        )


def _spelt(character: str) -> str:
    """What stands for a character after decomposition: itself in ASCII, a Greek letter's name, "" for an accent."""
    if character == "+":  # RP-PGD++ and RP-PGD are two methods
        return " plus "
    if character.isascii():
        return character
    if unicodedata.combining(character):
        return ""
    name = unicodedata.name(character, "").split()
    if name[:1] == ["GREEK"] and "LETTER" in name[:-1]:
        spelt = name[name.index("LETTER") + 1].lower()
        return spelt.capitalize() if "CAPITAL" in name else spelt
    return _LOST if character.isalnum() or unicodedata.category(character)[0] in "CS" else " "
