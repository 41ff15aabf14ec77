"""The tables that all drivers read: papers, and the reference policies of each environment.

Rows may be added from Python, `PAPERS["mine"] = Paper(...)`, `POLICIES["Mine-v0"] = {"rule": Reference(...)}`, or by
the entry points of a package, in the groups segarena.papers and segarena.policies (see `plugins.Table`; environments:
`envs/__init__.py`). A row is imported when it is first asked for.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..common.checks import check_choice
from ..common.plugins import Table

if TYPE_CHECKING:
    from .experiment import Paper
    from .policy import Reference

PAPERS: "Table[Paper[Any]]" = Table(
    "paper",
    "segarena.papers",
    {
        "spars": "segarena.agents.spars.paper:PAPER",
        "rl4seg": "segarena.agents.rl4seg.paper:PAPER",
        "rp_pgd": "segarena.agents.rp_pgd.paper:PAPER",
        "seat": "segarena.agents.seat.paper:PAPER",
        "apga": "segarena.agents.apga.paper:PAPER",
        "ppo": "segarena.agents.generic:PAPER",
    },
)
"""Papers by the name that `paper:` in a configuration gives; ppo is plain PPO on any environment."""
POLICIES: "Table[Mapping[str, Reference[Any]]]" = Table(
    "the reference policies of",
    "segarena.policies",
    {
        "SPARS-LiverCT-v0": "segarena.agents.spars.rules:POLICIES",
        "RL4Seg-Echo-v0": "segarena.agents.rl4seg.rules:POLICIES",
        "APGA-MURA-v0": "segarena.agents.apga.rules:POLICIES",
        "RPPGD-VOC-v0": "segarena.agents.rp_pgd.rules:POLICIES",
        "RPPGD-Cityscapes-v0": "segarena.agents.rp_pgd.rules:POLICIES",
        "RPPGD-ADE20K-v0": "segarena.agents.rp_pgd.rules:POLICIES",
        "RPPGD-LiverCT-v0": "segarena.agents.rp_pgd.rules:POLICIES",
        "SEATAttack-MSD-v0": "segarena.agents.seat.rules:POLICIES",
        "SEAT-MSD-v0": "segarena.agents.seat.schedules:POLICIES",
    },
)
"""Reference policies by name, of each environment id."""


def paper_named(name: object) -> "Paper[Any]":
    """The row of the table of papers.

    Raises:
        ValueError: there is no such paper, or it cannot be loaded.
    """
    check_choice("paper", name, PAPERS)
    return PAPERS[str(name)]
