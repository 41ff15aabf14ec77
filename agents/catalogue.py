"""Environments and papers as `list` and the command line need them, without importing what plays and trains.

`catalogue.json` holds it of the package's own rows: spaces, reference policies, baselines, the schema of every paper's
configurations. It is made from the code, `python -m segarena.agents.catalogue` writes it anew, and a test compares.
Rows from elsewhere (another package, a driver of one's own), and rows that are loaded, are asked themselves.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium import spaces

from ..envs import ENVIRONMENTS
from .papers import PAPERS, POLICIES, paper_named
from .schema import Schema, schema_of

FILE = Path(__file__).with_name("catalogue.json")


@cache
def _packaged() -> dict[str, dict[str, Any]]:
    return dict(json.loads(FILE.read_text(encoding="utf-8")))


def spaces_of(env_id: str) -> dict[str, str]:
    """Observations and actions of an environment with its default arguments, as texts.

    Raises:
        ValueError: it cannot be made.
    """
    known: dict[str, str] | None = _packaged()["spaces"].get(env_id)
    return known if known and env_id in own_environments() else _spaces_of(env_id)


def _spaces_of(env_id: str) -> dict[str, str]:
    try:
        env = gym.make(env_id)
    except Exception as error:  # of code that may not be ours
        raise ValueError(f"{env_id} cannot be made: {type(error).__name__}: {error}") from error
    texts = {"observations": space_text(env.observation_space), "actions": space_text(env.action_space)}
    env.close()
    return texts


def space_text(space: spaces.Space[Any]) -> str:
    """A space in one line; many choices of one size as [3] * 4096."""
    if isinstance(space, spaces.Dict):
        return f"Dict({', '.join(f'{name}: {space_text(part)}' for name, part in space.items())})"
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.size > 1 and len(set(space.nvec.flat)) == 1:
        return f"MultiDiscrete([{space.nvec.flat[0]}] * {space.nvec.size})"
    return str(space)


def policies_of(env_id: str) -> dict[str, str]:
    """What each reference policy of an environment is, by name.

    Raises:
        ValueError: they cannot be loaded.
    """
    if env_id not in POLICIES:
        return {}
    if POLICIES.is_own(env_id) and not POLICIES.is_loaded(env_id):
        return dict(_packaged()["policies"][env_id])
    return {name: row.about for name, row in POLICIES[env_id].items()}


def baselines_of(paper: str) -> dict[str, str]:
    """The title of each baseline of a paper, by name.

    Raises:
        ValueError: there is no such paper, or it cannot be loaded.
    """
    if PAPERS.is_own(paper) and not PAPERS.is_loaded(paper):
        return dict(_packaged()["baselines"][paper])
    return {name: row.title for name, row in paper_named(paper).baselines.items()}


def schema(paper: str) -> Schema:
    """The JSON Schema of the configurations of a paper; raises as `baselines_of`."""
    if PAPERS.is_own(paper):
        return dict(_packaged()["schemas"][paper])
    return schema_of(paper, paper_named(paper))


def own_environments() -> list[str]:
    """The ids of this package's environments."""
    return [env_id for env_id, entry in ENVIRONMENTS.items() if entry.env_class.startswith("segarena.")]


def made_from_code() -> dict[str, Any]:
    """The contents of `catalogue.json`."""
    env_ids, papers = own_environments(), {name: paper_named(name) for name in PAPERS if PAPERS.is_own(name)}
    return {
        "spaces": {env_id: _spaces_of(env_id) for env_id in env_ids},
        "policies": {env_id: {name: row.about for name, row in POLICIES[env_id].items()} for env_id in env_ids},
        "baselines": {name: {key: row.title for key, row in paper.baselines.items()} for name, paper in papers.items()},
        "schemas": {name: schema_of(name, paper) for name, paper in papers.items()},
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(made_from_code(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
