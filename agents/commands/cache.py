"""`cache`: what the cache on disk holds, and how it is emptied."""

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
    for entry in entries:
        print(f"{entry.kind:20} {entry.files:6} files {entry.bytes / 1e6:10.1f} MB")
    freed = "freed" if options.clear else "total"
    total = sum(entry.bytes for entry in entries) / 1e6
    print(f"{freed:20} {sum(entry.files for entry in entries):6} files {total:10.1f} MB")
    return 0
