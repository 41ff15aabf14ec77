"""Training RL4Seg: source network, shape prior, then N rounds of reward data, reward network and PPO
(docs/rl4seg.md, Method 1 and 5).

Symbols: π_0 = source network, π_i = policy of iteration i, π_ref = frozen reference network, r_i = reward network of
iteration i, x = image, a = mask. A run has one stage per step of the loop; a finished stage has a manifest and is
skipped when the run is resumed, an unfinished one continues from its checkpoint.

supervised/                  π_0
shape_prior/                 the corrector's auto-encoder
adabn/                       π_0 with the batch statistics of the target (norm_mode frozen)
iteration_<i>/reward_data/   triplets and gold masks
iteration_<i>/reward_net/    r_i; further members of an ensemble: iteration_<i>/reward_net_<k>/
iteration_<i>/ppo/           π_i and its critic
baselines/<name>/            what the policy is compared with (baselines.py)
"""

from ...common.checks import check_choice
from ...common.manifests import NAME
from ...common.progress import Progress
from ...common.runs import Run
from ...datasets.echo.images import echo_splits
from ...envs.rl4seg_config import OF_TRUTH
from ..dense_ppo.ppo import DensePPO
from ..experiment import baselines_of, check_names
from .baselines import BASELINES
from .config import RL4SegExperiment
from .context import Context, Plan
from .policies import exported
from .stages import loop, policy_folder, source_net


def check(experiment: RL4SegExperiment) -> None:
    """Raises whatever can be known to be wrong before anything is written."""
    rows = baselines_of(BASELINES, experiment.baselines, experiment)
    check_names([experiment] if experiment.iterations else [], [(row.title, experiment.seed) for row in rows.values()])
    if experiment.test_split is not None:
        check_choice("test_split", experiment.test_split, [*echo_splits(experiment.target), "all"])
    context = Context(experiment, Run("."), trains=False)
    needed = {"source train": context.source, "source val": context.source_val}
    adapts = experiment.iterations or experiment.baselines
    if adapts:
        target = {"target pool": context.target_all, "target val": context.target_val}
        if not len(context.target_all):
            raise ValueError("initial_images is 0 and there is no iteration: the baselines have no image to adapt to")
        if experiment.reward in OF_TRUTH or any("target" in row.supervision for row in rows.values()):
            needed |= target
        elif experiment.gold.source == "gt":
            needed |= {"target pool": context.target_all}
    if experiment.source.data == experiment.target.data and adapts:
        adapted = {*context.target_all.groups, *context.target_val.groups}
        if known := sorted(set(context.source.groups) & adapted):
            raise ValueError(
                f"patients {', '.join(known[:5])} are in the source's training and in the target; keep them apart with "
                f"source.patients and target.patients"
            )
    for name, images in needed.items():
        if lacks := images.unlabelled:
            domain = name.split()[0]
            raise ValueError(
                f"{lacks[0]} in the images of {name} has no labels ({len(lacks)} of {len(images)} have none), but "
                f"{_why(experiment, domain)}; name labelled patients in --{domain}.patients, or take another "
                f"--{domain}.data"
            )


def _why(experiment: RL4SegExperiment, domain: str) -> str:
    """What needs labels of source or target, as a sentence."""
    if domain == "source":
        return "the source network learns from them and is chosen by them"
    return (
        f"this configuration learns from them: reward {experiment.reward!r}, gold.source {experiment.gold.source!r}, "
        f"baselines {experiment.baselines}"
    )


def train(experiment: RL4SegExperiment, run: Run) -> None:
    """Train every stage that is not finished.

    Raises:
        ValueError: none of a policy's masks gave reward data.
    """
    context = Context(experiment, run, trains=True)
    run.progress = Progress(planned(context))
    everything(context)


def planned(context: Context) -> dict[str, float]:
    """Every stage of a run with its work (see `Context.stage`), in the order of the training; {} once all are made."""
    plan = Plan(context)
    everything(plan)
    if all((context.run.folder / name / NAME).is_file() for name in plan.work):
        return {}
    return {name: work() for name, work in plan.work.items()}


def everything(context: Context) -> None:
    """The stages of the loop, and those of the baselines."""
    loop(context)
    for row in baselines_of(BASELINES, context.experiment.baselines, context.experiment).values():
        if row.networks:
            row.networks(context)


def learner(experiment: RL4SegExperiment, run: Run) -> DensePPO:
    """The last policy, π_0 where there is no iteration, as a learner of Stable-Baselines3."""
    context, last = Context(experiment, run, trains=False), experiment.iterations
    return exported(context, context.load(policy_folder(context, last) if last else source_net(context)))
