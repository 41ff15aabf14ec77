"""How a command ends: its exit status and what it says, on every console.

Exit status: 0 done; 1 done, but something was left out, which is named; 2 refused, by a message that names the value,
the rule and the way out (lack of memory is a refusal too); 3 a bug of the program, with its traceback; 128 + number of
the signal that stopped it (130: Ctrl-C).
"""

import sys
import traceback

REFUSED, BUG, INTERRUPTED = 2, 3, 130


def failed(error: Exception) -> int:
    """Say what no reader and no check has turned into a refusal; the exit status: REFUSED for lack of memory, else BUG.

    Readers refuse numbers that overflow and trees that are too deep by themselves: an OverflowError or a RecursionError
    that comes as far as this is a bug.
    """
    of_torch = isinstance(error, RuntimeError) and (
        "can't allocate memory" in str(error) or "out of memory" in str(error)
    )
    if isinstance(error, MemoryError) or of_torch:
        what = " ".join(str(error).split())[:200] or type(error).__name__
        print(
            f"error: out of memory ({what}); lower num_envs, a batch size, a grid or a number of cases, or use a "
            f"machine with more memory",
            file=sys.stderr,
        )
        return REFUSED
    traceback.print_exception(error)
    print(
        "error: this is a bug of SegArena and no fault of what you gave it: please report it, with the lines above and "
        "the command",
        file=sys.stderr,
    )
    return BUG


def print_on_any_console() -> None:
    """Let characters that the console's encoding lacks be printed as ?, instead of ending a command that has worked."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
