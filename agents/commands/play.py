"""`play`: reference policies on new episodes, without any trained run."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from ...common.checks import check_choice
from ...common.reading import parse_yaml, quoted
from ...envs import ENVIRONMENTS
from ..catalogue import policies_of
from ..threads import add_threads, use_threads

if TYPE_CHECKING:
    from ..policy import Episodes, Reference


def parser(paper: str | None) -> ArgumentParser:
    """Its options."""
    options = ArgumentParser(description="Play reference policies; prints mean [min, max] over the episodes.")
    options.add_argument("--id", type=str, required=True, help="id of the environment; `list` names them")
    options.add_argument(
        "--policy", type=str, default="all", help="name of a reference policy, or all that play with these arguments"
    )
    options.add_argument("--episodes", type=int, default=20, help="number of episodes, all played at once")
    options.add_argument("--seed", type=int, default=0, help="seed of the episodes; every policy plays the same ones")
    options.add_argument(
        "--out", type=str | None, help="file .gif or .mp4 for the first episode of the policy (needs --policy)"
    )
    options.add_argument("--truth", type=bool, default=True, help="true or false: show the labels in the film")
    options.add_argument(
        "--device", type=str, default="auto", help="auto (CUDA where there is one), cpu, cuda or cuda:N"
    )
    options.add_argument(
        "--set", nargs="+", type=str, default=[], help="arguments of the environment, as name=value name=value ..."
    )
    add_threads(options, "default: 1")
    return options


def run(options: Namespace, command: str, paper: str | None) -> int:
    """Reference policies on new episodes; 1 if one of them cannot play with these arguments."""
    check_choice("id", options.id, ENVIRONMENTS)
    if options.policy != "all":
        check_choice("policy", options.policy, policies_of(options.id))
    elif options.out is not None:
        raise ValueError(f"out is {options.out!r} but one policy is shown: name it with --policy")
    if options.out is not None:
        from ...evaluation.films import check_film

        check_film(options.out)
    settings = settings_of(options.set)

    from ...evaluation.report import markdown
    from ..papers import POLICIES
    from ..policy import make_env, play

    use_threads(options.threads)
    if options.policy != "all":
        settings = {**POLICIES[options.id][options.policy].settings, **settings}
    env = make_env(options.id, settings, num_envs=options.episodes, device=options.device)
    table = POLICIES.get(options.id, {})
    if not table:
        raise ValueError(f"{options.id} has no reference policies to play; add them to POLICIES[{options.id!r}]")
    fitting = {name: row for name, row in table.items() if row.fits(env)}
    chosen = fitting if options.policy == "all" else {options.policy: table[options.policy]}
    if not chosen:
        needs = "; ".join(f"{name}: {row.settings}" for name, row in table.items())
        raise ValueError(f"no reference policy of {options.id} plays with these arguments; they need {needs}")
    played: dict[str, Episodes] = {}
    refused: list[str] = []
    for name, row in chosen.items():
        try:
            policy = row.policy(env, options.seed)
            env.seed([options.seed * options.episodes + number for number in range(options.episodes)])
            env.reset()
            played[name] = play(env, policy)
        except ValueError as error:
            if options.policy != "all":
                raise
            refused.append(f"{name}: {error}")
    if options.out is not None:
        _write_film(Path(options.out), options, settings, chosen[options.policy])
    columns, cells = episode_table(played)
    print("\n".join(markdown(columns, cells)))
    print(f"\nCells: mean [min, max] of {options.episodes} episodes, seed {options.seed}.")
    if options.out is not None:
        print(f"film       {options.out}")
    if options.policy == "all":
        for needs, names in _needed({name: row for name, row in table.items() if name not in fitting}).items():
            print(f"not played {', '.join(names)}: --set {needs}")
    for line in refused:
        print(f"left out   {line}", file=sys.stderr)
    return 1 if refused else 0


def _needed(rows: "Mapping[str, Reference[Any]]") -> dict[str, list[str]]:
    """Names of reference policies by the arguments that they need, as `--set` takes them."""
    found: dict[str, list[str]] = {}
    for name, row in rows.items():
        found.setdefault(" ".join(f"{key}={value}" for key, value in row.settings.items()), []).append(name)
    return found


def _write_film(path: Path, options: Namespace, settings: Mapping[str, Any], row: "Reference[Any]") -> None:
    """The first of the episodes, which is the same alone as among the others."""
    from ...evaluation.films import write_film
    from ..policy import make_env, play_and_draw

    env = make_env(options.id, settings, num_envs=1, device=options.device, render_mode="rgb_array")
    env.shows_truth = options.truth
    policy = row.policy(env, options.seed)
    env.seed([options.seed * options.episodes])
    shots, _ = play_and_draw(env, policy)
    write_film(path, shots, legend=env.legend(), frame_ms=1000 // env.metadata["render_fps"])


def settings_of(texts: Sequence[str]) -> dict[str, Any]:
    """Values by name from "name=value" texts; values are YAML.

    Raises:
        ValueError: a text that is something else.
    """
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"set has {text!r} but each must be name=value")
        settings[name] = parse_yaml(value, f"set has {quoted(text)}, whose value is not YAML")
    return settings


def episode_table(played: "Mapping[str, Episodes]") -> tuple[list[str], list[list[str]]]:
    """Header and rows: one row per policy, mean [min, max] over its episodes of the return, the steps, and the numbers
    of their infos.

    Booleans count as 0 and 1; an episode that lacks a number is left out of it.
    """
    columns: dict[str, dict[str, list[float]]] = {"return": {}, "steps": {}, "terminated": {}}
    for policy, episodes in played.items():
        columns["return"][policy] = episodes.returns.tolist()
        columns["steps"][policy] = episodes.lengths.tolist()
        columns["terminated"][policy] = episodes.terminated.tolist()
        for info in episodes.infos:
            for name, value in info.items():
                if isinstance(value, bool | int | float):
                    columns.setdefault(name, {}).setdefault(policy, []).append(value)
    cells = [[policy, *(_mean_and_range(values.get(policy, [])) for values in columns.values())] for policy in played]
    return ["Policy", *columns], cells


def _mean_and_range(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3g} [{min(values):.3g}, {max(values):.3g}]" if values else "–"
