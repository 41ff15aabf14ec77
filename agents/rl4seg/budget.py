"""How long each method of RL4Seg trains, and how long it has (docs/rl4seg.md, Method 11 and 12)."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ...common.fitting import STEPS
from ...common.manifests import AFTER, Manifest
from ...common.runs import Run
from ...segmenters.adaptation import EntropyConfig
from ...segmenters.tist import TistConfig
from ..dense_ppo.ppo import DensePPOConfig
from ..predictor import POLICY
from .context import GOLD_FRACTION, Context

C = TypeVar("C", EntropyConfig, TistConfig)

# -- the budget of the loop ----------------------------------------------------------------------------------------


def learners(context: Context) -> list[DensePPOConfig]:
    """The learner of each iteration of the loop; of one, where there is no loop."""
    experiment = context.experiment
    if not experiment.iterations:
        return [replace(experiment.learner(1), total_timesteps=experiment.ppo.epochs * len(context.target))]
    return [experiment.learner(i) for i in range(1, experiment.iterations + 1)]


def steps_of_the_loop(context: Context) -> int:
    """Gradient steps of the loop's PPO, all iterations together, where no `target_kl` ends some early."""
    return sum(_gradient_steps(one) for one in learners(context))


def _gradient_steps(config: DensePPOConfig) -> int:
    rollout = config.num_envs * config.n_steps
    batches = rollout // (config.batch_size or rollout)
    return math.ceil(config.total_timesteps / rollout) * config.n_epochs * batches


def epochs_of(steps: int, images: int, batch: int) -> int:
    """Epochs that make at least so many gradient steps."""
    return math.ceil(steps / math.ceil(images / batch))


def budget_keys(context: Context) -> list[str]:
    """Keys of the configuration that decide the length of a baseline that trains as long as the loop."""
    return ["equal_budget", "ppo"] if context.experiment.equal_budget else []


def lasting_as_asked(context: Context) -> Callable[[C, int], C]:
    """What gives the settings of a training on so many images their length: with `equal_budget` that of the loop."""
    if not context.experiment.equal_budget:
        return lambda config, images: config
    return lambda config, images: replace(
        config, epochs=epochs_of(steps_of_the_loop(context), images, config.batch_size)
    )


# -- what was spent ------------------------------------------------------------------------------------------------


def spent(context: Context, name: str, asked: Iterable[str], helpers: Sequence[str] = ()) -> dict[str, float | None]:
    """Gradient steps that one method has taken, and the share of its images whose mask was given.

    gradient_steps: of the network that segments, from the source network on where it starts there; of several networks,
    of the longest trained. gradient_steps_others: of all other networks on which it rests but the source network: shape
    prior, reward networks, and what made their data. gold_fraction: of the images of its last stage, gold and corrected
    ones together. None: the run did not count them.

    Args:
        context: of a finished run.
        name: of the method; `policy` is the trained one.
        asked: the stages that its networks come from, by name.
        helpers: stages in its own stage whose network does not segment.
    """
    root, last = context.run.folder, context.experiment.iterations
    loop = [[root / f"iteration_{i}/ppo" for i in range(1, last + 1)]]
    roots = [root / stage for stage in asked]
    logs = (path.parent for one in roots if "baselines" in one.parts for path in one.rglob("metrics.jsonl"))
    own = [[log] for log in logs if log.name not in helpers]
    if name == POLICY:
        own, roots = loop, loop[0][-1:]
    elif name == "source_only":
        own = [roots]
    mine = {folder for chain in own for folder in chain}
    logs = (path.parent for one in _before(roots) if one.name != "supervised" for path in one.rglob("metrics.jsonl"))
    steps = [_sum(map(_steps_in, chain)) for chain in own]
    gold = [line[GOLD_FRACTION] for chain in own for line in Run(chain[-1]).metrics() if GOLD_FRACTION in line]
    return {
        "gradient_steps": None if None in steps else max((one for one in steps if one), default=0),
        "gradient_steps_others": _sum(_steps_in(log) for log in {*logs} - mine),
        "gold_fraction": sum(gold) / len(gold) if gold else None,
    }


def _before(stages: Iterable[Path]) -> set[Path]:
    """These finished stages and all that they build on."""
    found, waiting = set[Path](), list(stages)
    while waiting:
        if (stage := waiting.pop()) in found:
            continue
        found.add(stage)
        manifest = Manifest.read(stage)
        names = [key.removeprefix(AFTER) for key in (manifest.settings if manifest else ()) if key.startswith(AFTER)]
        # a name is relative to the nearest folder that holds both
        waiting += [next(up / name for up in stage.parents if Manifest.read(up / name)) for name in names]
    return found


def _steps_in(stage: Path) -> int | None:
    """Gradient steps that a stage has logged; 0 of one that trains nothing, None of one that did not count them."""
    lines = Run(stage).metrics()
    counts = [int(value) for line in lines for key, value in line.items() if key.endswith(f"/{STEPS}")]
    if stage.name == "reward_data" or not lines:
        return 0
    return counts[-1] if counts else None


def _sum(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if None in known else sum(one for one in known if one)
