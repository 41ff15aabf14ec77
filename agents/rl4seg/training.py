"""Training RL4Seg: source network, shape prior, then N rounds of reward data, reward network and PPO (section 5).

Symbols: π_0 = source network, π_i = policy of iteration i, π_ref = frozen reference policy, r_i = reward network of
iteration i, x = image, a = mask. A run has one stage per step of the loop; a finished stage has a manifest and is
skipped when the run is resumed, an unfinished one continues from its checkpoint.

supervised/                  π_0
shape_prior/                 the corrector's auto-encoder
adabn/                       π_0 with the batch statistics of the target (norm_mode frozen)
iteration_<i>/reward_data/   triplets and gold masks
iteration_<i>/reward_net/    r_i
iteration_<i>/ppo/           π_i and its critic
methods/<name>/              what the policy is compared with (rl4seg_methods.py)
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...common.runs import Run, plain
from ...envs.rl4seg_config import OF_TRUTH
from .baselines import METHODS, OTHERS, TITLES
from .config import RL4SegExperiment
from .context import Context
from .policies import export
from .stages import loop, policy_folder, source_net


def train(
    experiment: RL4SegExperiment, out: str | Path, environment: Mapping[str, Any], *, sb3_zip: str | Path | None = None
) -> Run:
    """Train in the new folder `out`; see `resume` for a run that was interrupted.

    environment: what is to be kept of the machine. sb3_zip: also write the last policy as a zip of Stable-Baselines3.

    Raises:
        ValueError: a value, case, file or folder that cannot be used (nothing is written then); or, later, a policy
            none of whose masks gave reward data.
        FileNotFoundError: a missing folder or file.
    """
    experiment = experiment.resolved()
    _check(experiment)
    return _train(experiment, Run.create(out, plain(asdict(experiment)), environment), sb3_zip)


def resume(experiment: RL4SegExperiment, out: str | Path, *, sb3_zip: str | Path | None = None) -> Run:
    """Continue the run in the folder `out`, which `experiment` describes, where it was interrupted."""
    return _train(experiment.resolved(), Run.open(out), sb3_zip)


def _check(experiment: RL4SegExperiment) -> None:
    """Raises whatever can be known to be wrong before anything is written."""
    context, methods = Context(experiment, Run("."), trains=False), set(experiment.methods)
    others = {*OTHERS, *(TITLES[method] for method in methods)}
    if experiment.iterations and experiment.name in others:
        raise ValueError(f"name is {experiment.name!r}, as tables call another method of this run; choose another")
    needed = {"source train": context.source, "source val": context.source_val}
    if experiment.iterations or methods:
        target = {"target pool": context.target_all, "target val": context.target_val}
        if not len(context.target_all):
            raise ValueError("initial_images is 0 and there is no iteration: the methods have no image to adapt to")
        if experiment.reward in OF_TRUTH or {"oracle_rl", "target_supervised"} & methods:
            needed |= target
        elif experiment.gold.source == "gt":
            needed |= {"target pool": context.target_all}
    if experiment.source.data == experiment.target.data and (experiment.iterations or methods):
        adapted = {*context.target_all.groups, *context.target_val.groups}
        if known := sorted(set(context.source.groups) & adapted):
            raise ValueError(
                f"patients {', '.join(known[:5])} are in the source's training and in the target; keep them apart with "
                f"source.patients and target.patients"
            )
    for name, images in needed.items():
        if images.labels is None:
            raise ValueError(
                f"the images of {name} have no labels, which this configuration needs: reward {experiment.reward!r}, "
                f"gold.source {experiment.gold.source!r}, methods {experiment.methods}"
            )


def _train(experiment: RL4SegExperiment, run: Run, sb3_zip: str | Path | None) -> Run:
    context = Context(experiment, run, trains=True)
    loop(context)
    for method in experiment.methods:
        METHODS[method](context)
    if sb3_zip is not None:
        last = experiment.iterations
        export(context, context.load(policy_folder(context, last) if last else source_net(context)), Path(sb3_zip))
    run.close()
    return run
