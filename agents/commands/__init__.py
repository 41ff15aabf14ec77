"""The commands of the drivers, one module each: `parser(paper)` gives its options, `run` does it.

`run(options, command, paper)` gets the parsed options, the command line as text and the paper that it names; it returns
the exit status.
"""

COMMANDS = {
    "train": "train as a configuration says, or continue a run",
    "evaluate": "results, table and pictures of trained runs",
    "predict": "segment images of one's own with a trained run",
    "render": "write an episode as a GIF",
    "play": "play reference policies, without any trained run",
    "list": "environments with spaces and reference policies; papers",
}
"""What each does, by the name of its module."""
