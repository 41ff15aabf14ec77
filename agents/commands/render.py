"""`render`: one episode of a trained policy as a GIF."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ..threads import add_threads, use_threads


def parser(paper: str | None) -> ArgumentParser:
    """Its options."""
    options = ArgumentParser(description="Play one episode of a trained policy and write it as a GIF.")
    options.add_argument("--run", type=str, required=True, help="run folder")
    options.add_argument(
        "--case", type=str | None, help="id of the case to play (default: the first of the test split)"
    )
    options.add_argument("--out", type=str | None, help="file .gif to write (default: RUN/media/episode.gif)")
    options.add_argument("--seed", type=int, default=0, help="seed of the episode")
    add_threads(options)
    return options


def run(options: Namespace, command: str, paper: str | None) -> int:
    """One episode of a trained policy as a GIF."""
    import imageio.v3 as imageio
    import numpy as np

    from ...common.files import replacing
    from ...common.runs import Run
    from ..configuration import read_experiment

    if options.out is not None and not options.out.endswith(".gif"):
        raise ValueError(f"out is {options.out!r} but must end in .gif")
    run = Run.open(options.run)
    row, experiment = read_experiment(run)
    use_threads(options.threads, default=row.threads)
    frames, summary = row.render(run, experiment, options.case, options.seed)
    path = Path(options.out) if options.out else run.media / "episode.gif"
    with replacing(path) as unfinished:
        imageio.imwrite(unfinished, np.stack(frames), duration=row.frame_ms, loop=0)
    print(f"{path}: {summary}")
    return 0
