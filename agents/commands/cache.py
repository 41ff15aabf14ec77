"""`cache`: what the cache on disk holds, and how it is emptied."""

from collections.abc import Sequence

from jsonargparse import ArgumentParser, Namespace


def parser(paper: str | None) -> ArgumentParser:
    """Its options."""
    options = ArgumentParser(
        description="Show what was computed once and kept on disk: kinds, files and megabytes. The folder is "
        "$SEGARENA_CACHE, else ~/.cache/segarena; what is missing is computed again."
    )
    options.add_argument("--clear", action="store_true", help="delete all of it")
    return options


def run(options: Namespace, command: str, paper: str | None) -> int:
    """Show the cache, or clear it."""
    from ...datasets.cache import cache_entries, cache_folder, clear_cache

    entries = clear_cache() if options.clear else cache_entries()
    print(f"folder     {cache_folder()}")
    kinds: dict[str, list[int]] = {}
    for entry in entries:
        kinds.setdefault(entry.kind, []).append(entry.bytes)
    for kind, sizes in kinds.items():
        print(_line(kind, sizes))
    print(_line("freed" if options.clear else "total", [entry.bytes for entry in entries]))
    return 0


def _line(name: str, sizes: Sequence[int]) -> str:
    return f"{name:20} {len(sizes):6} files {sum(sizes) / 1e6:10.1f} MB"
