"""How fast APGA's joint loop and environment are, beside the order of work of its released program.

    python benchmarks/apga_speed.py --threads 1

The program calls the agent image by image, twice a batch, carries each mask to NumPy and back, keeps a graph of the
adversarial loss that nobody asks for, and takes each view by a pass of its own. Results: docs/apga.md, Speed.
"""

import math
import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from measuring import Figure, command_line, measure, parsed, ratios, worked
from segarena.agents.apga.config import AgentConfig, APGAExperiment, MethodName, TrainingConfig, UpdateConfig
from segarena.agents.apga.game import Game, Players
from segarena.agents.apga.joint import Loop
from segarena.agents.apga.masks import boxes
from segarena.agents.apga.methods import method_of
from segarena.agents.apga.rules import ASPECT
from segarena.classifiers.gradcam import gradcam, scale_maps
from segarena.classifiers.masked_images import erased
from segarena.classifiers.xray import Architecture, XrayClassifier
from segarena.common.runs import Run
from segarena.datasets.xray.images import PhantomStudies, XrayConfig, load_xrays
from segarena.envs.apga import APGAEnv
from segarena.segmenters.grid_network import GridNetwork
from segarena.segmenters.unet11 import UNet11
from torch import Generator, Tensor, nn
from torch.optim import Adam
from torch.utils.flop_counter import FlopCounterMode

ITEMS = ("joint", "gradcam", "cutout", "environment")
RATE = 1e-5
PEAK = 989e12
"""Operations a second of an H100 or H200 in bfloat16, as its maker says."""
CELL = 16
"""Pixels of a cell of the light agent, which has 14 of them along a side of 224."""


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    side: int = 224
    """Of the images, pixels; a multiple of 32."""
    batch: int = 25
    classifier: Architecture = "densenet169"
    envs: int = 64
    env_steps: int = 20
    repeats: int = 3


QUICK = Sizes(side=32, batch=4, classifier="small_cnn", envs=4, env_steps=2, repeats=1)


class Bench:
    """The measurements, each of which gives rows of the table."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        self.sizes, self.device = sizes, device
        self.data = XrayConfig(size=sizes.side, phantom_studies=PhantomStudies(train=sizes.batch))
        self.pool = load_xrays(self.data, "train").take(range(sizes.batch)).to(device)
        torch.manual_seed(0)
        self.classifier = XrayClassifier(sizes.classifier).to(device)
        self.unet = UNet11().to(device)
        self.grid = GridNetwork(sizes.side, sizes.side // CELL).to(device)

    def joint(self) -> list[Figure]:
        """A step of agent and classifier on one batch: the released order with UNet11 divided by ours."""
        released = ReleasedOrder(deepcopy(self.classifier), deepcopy(self.unet), self.device)
        images, labels = self.pool.images.cpu().numpy(), self.pool.labels
        games = {
            "legacy": self._game("legacy", "unet11"),
            "reinforce": self._game("reinforce", "unet11"),
            "light": self._game("reinforce", "grid"),
        }
        sides: dict[str, Callable[[], object]] = {"released": lambda: released.step(images, labels)}
        sides |= {name: self._stepper(game) for name, game in games.items()}
        spent = worked(sides, self.sizes.repeats, self.device)
        last = games["legacy"].last_plain_loss
        assert last is not None
        apart = {"difference of the losses after all steps": abs(last.item() - released.plain_loss)}
        operations = {name: counted(run) for name, run in sides.items()}
        rows = []
        for name, what, target in (
            ("legacy", "UNet11, the program's update", None),
            ("reinforce", "UNet11, REINFORCE of 4 masks", 4.0),
            ("light", "light agent, REINFORCE of 4 masks", 10.0),
        ):
            details = {"operations of the released order per ours": operations["released"] / operations[name]}
            details |= {"gflop": operations[name] / 1e9, **(apart if name == "legacy" else {})}
            ratio = ratios(spent["released"], spent[name])
            rows.append(Figure(f"joint step: released order per {what}", "x", ratio, target, details=details))
            rows.append(Figure(f"joint step: {what}", "images/s", [self.sizes.batch / one for one in spent[name]]))
            if self.device.type == "cuda":
                share = [operations[name] / one / PEAK for one in spent[name]]
                rows.append(Figure(f"joint step: {what}, share of the operations that an H200 can do", "", share))
        return rows

    def gradcam(self) -> list[Figure]:
        """Maps of a batch: with hooks on all modules and a backward pass, divided by the closed form."""
        net, x = deepcopy(self.classifier).eval(), self.pool.at(torch.arange(self.sizes.batch, device=self.device))
        by_hooks = Hooks(deepcopy(net))
        apart = float((gradcam(net, x) - by_hooks.maps(x)).abs().max())
        spent = worked(
            {"closed": lambda: gradcam(net, x), "backward": lambda: by_hooks.maps(x)}, self.sizes.repeats, self.device
        )
        ratio = ratios(spent["backward"], spent["closed"])
        return [
            Figure("GradCAM: backward pass per closed form", "x", ratio, details={"largest difference": apart}),
            Figure("GradCAM: closed form", "images/s", [self.sizes.batch / one for one in spent["closed"]]),
        ]

    def cutout(self) -> list[Figure]:
        """Boxes of a batch, erased: drawn again until one fits, in Python, divided by all candidates at once."""
        x = self.pool.at(torch.arange(self.sizes.batch, device=self.device))

        def loop(largest: float) -> Tensor:
            return torch.stack([rejected(image, largest) for image in x])

        random.seed(0)
        spent = worked(
            {
                "ours": lambda: erased(x, boxes(x)),
                "program": lambda: loop(self.sizes.side),
                "one": lambda: loop(1),
            },
            self.sizes.repeats,
            self.device,
        )
        return [
            Figure(
                "cutout: boxes of up to S times the image, tried one by one, per ours",
                "x",
                ratios(spent["program"], spent["ours"]),
            ),
            Figure("cutout: boxes of up to the image, one by one, per ours", "x", ratios(spent["one"], spent["ours"])),
            Figure("cutout: ours", "images/s", [self.sizes.batch / one for one in spent["ours"]]),
        ]

    def environment(self) -> list[Figure]:
        """APGA-MURA-v0 with the packaged classifier, 64 x 64: all environments in one batch, and one by one."""
        return [figure for mode in ("patch", "pixel") for figure in self._environment(mode)]

    def _environment(self, mode: str) -> list[Figure]:
        number, steps = self.sizes.envs, self.sizes.env_steps
        studies = PhantomStudies(train=max(2, number // 2))
        settings: dict[str, Any] = {"action_mode": mode, "phantom_studies": studies, "device": str(self.device)}
        many = APGAEnv(num_envs=number, sampler="shared", **settings)
        one = APGAEnv(num_envs=1, images=many.pool, **settings)
        for env in (many, one):
            env.seed(range(env.num_envs))
            env.reset()
        actions = (torch.rand(number, *many.single_action_space.shape, device=self.device) < 0.1).to(torch.uint8)
        x = many.pool.at(many.index)
        many.classifier.eval()

        def classify() -> None:
            with torch.no_grad():
                for _ in range(steps):
                    many.classifier(x)

        spent = worked(
            {
                "many": lambda: [many.advance(actions) for _ in range(steps)],
                "one": lambda: [one.advance(action[None]) for action in actions for _ in range(steps)],
                "classifier": classify,
            },
            self.sizes.repeats,
            self.device,
        )
        rate = [number * steps / seconds for seconds in spent["many"]]
        share = ratios(spent["classifier"], spent["many"])
        return [
            Figure(f"environment, {mode}: N = {number}", "steps/s", rate),
            Figure(f"environment, {mode}: one by one per all at once", "x", ratios(spent["one"], spent["many"])),
            Figure(f"environment, {mode}: share of a step that the classifier takes", "", share),
        ]

    def _game(self, method: MethodName, kind: Literal["grid", "unet11"]) -> Game:
        """Both networks as they are at first, and a pool that is one batch."""
        experiment = APGAExperiment(
            data=self.data,
            agent=AgentConfig(kind=kind, grid=self.sizes.side // CELL),
            update=UpdateConfig(max_grad_norm=None, learning_rate=RATE),
            training=TrainingConfig(method=method, batch_size=self.sizes.batch, learning_rate=RATE),
        )
        players = Players(deepcopy(self.classifier), deepcopy(self.unet if kind == "unet11" else self.grid)).train()
        return Game(players, Adam(players.parameters(), lr=RATE), self.pool, experiment)

    def _stepper(self, game: Game) -> Callable[[], object]:
        """An epoch of the joint loop, which is one batch."""
        row = method_of(game.experiment)
        loop = Loop(game, row, row.groups(joint=False), self.pool, Run(Path("none")))
        return lambda: loop.train_epoch(game.players, Generator().manual_seed(0))


def counted(run: Callable[[], object]) -> int:
    """Operations of the convolutions and products of one call, a product and a sum being two."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


# -- the order of work of the released program (docs/apga.md, Method 15 and 17) ------------------------------------


class ReleasedOrder:
    """Its joint step: plain images, reward, agent, kept images, each by itself."""

    def __init__(self, classifier: XrayClassifier, agent: UNet11, device: torch.device) -> None:
        self.classifier, self.agent, self.device = classifier.train(), agent.train(), device
        self.of_classifier, self.of_agent = (Adam(net.parameters(), lr=RATE) for net in (classifier, agent))
        self.baseline: float | None = None
        self.plain_loss = math.nan

    def step(self, images: np.ndarray, labels: Tensor) -> None:
        """One batch: images uint8 [B, 1, S, S], labels [B]."""
        x = torch.from_numpy(images / 255.0).to(self.device).float()
        self.plain_loss = self._teach(x, labels)
        self.classifier.eval()
        adversarial = F.cross_entropy(self.classifier(x * self._masks(x, lambda p: p <= 0.5)), labels)
        reward = adversarial.item() - self.plain_loss
        self.classifier.train()
        self.baseline = reward if self.baseline is None else 0.5 * self.baseline + 0.5 * reward
        advantage = reward - self.baseline
        p = self.agent(x).sigmoid()
        towards = (
            F.binary_cross_entropy(p, wanted) for wanted in ((p > 0.5).float(), 0 * p.detach(), 0 * p.detach() + 1)
        )
        loss: Any = 0.0
        for weight, term in zip((100 * advantage, 0.1 * abs(advantage), 0.01 * abs(advantage)), towards, strict=True):
            loss = loss + weight * term
        self.of_agent.zero_grad()
        loss.backward()
        self.of_agent.step()
        self._teach(x * self._masks(x, lambda p: p >= 0.5), labels)

    def _teach(self, x: Tensor, labels: Tensor) -> float:
        loss = F.cross_entropy(self.classifier(x), labels)
        self.of_classifier.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.of_classifier.step()
        return loss.item()

    @torch.no_grad()
    def _masks(self, x: Tensor, keeps: Callable[[np.ndarray], np.ndarray]) -> Tensor:
        """What is kept of each image, [B, 1, S, S], one after the other through NumPy."""
        found: np.ndarray | None = None
        for image in x:
            mask = keeps(self.agent(image[None]).sigmoid().cpu().numpy()).astype(np.float64)
            found = mask if found is None else np.concatenate((found, mask))
        return torch.from_numpy(found).to(self.device).float()


class Hooks:
    """GradCAM with hooks on every module, by a backward pass through the whole network (docs/apga.md, Method 8)."""

    def __init__(self, net: XrayClassifier) -> None:
        self.net, self.kept = net, dict[nn.Module, Tensor]()
        for module in net.modules():
            module.register_forward_hook(self._keep)

    def maps(self, x: Tensor) -> Tensor:
        """As `gradcam`."""
        self.net.zero_grad()
        logits = self.net(x)
        features = self.kept[self.net.body]
        features.retain_grad()
        logits.amax(dim=1).sum().backward()
        assert features.grad is not None
        weights = features.grad.mean(dim=(2, 3), keepdim=True)
        return scale_maps(F.relu((weights * F.relu(features)).sum(dim=1)).detach(), (x.shape[-2], x.shape[-1]))

    def _keep(self, module: nn.Module, given: object, output: Tensor) -> None:
        self.kept[module] = output


def rejected(image: Tensor, largest: float) -> Tensor:
    """An image [1, S, S] with one box erased, drawn in Python until it fits (docs/apga.md, Method 14)."""
    size = image.shape[-1]
    while True:
        s, rho = random.uniform(0, largest) * size * size, random.uniform(ASPECT, 1 / ASPECT)
        width, height = int(math.sqrt(s / rho)), int(math.sqrt(s * rho))
        left, top = random.randrange(size), random.randrange(size)
        if left + width <= size and top + height <= size:
            break
    image = image.clone()
    image[:, top : top + height, left : left + width] = 0
    return image


def main() -> None:
    parser = command_line(__doc__, "apga_speed", ITEMS)
    parser.add_argument("--side", type=int, help="side of the images in pixels, a multiple of 32; default 224 (paper)")
    parser.add_argument("--batch", type=int, help="images in a step; default 25 (paper's program)")
    parser.add_argument("--repeats", type=int, help="repeats of each measurement; default 3")
    given = parsed(parser)
    chosen = {name: getattr(given, name) for name in ("side", "batch", "repeats") if getattr(given, name)}
    sizes = replace(QUICK if given.quick else Sizes(), **chosen)
    bench = Bench(sizes, torch.device(given.device))
    measure(parser, given, asdict(sizes), {item: getattr(bench, item) for item in ITEMS})


if __name__ == "__main__":
    main()
