"""The commands of the drivers, one module each: `parser(paper)` gives its options, `run` does it.

`run(options, command, paper)` gets the parsed options, the command line as text and the name of the paper that it names
(None: it names none); it returns the exit status. A command whose arguments decide its options has `prepare(arguments)`
too: the arguments to parse, and the name of the paper. Modules import what is heavy in `run`, so that a wrong option is
refused at once.
"""

COMMANDS = {
    "train": "train as a configuration says, or continue a run",
    "evaluate": "results, table and pictures of trained runs",
    "sweep": "train and evaluate the variants of a sweep file, several at once, and compare them on one page",
    "predict": "segment images of one's own with a trained run",
    "attack": "perturb images of one's own so that a segmenter goes wrong",
    "render": "write an episode of a trained policy as a GIF or MP4",
    "plot": "draw learning curves of runs, with intervals over seeds",
    "play": "play reference policies, without any trained run",
    "list": "environments with spaces and reference policies; papers; packaged configurations and sweeps",
    "schema": "JSON Schema of a paper's configurations, for editors",
    "cache": "show what the cache holds, or clear it",
}
"""What each does, by the name of its module."""
