"""`render`: one episode of a trained policy as a film."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ..threads import add_threads, use_threads


def parser(paper: str | None) -> ArgumentParser:
    """Its options."""
    options = ArgumentParser(description="Play one episode of a trained policy and write it as a film.")
    options.add_argument("--run", type=str, required=True, help="run folder")
    options.add_argument(
        "--case", type=str | None, help="id of the case to play (default: the first of the test split)"
    )
    options.add_argument("--split", type=str | None, help="split of the case (default: the run's test split)")
    options.add_argument("--out", type=str | None, help="file .gif or .mp4 to write (default: RUN/media/episode.gif)")
    options.add_argument("--seed", type=int, default=0, help="seed of the episode")
    options.add_argument("--truth", type=bool, default=True, help="true or false: show the labels in the pictures")
    options.add_argument(
        "--unfinished",
        action="store_true",
        help="play the last checkpoint of a run that is not trained to its end (default: refuse it)",
    )
    add_threads(options)
    return options


def run(options: Namespace, command: str, paper: str | None) -> int:
    """One episode of a trained policy as a film."""
    from ...common.runs import Run
    from ...evaluation.films import check_film, write_film
    from ..configuration import read_experiment
    from ..experiment import RenderOptions

    if options.out is not None:
        check_film(options.out)
    run = Run.open(options.run)
    row, experiment = read_experiment(run)
    use_threads(options.threads, default=row.threads)
    chosen = RenderOptions(options.case, options.split, options.seed, options.truth, options.unfinished)
    episode = row.render(run, experiment, chosen)
    path = Path(options.out) if options.out else run.media / "episode.gif"
    write_film(path, episode.shots, legend=episode.legend, frame_ms=row.frame_ms)
    print(f"{path}: {episode.summary}")
    return 0
