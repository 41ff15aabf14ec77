"""metrics.jsonl of a run: one JSON object of scalars by name in each line."""

from pathlib import Path

from .reading import parse_json, quoted, read_text

LARGEST = 2**30
"""Bytes of a file."""


def read_scalars(path: Path, size: int | None = None) -> list[dict[str, float]]:
    """The lines of a file, oldest first; with `size` those within its first `size` bytes.

    Raises:
        ValueError: names the line that holds no scalars.
    """
    text = read_text(path, LARGEST)
    return _scalars(text if size is None else text.encode()[:size].decode(), path)


def whole_lines(path: Path, size: int) -> int:
    """The number of bytes of the whole lines within the first `size` bytes of a file.

    Raises:
        ValueError: one of these lines holds no scalars.
    """
    with path.open("rb") as file:
        kept = file.read(min(size, path.stat().st_size))
    kept = kept[: kept.rfind(b"\n") + 1]
    try:
        _scalars(kept.decode("utf-8"), path)
    except ValueError as error:  # of broken UTF-8 too
        raise ValueError(f"{error}; put {path} back, or move it away to go on without its curves") from error
    return len(kept)


def _scalars(text: str, path: Path) -> list[dict[str, float]]:
    lines = []
    for number, line in enumerate(text.splitlines(), start=1):
        scalars = parse_json(line, f"{path}, line {number},")
        if not isinstance(scalars, dict) or not all(isinstance(value, int | float) for value in scalars.values()):
            raise ValueError(f"{path}, line {number}, holds no scalars by name but {quoted(scalars)}")
        lines.append(scalars)
    return lines
