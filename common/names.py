"""Names of methods and runs as parts of file names."""

import hashlib
import unicodedata

LONGEST = 80
"""Characters of a slug."""
DIGITS = 8
"""Hexadecimal digits of the digest in a slug."""
_LOST = "\N{REPLACEMENT CHARACTER}"
"""In place of a letter or symbol that has no spelling in ASCII."""


def slug(name: str) -> str:
    """The name as part of a file's name: 1 to `LONGEST` ASCII letters, digits and single underscores.

    Accents are left out and Greek letters spelt. Where other letters are lost, or there are too many, or none is left,
    a digest of the name ends it. Different names may have one slug: see `same_file`.
    """
    spelt = "".join(map(_spelt, unicodedata.normalize("NFKD", name)))
    words = "_".join("".join(c if c.isalnum() and c.isascii() else " " for c in spelt).split())
    if words and len(words) <= LONGEST and _LOST not in spelt:
        return words
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]
    return "_".join(filter(None, (words[: LONGEST - DIGITS - 1].rstrip("_"), digest)))


def same_file(one: str, other: str) -> bool:
    """Whether two names have the same slug, on disks too that do not tell capitals from small letters."""
    return slug(one).lower() == slug(other).lower()


def _spelt(character: str) -> str:
    """What stands for a character after decomposition: itself in ASCII, a Greek letter's name, "" for an accent."""
    if character.isascii():
        return character
    if unicodedata.combining(character):
        return ""
    name = unicodedata.name(character, "").split()
    if name[:1] == ["GREEK"] and "LETTER" in name[:-1]:
        spelt = name[name.index("LETTER") + 1].lower()
        return spelt.capitalize() if "CAPITAL" in name else spelt
    return _LOST if character.isalnum() or unicodedata.category(character)[0] in "CS" else " "
