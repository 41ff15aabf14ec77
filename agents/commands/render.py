"""`render`: one episode of a trained policy as a GIF."""

from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
from jsonargparse import ArgumentParser, Namespace

from ...common.files import replacing
from ...common.runs import Run
from ..configuration import read_experiment
from ..experiment import Paper


def parser(paper: Paper[Any]) -> ArgumentParser:
    """Its options."""
    options = ArgumentParser(description="Play one episode of a trained policy and write it as a GIF.")
    options.add_argument("--run", type=str, required=True, help="run folder")
    options.add_argument(
        "--case", type=str | None, help="id of the case to play (default: the first of the test split)"
    )
    options.add_argument("--out", type=str | None, help="file .gif to write (default: RUN/media/episode.gif)")
    options.add_argument("--seed", type=int, default=0, help="seed of the episode")
    return options


def run(options: Namespace, command: str, paper: Paper[Any]) -> int:
    """One episode of a trained policy as a GIF."""
    if options.out is not None and not options.out.endswith(".gif"):
        raise ValueError(f"out is {options.out!r} but must end in .gif")
    run = Run.open(options.run)
    paper, experiment = read_experiment(run)
    frames, summary = paper.render(run, experiment, options.case, options.seed)
    path = Path(options.out) if options.out else run.media / "episode.gif"
    with replacing(path) as unfinished:
        imageio.imwrite(unfinished, np.stack(frames), duration=paper.frame_ms, loop=0)
    print(f"{path}: {summary}")
    return 0
