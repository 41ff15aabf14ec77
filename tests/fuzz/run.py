"""Hand malformed inputs to SegArena's readers and count the faults; exit status 1 if there are any."""

import argparse
import importlib
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from segarena.agents.commands import COMMANDS
from segarena.agents.papers import PAPERS, paper_named
from segarena.evaluation.machine import describe_machine

from fuzz.groups import GROUPS, inputs, sample
from fuzz.harness import Limits, Outcome, try_one
from fuzz.trained import prepare


def import_everything() -> None:
    """Import what commands and papers import when they are used, so that it is paid once and not by every child."""
    for name in COMMANDS:
        importlib.import_module(f"segarena.agents.commands.{name}")
    for name in PAPERS:
        paper_named(name)
    for name in ("torch._dynamo", "torch.utils.tensorboard.summary", "matplotlib.backends.backend_agg", "imageio.v3"):
        importlib.import_module(name)


def main() -> int:
    """Run the inputs that the options choose."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seed", type=int, default=0, help="seed of the random inputs")
    options.add_argument("--group", action="append", choices=list(GROUPS), help="only these groups")
    options.add_argument("--only", default=None, help="only inputs whose name begins so; their folders are kept")
    options.add_argument("--sample", type=int, default=None, help="of each group, those that once failed and so many")
    options.add_argument("--seconds", type=float, default=Limits.seconds, help="time of one input")
    options.add_argument("--rss_mib", type=float, default=Limits.rss_mib, help="resident memory of one input")
    options.add_argument("--memory_gib", type=float, default=Limits.memory_gib, help="address space of one input")
    options.add_argument("--report", type=Path, default=None, help="JSON of all names and every outcome")
    options.add_argument("--summary", type=Path, default=None, help="JSON of the counts, beside those of other groups")
    options.add_argument("--list", action="store_true", help="print the names")
    given = options.parse_args()
    made = {group: inputs(group, given.seed) for group in given.group or GROUPS}
    chosen = {}
    for group, everyone in made.items():
        some = everyone if given.sample is None else sample(everyone, given.sample)
        chosen[group] = [one for one in some if one.name.startswith(given.only or "")]
    if given.list:
        print("\n".join(f"{one.must:7} {one.name}" for group in chosen.values() for one in group))
        return 0
    import_everything()
    torch.set_num_threads(1)
    limits = Limits(given.seconds, given.rss_mib, given.memory_gib)
    root = Path(tempfile.mkdtemp(prefix="fuzz_"))
    outcomes: dict[str, list[Outcome]] = {group: [] for group in chosen}
    try:
        prepare(root / "trained", evaluate=given.sample is None)
        for group, members in chosen.items():
            for number, one in enumerate(members):
                folder = root / f"{group}_{number}"
                outcome = try_one(one, folder, limits)
                outcomes[group].append(outcome)
                if outcome.faults or given.only:
                    last = outcome.said.strip().splitlines()[-1:] or [""]
                    print(
                        f"{','.join(outcome.faults) or 'clean':20} {one.name}  [status {outcome.status}, "
                        f"{outcome.seconds} s, CPU {outcome.cpu_seconds} s, {outcome.rss_mib} MiB]  {last[0][:160]}",
                        flush=True,
                    )
                if given.only:
                    print(f"    {folder}\n{outcome.said}")
                else:
                    shutil.rmtree(folder, ignore_errors=True)
    finally:
        if not given.only:
            shutil.rmtree(root, ignore_errors=True)
    counts = {group: count(members) for group, members in outcomes.items() if members}
    for group, of_group in counts.items():
        print(f"{group:12}", *(f"{name} {number}" for name, number in of_group.items()))
    if given.report:
        report = {
            "seed": given.seed,
            "counts": counts,
            "made": {group: [one.name for one in everyone] for group, everyone in made.items()},
            "outcomes": {group: [asdict(outcome) for outcome in members] for group, members in outcomes.items()},
        }
        given.report.write_text(json.dumps(report, indent=1) + "\n")
    if given.summary:
        write_summary(given.summary, given.seed, limits, counts)
    return int(any(outcome.faults for members in outcomes.values() for outcome in members))


def count(outcomes: list[Outcome]) -> dict[str, int]:
    """Number of inputs, of those without a fault, and of each fault."""
    faults = Counter(fault for outcome in outcomes for fault in outcome.faults)
    return {"inputs": len(outcomes), "clean": sum(not outcome.faults for outcome in outcomes), **faults}


def write_summary(path: Path, seed: int, limits: Limits, counts: dict[str, dict[str, int]]) -> None:
    """Write the counts, beside those that the file has of other groups with the same seed and limits."""
    head = {"seed": seed, "limits": asdict(limits)}
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if all(before.get(name) == value for name, value in head.items()):
        counts = {**before["counts"], **counts}
    counts = {group: counts[group] for group in GROUPS if group in counts}
    total = dict(sum((Counter(of_group) for of_group in counts.values()), Counter()))
    summary = {**head, "counts": counts, "total": total, "machine": describe_machine()}
    path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
