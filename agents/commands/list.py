"""`list`: environments with spaces and reference policies; papers with their baselines."""

from pathlib import Path
from typing import Any

import gymnasium as gym
from jsonargparse import ArgumentParser, Namespace

from ...envs import ENVIRONMENTS
from ..experiment import Paper
from ..papers import PAPERS
from ..policy import POLICIES


def parser(paper: Paper[Any]) -> ArgumentParser:
    """It has no options."""
    return ArgumentParser(description="Print every environment and paper.")


def run(options: Namespace, command: str, paper: Paper[Any]) -> int:
    """Every environment with its spaces and reference policies; every paper with its baselines."""
    for name, entry in ENVIRONMENTS.items():
        env = gym.make(name)
        print(f"{name}\n  paper         {entry.paper}\n  config        {Path(__file__).parents[2] / entry.config}")
        print(f"  observations  {env.observation_space}\n  actions       {env.action_space}")
        for policy, row in POLICIES.get(name, {}).items():
            print(f"  policy        {policy}: {row.about}")
        env.close()
    for name, paper in PAPERS.items():
        print(f"paper {name}\n  experiment    {(paper.experiment.__doc__ or '').partition(chr(10))[0]}")
        for baseline, of_paper in paper.baselines.items():
            print(f"  baseline      {baseline}: {of_paper.title}")
    return 0
