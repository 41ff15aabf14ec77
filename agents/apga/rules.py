"""Reference policies of APGA's environment: masks that are not learned (docs/apga.md, Method 14).

A rule gives masks [N, 1, S, S], bool or in [0, 1], for the images of all environments; `MaskPolicy` makes actions of
any mode from them. A trained network is such a rule too: `MaskPolicy(lambda env: net(x).sigmoid() > 0.5)`. Eq. n.m are
those of docs/apga.md, Method n.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ...classifiers.gradcam import SELECTED, gradcam
from ...classifiers.masked_images import enlarge
from ...classifiers.xray import XrayClassifier
from ...envs.apga import APGAEnv
from ...envs.apga_actions import box_masks
from ...segmenters.otsu import otsu_masks
from ..policy import Policy, RandomPolicy, Reference

Rule = Callable[[APGAEnv], Tensor]
"""Masks [N, 1, S, S] for the images of an environment."""
DROPPED = 0.5398
"""Share of the pixels that pixel_dropout selects: Φ(0.1) of the normal distribution."""
CANDIDATES = 128
"""Boxes that are drawn for each image, of which the first that fits is taken: one in 7.6 does."""
ASPECT = 0.3
"""Height over width of a box is drawn from this to its inverse."""
MOST_CELLS = 12
"""Cells of which all masks are tried."""
AT_ONCE = 1024
"""Masks that are judged by one call of the classifier."""


@dataclass
class MaskPolicy:
    """Acts so that the mask of each episode comes near to that of a rule, which is asked when an episode begins."""

    rule: Rule
    wanted: Tensor | None = field(default=None, init=False)
    """Masks of the episodes that are running, [N, 1, S, S]."""

    def __call__(self, env: APGAEnv) -> Tensor:
        if self.wanted is None or env.horizon == 1:
            self.wanted = self.rule(env)
        elif bool((begun := env.t == 0).any()):
            self.wanted = torch.where(begun[:, None, None, None], self.rule(env), self.wanted)
        return env.actions_for(self.wanted)


def constant(value: bool) -> Rule:
    """Nothing, or all."""
    return lambda env: torch.full((env.num_envs, 1, env.config.size, env.config.size), value, device=env.device)


@dataclass
class RandomMask:
    """Each cell, or each pixel, with probability `share`, from a generator on the CPU, so that devices agree."""

    share: float
    seed: int
    of_pixels: bool = False
    """Draw for pixels, whatever the grid."""

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)

    def __call__(self, env: APGAEnv) -> Tensor:
        size = env.config.size
        side = size if self.of_pixels else env.mask_actions.grid
        drawn = torch.rand((env.num_envs, 1, side, side), generator=self._generator) < self.share
        return enlarge(drawn, size).to(env.device)


@dataclass
class Cutout:
    """One box of the law of `cutout_boxes`."""

    seed: int

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)

    def __call__(self, env: APGAEnv) -> Tensor:
        return box_masks(cutout_boxes(env.num_envs, env.config.size, self._generator), env.config.size).to(env.device)


def cutout_boxes(number: int, size: int, generator: torch.Generator) -> Tensor:
    """Boxes int64 [number, 4]: top, left, height, width, in pixels of images size x size (Eq. 14.1).

    Drawn on the device of the generator. The first candidate that fits is taken; where none does, which happens to one
    box in 10^7, the box is empty.
    """
    device = generator.device
    s, rho, top, left = torch.rand((4, number, CANDIDATES), generator=generator, device=device, dtype=torch.float64)
    s, rho = s * size * size, ASPECT + rho * (1 / ASPECT - ASPECT)
    width, height = (s / rho).sqrt().floor(), (s * rho).sqrt().floor()
    left, top = (left * size).floor(), (top * size).floor()
    fits = (left + width <= size) & (top + height <= size)
    drawn = torch.stack((top, left, height * fits, width * fits), dim=2).long()
    first = fits.int().argmax(dim=1)
    return drawn[torch.arange(number, device=device), first]


@dataclass(frozen=True)
class GradCAM:
    """Where the closed-form map of the class that the classifier finds likeliest exceeds `threshold`."""

    threshold: float = SELECTED

    def __call__(self, env: APGAEnv) -> Tensor:
        net = env.classifier
        if not isinstance(net, XrayClassifier):
            raise ValueError(f"GradCAM has a closed form for an XrayClassifier, but the classifier is {type(net)}")
        training = net.training
        maps = gradcam(net.eval(), env.pool.at(env.index))[:, None]
        net.train(training)
        return maps > self.threshold


@dataclass(frozen=True)
class Saliency:
    """The `share` of the cells in which the loss depends most on the pixels: mean of |dℓ/dx| over each."""

    share: float = 0.1

    def __call__(self, env: APGAEnv) -> Tensor:
        net, grid = env.classifier, env.mask_actions.grid
        x = env.pool.at(env.index).requires_grad_()
        training = net.training
        net.eval()
        with torch.enable_grad():
            loss = F.cross_entropy(net(x).float(), env.pool.labels[env.index], reduction="sum")
            (slope,) = torch.autograd.grad(loss, x)
        net.train(training)
        slope = F.avg_pool2d(slope.abs(), env.config.size // grid)
        most = slope.flatten(1).topk(max(1, round(self.share * grid * grid)), dim=1).indices
        chosen = torch.zeros_like(slope.flatten(1)).scatter(1, most, 1.0).view_as(slope) > 0
        return enlarge(chosen, env.config.size)


def foreground(env: APGAEnv) -> Tensor:
    """Pixels above Otsu's threshold of their image."""
    return otsu_masks(env.pool.images[env.index])


def brute_force(env: APGAEnv) -> Tensor:
    """Of all masks the one with the highest reward, the first of several; ValueError for more than 12 cells."""
    grid, cells = env.mask_actions.grid, env.mask_actions.grid**2
    if cells > MOST_CELLS:
        raise ValueError(f"brute_force tries all masks of at most {MOST_CELLS} cells, but the grid has {cells}")
    numbers = torch.arange(2**cells, device=env.device)
    every = ((numbers[:, None] >> torch.arange(cells, device=env.device)) & 1).bool().view(-1, 1, grid, grid)
    env_ids = torch.arange(env.num_envs, device=env.device)
    rewards = [
        env.preview(part.repeat(env.num_envs, 1, 1, 1), env_ids.repeat_interleave(len(part))).view(env.num_envs, -1)
        for part in torch.split(every, max(1, AT_ONCE // env.num_envs))
    ]
    best = torch.cat(rewards, dim=1).argmax(dim=1)
    return enlarge(every[best], env.config.size)


def _of(rule: Callable[[int], Rule]) -> Callable[[APGAEnv, int], Policy[APGAEnv]]:
    """Makes the policy of a rule that may need a seed."""
    return lambda env, seed: MaskPolicy(rule(seed))


MODES_OF_MASKS = {"action_mode": ("patch", "pixel", "sequential", "beta")}
POLICIES: dict[str, Reference[APGAEnv]] = {
    "random": Reference("Any action, uniformly.", lambda env, seed: RandomPolicy(env.single_action_space, seed)),
    "none": Reference("Nothing is selected.", _of(lambda seed: constant(False)), needs=MODES_OF_MASKS),
    "all": Reference("Everything is selected.", _of(lambda seed: constant(True))),
    "random_mask": Reference("Each cell with probability 0.1.", _of(lambda seed: RandomMask(0.1, seed))),
    "cutout": Reference("One random box.", _of(lambda seed: Cutout(seed))),
    "pixel_dropout": Reference(
        "Each pixel with probability 0.54.", _of(lambda seed: RandomMask(DROPPED, seed, of_pixels=True))
    ),
    "foreground": Reference("Pixels above Otsu's threshold.", _of(lambda seed: foreground)),
    "gradcam": Reference("GradCAM above 0.5, of the class that is found.", _of(lambda seed: GradCAM())),
    "saliency_topk": Reference(
        "The tenth of the cells with the steepest loss.", _of(lambda seed: Saliency()), supervision="target"
    ),
    "brute_force": Reference(
        "The best of all masks of a small grid.",
        _of(lambda seed: brute_force),
        supervision="target",
        needs={"action_mode": ("patch", "sequential"), "grid": (2, 3, 1)},
    ),
}
"""Reference policies of APGA-MURA-v0 by name."""
