"""Speed of RL4Seg: playing, learning, metrics and reward data, against plain implementations
(docs/rl4seg.md, Method 13).

`python benchmarks/rl4seg_speed.py` prints a table and writes a JSON file. Every figure is the median of several repeats
after a warm-up; the sides of a ratio run in turns. The networks have random weights, which cost what trained ones cost;
images are phantoms. `rl4seg_plain` holds the other sides. With --device cuda all but validity runs there, at 256 x 256
pixels with networks in bfloat16, and PPO is also compared with the peak of the GPU. Plain validity is that of the
tests, and needs what they need: pip install -e '.[test]'.
"""

import math
import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from measuring import Figure, Parts, alternately, command_line, measure, parsed, rates, ratios, seconds
from rl4seg_plain import PlainPPO, PlainRewardData, plain_validity
from scipy import ndimage
from segarena.agents.dense_ppo.distribution import PixelCategorical
from segarena.agents.dense_ppo.policy import DensePolicy
from segarena.agents.dense_ppo.ppo import DensePPO, DensePPOConfig
from segarena.datasets.echo.images import CLASSES, EchoDataConfig, PhantomPatients, load_echo
from segarena.datasets.images import ImagePool
from segarena.envs.learner_env import LearnerEnv
from segarena.envs.rl4seg import EchoEnv, RewardFunction
from segarena.rewards.corrector import Corrector
from segarena.rewards.echo_validity import valid_masks
from segarena.rewards.reward_data import RewardDataConfig, build_reward_data
from segarena.rewards.reward_net import RewardNet
from segarena.rewards.shape_prior import ARVAE
from segarena.segmenters.unet import UNet
from stable_baselines3.common.distributions import MultiCategoricalDistribution
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

ITEMS = ["distribution", "ppo", "validity", "reward_data"]
K = DensePPOConfig().n_epochs
NEEDED, RELEASED = 2 + 6 * K, 6 + 9 * K
"""Cost of an iteration per image, in forwards of a U-Net, a backward being two: ours, and in
docs/rl4seg.md, Method 13."""
PRIOR_MAPS = 48 / 32
"""Maps of the auto-encoder's first level for each of the U-Net's init_channels."""
PARTS = {
    "network": "perturbed predictions and their noise",
    "corrections": "corrections by the auto-encoder",
    "validity": "validity",
    "files": "files",
}
"""Parts of the work on reward data."""
Masks = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements."""

    size: int = 64
    """Pixels of an image's side, of PPO and reward data."""
    init_channels: int = 16
    """`init_channels` of all U-Nets."""
    batch: int = 8
    """Images of an iteration of PPO."""
    iterations: int = 2
    """Iterations of PPO in a repeat."""
    repeats: int = 7
    maps: tuple[int, ...] = (32, 64)
    """Pixels of a side, of the distribution alone; 4 images each."""
    mask_size: int = 256
    """Pixels of a mask's side, of validity."""
    masks: int = 32
    """Masks of each kind."""
    plain: int = 4
    """Masks, or images of reward data, that the plain implementations get in a repeat."""
    pool: int = 32
    """Images that reward data are made of."""


QUICK = Sizes(32, 4, 4, 1, 2, (16,), 64, 4, 2, 4)
CUDA = Sizes(size=256, init_channels=32, batch=32, iterations=5, pool=128)


@dataclass(frozen=True)
class Bench:
    """The measurements; each gives one or more figures."""

    sizes: Sizes
    device: torch.device
    peak_tflops: float
    folder: Path
    """Temporary: the phantoms' cache, and files of the plain implementation."""

    def phantoms(self, number: int, size: int) -> ImagePool:
        """At least `number` images of vendor b, on the device."""
        patients = PhantomPatients(0, 0, 0, math.ceil(number / 4))
        config = EchoDataConfig(vendor="b", size=size, phantom_patients=patients, cache_dir=str(self.folder))
        return load_echo(config, "pred").to(self.device)

    # -- one number per pixel ------------------------------------------------------------------------------------------

    def distribution(self) -> list[Figure]:
        """Log-probability, entropy and their gradient: one tensor of all pixels against SB3's list of distributions."""
        figures = []
        for size in self.sizes.maps:
            ours, stock = (Scorer(size, self.device) for _ in range(2))
            times = 20  # ours is too short to be timed once
            spent = alternately(
                {"ours": lambda run=ours, n=times: [run.ours() for _ in range(n)], "stock": stock.stock},
                self.sizes.repeats,
                self.device,
            )
            mine = [value / times for value in spent["ours"]]
            what = f"log-probability, entropy and gradient, 4 x {size} x {size} pixels"
            joint, gradient = (float((a - b).abs().max()) for a, b in zip(ours.result, stock.result, strict=True))
            details = {"largest_difference": {"joint_log_prob": joint, "gradient": gradient}}
            figures += [
                Figure(f"{what}: ours", "ms", [1e3 * value for value in mine]),
                Figure(f"{what}: SB3's", "ms", [1e3 * value for value in spent["stock"]]),
                Figure("ratio of the two", "x", ratios(spent["stock"], mine), 30, details=details),
            ]
        return figures

    # -- learning --------------------------------------------------------------------------------------------------

    def ppo(self) -> list[Figure]:
        """Ours, the released order of work in two ways, and environment and data without networks."""
        sizes, device = self.sizes, self.device
        config = DensePPOConfig(num_envs=sizes.batch)
        torch.manual_seed(0)
        reward = RewardNet(classes=len(CLASSES), init_channels=sizes.init_channels).to(device).requires_grad_(False)
        images = self.phantoms(4 * sizes.batch, sizes.size)
        model = learner(images, lambda x, a, index: reward(x, a), config, sizes.init_channels, device)
        steps = sizes.iterations * sizes.batch
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            model.learn(steps, reset_num_timesteps=False)
            peak = torch.cuda.max_memory_allocated(device) / 1e9

        def plainly(plain: PlainPPO) -> None:
            for _ in range(sizes.iterations):
                plain(images.at(torch.randint(len(images), (sizes.batch,), device=device)))

        sides: dict[str, Callable[[], object]] = {"ours": lambda: model.learn(steps, reset_num_timesteps=False)}
        for name in ("released", "plain"):
            plain = plain_ppo(model.policy, reward, config, as_released=name == "released")
            sides[name] = lambda plain=plain: plainly(plain)
        spent = alternately(sides, sizes.repeats, device)
        speed = {name: [steps / value for value in values] for name, values in spent.items()}

        paid = torch.ones(sizes.batch, 1, 1, device=device)
        env = env_of(images, lambda x, a, index: paid, sizes.batch, device)
        env.reset()
        actions = torch.zeros(sizes.batch, sizes.size**2, dtype=torch.uint8, device=device)
        data = rates(lambda: [env.advance(actions) for _ in range(50)], 50 * sizes.batch, sizes.repeats, device)

        flop = forward_flop(sizes.init_channels, sizes.size)
        rate = [value * NEEDED * flop / 1e12 for value in speed["ours"]]
        best = {"ratio_of_the_work": RELEASED / NEEDED}
        details = {"gflop_per_forward": flop / 1e9, "gflop_per_image": NEEDED * flop / 1e9}
        what = f"PPO, {sizes.batch} images of {sizes.size} x {sizes.size}, K = {K}, init_channels {sizes.init_channels}"
        figures = [
            Figure(f"{what}: ours", "images/s", speed["ours"], details=details),
            Figure("the released order of work, in float32 and PyTorch's layout", "images/s", speed["released"]),
            Figure("ratio to it", "x", ratios(spent["released"], spent["ours"])),
            Figure("the released order of work, in our precision and layout", "images/s", speed["plain"]),
            Figure("ratio to this one", "x", ratios(spent["plain"], spent["ours"]), 1.4, details=best),
            Figure("environment and data without networks", "images/s", data),
            Figure("their share of an iteration", "%", [100 * value for value in ratios(speed["ours"], data)]),
            Figure("convolutions that are needed", "TFLOP/s", rate),
        ]
        if device.type == "cuda":
            share = [100 * value / self.peak_tflops for value in rate]
            figures += [
                Figure(f"share of the peak in bfloat16, {self.peak_tflops:g} TFLOP/s", "%", share),
                Figure("peak GPU memory of PPO", "GB", [peak]),
            ]
        return figures

    # -- what a mask is worth --------------------------------------------------------------------------------------

    def validity(self) -> list[Figure]:
        """One core, one mask after the other: true hearts, hearts with wrong borders, holes and islands, and noise."""
        sizes, plain = self.sizes, plain_validity()
        truths = self.phantoms(sizes.masks, sizes.mask_size).labels
        assert truths is not None
        hearts = truths[: sizes.masks].cpu().numpy()
        rng = np.random.default_rng(0)
        noise = rng.integers(len(CLASSES), size=hearts.shape, dtype=np.uint8)
        kinds = {"hearts": hearts, "distorted hearts": distorted(hearts, rng), "noise": noise}
        figures = []
        for kind, masks in kinds.items():
            few = torch.from_numpy(masks[: sizes.plain])
            sides: dict[str, Callable[[], object]] = {"ours": lambda masks=masks: valid_masks(masks)}
            if kind != "noise":  # tens of thousands of components, each of which the plain one looks at
                sides["plain"] = lambda few=few: [plain(mask) for mask in few]
            spent = alternately(sides, sizes.repeats)
            each = [value / len(masks) for value in spent["ours"]]
            verdicts = valid_masks(masks)
            details = {"valid": int(verdicts.sum()), "masks": len(masks)}
            what = f"validity, {sizes.mask_size} x {sizes.mask_size}, {kind}"
            figures.append(Figure(what, "ms/mask", [1e3 * v for v in each], 2, at_most=True, details=details))
            if "plain" in spent:
                slow = [value / len(few) for value in spent["plain"]]
                agree = [plain(mask) for mask in few] == verdicts[: len(few)].tolist()
                figures.append(Figure("the plain rules", "ms/mask", [1e3 * value for value in slow]))
                figures.append(Figure("ratio of the two", "x", ratios(slow, each), details={"same_verdicts": agree}))
        return figures

    # -- reward data -----------------------------------------------------------------------------------------------

    def reward_data(self) -> list[Figure]:
        """Nine triplets for each of many gold images, in batches; and image by image, with and without files."""
        sizes, device, config = self.sizes, self.device, RewardDataConfig()
        torch.manual_seed(0)
        policy = Painter(sizes.init_channels).to(device).eval()
        maps = round(PRIOR_MAPS * sizes.init_channels)
        corrector = Corrector(ARVAE((sizes.size, sizes.size), init_channels=maps).to(device))
        images, parts = painted(self.phantoms(sizes.pool, sizes.size)), Parts(device)
        rows = torch.arange(len(images), device=device)
        few = images.at(rows[: sizes.plain])

        def correct(masks: Tensor) -> Tensor:
            corrector(masks)  # its prior has seen no hearts: what it makes of them is thrown away
            return masks

        corrected = parts.timed("corrections", correct)
        judged, ruled = parts.timed("validity", valid_masks), parts.timed("validity", plain_validity())
        net = deepcopy(policy).to(memory_format=torch.contiguous_format)
        plain = PlainRewardData(net, corrected, ruled, config, self.folder, parts)
        count = {"ours": len(images), "released": len(few)}
        sides: dict[str, Callable[[], int]] = {
            "ours": lambda: len(build_reward_data(policy, images, rows, corrected, judged, config, 0, 0).triplets),
            "released": lambda: plain(few),
        }
        found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for _ in range(sizes.repeats + 1):  # alternately, and the first is the warm-up
            for name, make in sides.items():
                parts.clear()
                parts["all"] = seconds(make, device)
                found[name].append({part: 1e3 * value / count[name] for part, value in parts.items()})
        ours, released = ({part: column(turns[1:], part) for part in turns[0]} for turns in found.values())
        for spent in (ours, released):
            spent.setdefault("files", [0.0] * sizes.repeats)
            others = zip(spent["all"], spent["corrections"], spent["validity"], spent["files"], strict=True)
            spent["network"] = [whole - c - v - f for whole, c, v, f in others]
        no_files = [whole - files for whole, files in zip(released["all"], released["files"], strict=True)]
        what = f"reward data, {sizes.size} x {sizes.size}, init_channels {sizes.init_channels}, all images gold"
        figures = [
            Figure(f"{what}: ours", "ms/image", ours["all"], details={"parts_ms": ours}),
            Figure("as released", "ms/image", released["all"], details={"parts_ms": released}),
            Figure("ratio of the two", "x", ratios(released["all"], ours["all"]), 20),
            Figure("ratio without the files", "x", ratios(no_files, ours["all"])),
            Figure("triplets", "per image", [sides[name]() / count[name] for name in sides]),
        ]
        for part, name in PARTS.items():
            saved = [a - b for a, b in zip(released[part], ours[part], strict=True)]
            figures.append(Figure(f"saved in {name}", "ms/image", saved))
        return figures


# -- what is measured ----------------------------------------------------------------------------------------------


class Scorer:
    """Log-probability of given actions and entropy, summed, and their gradient; both ways, from the same logits."""

    def __init__(self, size: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (4, len(CLASSES), size, size)
        self.logits = torch.randn(shape, generator=generator).to(device).requires_grad_()
        self.actions = torch.randint(len(CLASSES), (4, size * size), generator=generator).to(device)
        self.result = self.actions, self.actions

    def ours(self) -> None:
        pixels = PixelCategorical(self.logits)
        log_prob, entropy = pixels.log_prob(self.actions).sum(dim=(1, 2)), pixels.entropy().sum(dim=(1, 2))
        self._descend(log_prob, entropy)

    def stock(self) -> None:
        flat = self.logits.permute(0, 2, 3, 1).flatten(1)  # [B, H · W · C]
        pixels = MultiCategoricalDistribution([len(CLASSES)] * self.actions.shape[1]).proba_distribution(flat)
        self._descend(pixels.log_prob(self.actions), pixels.entropy())

    def _descend(self, log_prob: Tensor, entropy: Tensor) -> None:
        (gradient,) = torch.autograd.grad((log_prob + entropy).sum(), self.logits)
        self.result = log_prob.detach(), gradient


class Painter(nn.Module):
    """A policy whose mask is always the one that the image was painted from; the output of its U-Net has little
    weight."""

    GREY = 127
    """Grey value of label 1; twice that is label 2."""

    def __init__(self, init_channels: int) -> None:
        super().__init__()
        self.unet = UNet(1, len(CLASSES), init_channels=init_channels)
        self.register_buffer("labels", torch.arange(len(CLASSES)).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return 1e-3 * self.unet(x) - 100 * (x * 255 / self.GREY - self.labels) ** 2


def painted(images: ImagePool) -> ImagePool:
    """Images of the valid masks among the labels, as `Painter` reads them."""
    assert images.labels is not None
    valid = images.take(valid_masks(images.labels).nonzero()[:, 0].tolist())
    assert valid.labels is not None
    return replace(valid, images=(valid.labels * Painter.GREY)[:, None], labels=None)


def distorted(masks: Masks, rng: np.random.Generator) -> Masks:
    """The masks [N, H, W] as a bad network might see them: borders moved, some holes and islands."""
    onehot = (masks[:, None] == np.arange(len(CLASSES))[:, None, None]).astype(np.float32)
    scale = masks.shape[1] / 256
    soft = ndimage.gaussian_filter(onehot, (0, 0, 4 * scale, 4 * scale))
    field = ndimage.gaussian_filter(rng.standard_normal(soft.shape, np.float32), (0, 0, 8 * scale, 8 * scale))
    return (soft + 0.2 * field / field.std()).argmax(axis=1).astype(np.uint8)


def env_of(images: ImagePool, reward: RewardFunction, num_envs: int, device: torch.device) -> EchoEnv:
    """As a training plays it."""
    return EchoEnv(
        images=images, device=device, expose_truth=False, reward_function=reward, num_envs=num_envs, sampler="shared"
    )


def learner(
    images: ImagePool, reward: RewardFunction, config: DensePPOConfig, init_channels: int, device: torch.device
) -> DensePPO:
    """DensePPO with the statistics of each batch, as in the released program."""
    env = LearnerEnv(env_of(images, reward, config.num_envs, device))
    settings = {"init_channels": init_channels, "norm_mode": "batch"}
    return DensePPO(DensePolicy, env, config, policy_kwargs=settings, seed=0, device=device)


def plain_ppo(policy: DensePolicy, reward: RewardNet, config: DensePPOConfig, *, as_released: bool) -> PlainPPO:
    """The plain PPO with copies of the policy's networks and of the reward network."""
    actor, reference, critic, reward = deepcopy((policy.actor, policy.reference, policy.critic, reward))
    assert reference is not None
    assert critic is not None
    return PlainPPO(actor, reference, critic, reward, config, as_released=as_released)


def forward_flop(init_channels: int, size: int) -> int:
    """Floating-point operations of a forward of the policy for one image; a multiplication and an addition are two."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        UNet(1, len(CLASSES), init_channels=init_channels).eval()(torch.zeros(1, 1, size, size))
    return counter.get_total_flops()


def column(turns: list[dict[str, float]], part: str) -> list[float]:
    return [turn[part] for turn in turns]


# -- the command ---------------------------------------------------------------------------------------------------


def main() -> None:
    parser = command_line(__doc__, "rl4seg_speed", ITEMS)
    parser.add_argument("--size", type=int, help="pixels of an image's side; default 64, on CUDA 256")
    parser.add_argument("--init_channels", type=int, help="maps of the U-Nets, see UNet; default 16, on CUDA 32")
    parser.add_argument("--batch", type=int, help="images of an iteration of PPO; default 8, on CUDA 32")
    parser.add_argument("--repeats", type=int, help="timed turns of each measurement; default 7")
    parser.add_argument(
        "--peak_tflops", type=float, default=989.0, help="of the GPU in bfloat16, TFLOP/s; default 989, an H200"
    )
    given = parsed(parser)
    sizes = QUICK if given.quick else CUDA if given.device == "cuda" else Sizes()
    chosen = {name: getattr(given, name) for name in ("size", "init_channels", "batch", "repeats")}
    sizes = replace(sizes, **{name: value for name, value in chosen.items() if value is not None})
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(sizes, torch.device(given.device), given.peak_tflops, Path(folder))
        measure(parser, given, asdict(sizes), {name: getattr(bench, name) for name in ITEMS})


if __name__ == "__main__":
    main()
