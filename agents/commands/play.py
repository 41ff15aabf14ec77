"""`play`: reference policies on new episodes, without any trained run."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from ...evaluation.report import markdown
from ..experiment import Paper
from ..policy import POLICIES, Episodes, make_env, play, reference


def parser(paper: Paper[Any]) -> ArgumentParser:
    """Its options."""
    options = ArgumentParser(description="Play reference policies; prints mean [min, max] over the episodes.")
    options.add_argument("--env", type=str, required=True, help="id of the environment; `list` names them")
    options.add_argument("--policy", type=str, default="all", help="name of a reference policy, or all")
    options.add_argument("--episodes", type=int, default=20, help="number of episodes, all played at once")
    options.add_argument("--seed", type=int, default=0, help="seed of the episodes; every policy plays the same ones")
    options.add_argument(
        "--device", type=str, default="auto", help="auto (CUDA where there is one), cpu, cuda or cuda:N"
    )
    options.add_argument(
        "--set", nargs="+", type=str, default=[], help="arguments of the environment, as name=value name=value ..."
    )
    return options


def run(options: Namespace, command: str, paper: Paper[Any]) -> int:
    """Reference policies on new episodes; 1 if one of them cannot play with these arguments."""
    env = make_env(options.env, _settings(options.set), num_envs=options.episodes, device=options.device)
    table = POLICIES.get(options.env)
    if not table:
        raise ValueError(f"{options.env} has no reference policies to play; add them to POLICIES[{options.env!r}]")
    chosen = dict(table) if options.policy == "all" else {options.policy: reference(table, options.policy)}
    played, refused = dict[str, Episodes](), list[str]()
    for name, row in chosen.items():
        try:
            policy = row.make(env, options.seed)
            env.seed([options.seed * options.episodes + number for number in range(options.episodes)])
            env.reset()
            played[name] = play(env, policy)
        except ValueError as error:
            if options.policy != "all":
                raise
            refused.append(f"{name}: {error}")
    print(f"{episode_table(played)}\n\nCells: mean [min, max] of {options.episodes} episodes, seed {options.seed}.")
    for line in refused:
        print(f"left out   {line}", file=sys.stderr)
    return 1 if refused else 0


def _settings(texts: Sequence[str]) -> dict[str, Any]:
    """The arguments of an environment from "name=value" texts; values are YAML."""
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"set has {text!r} but each must be name=value")
        try:
            settings[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"set has {text!r}, whose value is not YAML: {error}") from error
    return settings


def episode_table(played: Mapping[str, Episodes]) -> str:
    """One row per policy: mean [min, max] over its episodes of the return, the steps, and the numbers of their infos.

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
    return "\n".join(markdown(["Policy", *columns], cells))


def _mean_and_range(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3g} [{min(values):.3g}, {max(values):.3g}]" if values else "–"
