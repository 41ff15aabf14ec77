"""How fast attacks on segmentation networks are, beside libraries and the order of work of RP-PGD's released program.

    python benchmarks/attack_speed.py

The libraries are compared where they are installed: `pip install "segarena[attacks]"` brings foolbox; torchattacks,
which wants an old version of requests, comes by `pip install --no-deps torchattacks`. Results: docs/rp-pgd.md, Results.
"""

import importlib
import statistics
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from measuring import Figure, apart, command_line, measure, megabytes, parsed, ratios, seconds, worked
from segarena.attacks.methods import ATTACKS
from segarena.attacks.prototypes import class_masks, inter_class, intra_class, prototypes
from segarena.attacks.regions import region_schedule
from segarena.attacks.victim import Normalized
from segarena.datasets.images import IGNORED, IMAGENET_MEAN, IMAGENET_STD
from segarena.datasets.scenes.images import SceneDataConfig, load_scenes
from segarena.envs.attack_tasks import VOCAttackEnv
from segarena.segmenters.pspnet import PSPNet
from segarena.segmenters.unet import UNet
from torch import Tensor, nn

ITEMS = ("libraries", "step", "training", "prototypes", "memory", "environments")
EPS, STEP = 0.03, 0.01
ALL_CLASSES: tuple[int, ...] = ()
"""That the intra-class term leaves out."""


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    side: int = 193
    """Of images, pixels."""
    library_side: int = 97
    """Of those that the libraries attack."""
    backbone: str = "resnet18"
    classes: int = 21
    batch: int = 2
    repeats: int = 3
    prototype_maps: int = 512
    prototype_side: int = 473
    prototype_classes: int = 6
    """That are in the labels."""
    memory_steps: int = 10_000
    envs: int = 16
    env_side: int = 65


QUICK = Sizes(
    side=33, library_side=33, classes=6, repeats=1, prototype_maps=8, prototype_side=41, memory_steps=200, envs=2,
    env_side=33,
)  # fmt: skip
CUDA = Sizes(
    side=473, library_side=473, backbone="resnet50", batch=8, repeats=5, prototype_maps=2048, prototype_classes=21
)  # fmt: skip


class Bench:
    """The measurements, each of which gives rows of the table."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        self.sizes, self.device = sizes, device
        torch.manual_seed(0)
        self.images, self.labels = scenes(sizes.side, sizes.batch, device)
        network = PSPNet(3, sizes.classes, backbone=sizes.backbone)  # type: ignore[arg-type]
        self.net = Normalized(network, IMAGENET_MEAN, IMAGENET_STD).to(device).eval()

    def libraries(self) -> list[Figure]:
        """PGD of 20 steps from the clean image: seconds of a library divided by ours, and what both leave."""
        steps = 20
        images, labels = scenes(self.sizes.library_side, self.sizes.batch, self.device)

        def ours() -> Tensor:
            return ATTACKS["pgd"](self.net, images, labels, eps=EPS, steps=steps, step_size=STEP, random_start=False)

        sides: dict[str, Callable[[], Tensor]] = {"ours": ours}
        missing = []
        for name, made in (("torchattacks", torchattacks_pgd), ("foolbox", foolbox_pgd)):
            try:
                sides[name] = made(self.net, images, labels, steps)
            except ImportError:
                missing.append(name)
        damage = {name: self._loss(run(), labels) for name, run in sides.items()}
        spent = worked(sides, self.sizes.repeats, self.device)
        details = {"mean_cross_entropy": damage, "clean": self._loss(images, labels)}
        rows = [Figure("PGD, 20 steps", "s", spent["ours"], details=details)]
        rows += [
            Figure(f"PGD, seconds of {name} per ours", "", ratios(spent[name], spent["ours"]), 0.9, details=details)
            for name in sides
            if name != "ours"
        ]
        for name in missing:
            print(f"{name} is not installed and is left out", file=sys.stderr)
        return rows

    def step(self) -> list[Figure]:
        """A step of RP-PGD++ beside the forward and backward pass to the input, without which no attack can be."""
        steps = 3

        def attack() -> None:
            ATTACKS["rp_pgd_pp"](self.net, self.images, self.labels, eps=EPS, steps=steps, feature_layer="model.layer4")

        def pgd() -> None:
            ATTACKS["pgd"](self.net, self.images, self.labels, eps=EPS, steps=steps)

        bare = frozen_copy(self.net)

        def passes() -> None:
            for _ in range(steps):
                x = self.images.clone().requires_grad_()
                torch.autograd.grad(F.cross_entropy(bare(x), self.labels, ignore_index=IGNORED), x)

        spent = worked({"attack": attack, "pgd": pgd, "passes": passes}, self.sizes.repeats, self.device)
        return [
            Figure("RP-PGD++, a step", "s", [value / steps for value in spent["attack"]]),
            Figure(
                "RP-PGD++, a step per forward and backward pass",
                "",
                ratios(spent["attack"], spent["passes"]),
                1.1,
                True,
            ),
            Figure("PGD, a step per forward and backward pass", "", ratios(spent["pgd"], spent["passes"]), 1.1, True),
        ]

    def training(self) -> list[Figure]:
        """An iteration of adversarial training in the order of the released program, and in ours."""
        net, half = deepcopy(self.net), len(self.images) // 2
        optimizer = torch.optim.SGD(net.parameters(), 1e-4, momentum=0.9)

        def update(adversarial: Tensor) -> None:
            net.train()
            mixed = torch.cat([self.images[:half], adversarial])
            logits, auxiliary, _ = net.model.training_outputs(net.normalize(mixed))
            loss = sum(
                weight * F.cross_entropy(found, self.labels, ignore_index=IGNORED)
                for weight, found in ((1, logits), (0.4, auxiliary))
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        def released() -> None:
            net.eval()
            update(released_attack(net, self.images, self.labels)[half:])

        def ours() -> None:
            found = ATTACKS["rp_pgd_pp"](
                net, self.images[half:], self.labels[half:], eps=EPS, steps=3, feature_layer="model.layer4"
            )
            update(found)

        spent = worked({"released": released, "ours": ours}, self.sizes.repeats, self.device)
        return [
            Figure("iteration of adversarial training", "s", spent["ours"]),
            Figure("iteration, released order per ours", "", ratios(spent["released"], spent["ours"]), 1.8),
        ]

    def prototypes(self) -> list[Figure]:
        """Both prototype terms and their gradient: masks brought to the features, or features to the masks."""
        spent, peaks, values = {}, {}, {}
        for name in ("pooled", "resized"):
            repeats = self.sizes.repeats if name == "pooled" else 1
            given = (name, self.sizes, str(self.device), repeats)
            spent[name], peaks[name], values[name] = apart(prototype_part, given)
        below = statistics.median(spent["pooled"])
        times = [value / below for value in spent["resized"]]
        return [
            Figure("prototype terms", "ms", [1000 * value for value in spent["pooled"]]),
            Figure("prototype terms, features resized and looped over, per ours", "", times, 30),
            Figure("prototype terms, peak memory", "MB", [peaks["pooled"]], details={"inter": values["pooled"]}),
            Figure("… of features resized", "MB", [peaks["resized"]], details={"inter": values["resized"]}),
        ]

    def memory(self) -> list[Figure]:
        """Growth of the process over many steps of an attack on a small network."""
        grown, spent = apart(memory_part, (self.sizes.memory_steps, str(self.device)))
        return [
            Figure(f"memory gained in {self.sizes.memory_steps} steps", "MB", [grown], 20, True, {"seconds": spent})
        ]

    def environments(self) -> list[Figure]:
        """An episode of three steps of RPPGD-VOC-v0: images at once, and one environment for each."""
        number, settings = self.sizes.envs, {"size": self.sizes.env_side, "split": "train[:16]", "horizons": [3]}
        together, *alone = (
            VOCAttackEnv(num_envs=envs, device=self.device, **settings) for envs in (number, *([1] * number))
        )

        def play(envs: Sequence[VOCAttackEnv]) -> None:
            for env in envs:
                env.reset()
                table = env.script("segpgd")
                for _ in range(3):
                    env.step(env.scripted(table))

        spent = worked(
            {"at once": lambda: play([together]), "one": lambda: play(alone)}, self.sizes.repeats, self.device
        )
        steps = [3 * number / value for value in spent["at once"]]
        return [
            Figure(f"RPPGD-VOC-v0, {number} images at once", "steps/s", steps),
            Figure(
                f"… {number} environments of one image, seconds per these", "", ratios(spent["one"], spent["at once"])
            ),
        ]

    def _loss(self, images: Tensor, labels: Tensor) -> float:
        with torch.no_grad():
            return F.cross_entropy(self.net(images), labels, ignore_index=IGNORED).item()


def scenes(side: int, number: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images [B, 3, side, side] and labels of phantom scenes."""
    pool = load_scenes(SceneDataConfig(size=side), f"train[:{number}]").pool()
    assert pool.labels is not None
    return pool.images.to(device).float() / 255, pool.labels.to(device).long()


def frozen_copy(net: nn.Module) -> nn.Module:
    """The network without gradients of its parameters."""
    return deepcopy(net).requires_grad_(requires_grad=False)


# -- libraries -----------------------------------------------------------------------------------------------------


def torchattacks_pgd(net: nn.Module, images: Tensor, labels: Tensor, steps: int) -> Callable[[], Tensor]:
    """PGD of torchattacks, whose cross-entropy takes label maps as they are and ignores -100."""
    attack = importlib.import_module("torchattacks").PGD(net, eps=EPS, alpha=STEP, steps=steps, random_start=False)
    marked = torch.where(labels == IGNORED, -100, labels)
    return lambda: attack(images, marked)


def foolbox_pgd(net: nn.Module, images: Tensor, labels: Tensor, steps: int) -> Callable[[], Tensor]:
    """PGD of foolbox with a loss of pixels: its own takes one label for each image."""
    foolbox, eagerpy = (importlib.import_module(name) for name in ("foolbox", "eagerpy"))

    class PixelPGD(foolbox.attacks.LinfPGD):  # type: ignore[misc, name-defined]
        def get_loss_fn(self, model: Any, _labels: Any) -> Callable[[Any], Any]:
            return lambda x: eagerpy.astensor(F.cross_entropy(model(x).raw, labels, ignore_index=IGNORED))

    wrapped = foolbox.PyTorchModel(net, bounds=(0, 1), device=images.device)
    attack = PixelPGD(abs_stepsize=STEP, steps=steps, random_start=False)
    criterion = foolbox.criteria.Misclassification(torch.zeros(len(images), dtype=torch.int64, device=images.device))
    return lambda: attack.run(wrapped, images, criterion, epsilon=EPS)


# -- the order of work of the released program (docs/rp-pgd.md, Method 10) --------------------------------------------


def released_attack(net: Normalized, images: Tensor, labels: Tensor, steps: int = 3) -> Tensor:
    """RP-region on all images, in the program's order: 1 + 3 forward passes of all heads, and one more at the end, and
    3 backward passes with the gradients of all weights. Of its prototype part, which has no effect there, nothing."""
    valid = labels != IGNORED

    def outputs(x: Tensor) -> tuple[Tensor, Tensor]:
        logits, auxiliary, _ = net.model.training_outputs(net.normalize(x))
        return logits, auxiliary

    with torch.enable_grad():
        x, right = images, outputs(images)[0].argmax(dim=1) == labels
        regions = torch.where(right, 1, 2) * valid
        for t in range(1, steps + 1):
            x = x.detach().requires_grad_()
            logits, auxiliary = outputs(x)
            regions = torch.where((regions == 1) & (logits.argmax(dim=1) != labels), 3, regions)
            losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED)
            total = 0 * auxiliary.sum()
            for number, weight in zip((1, 3, 2), region_schedule(t, steps), strict=True):
                inside = regions == number
                total = total + weight * (losses * inside).sum() / inside.sum().clamp(min=1)
            net.zero_grad(set_to_none=True)
            total.backward()
            assert x.grad is not None
            moved = x.detach() + EPS / steps * x.grad.sign()
            x = torch.min(torch.max(moved, images - EPS), images + EPS).clamp(0, 1)
        outputs(x)
    return x


# -- parts in processes of their own --------------------------------------------------------------------------------


def prototype_part(given: tuple[str, Sizes, str, int]) -> tuple[list[float], float, float]:
    """Seconds of each repeat, MB at the peak above those before, and the inter-class term, alike in both ways."""
    name, sizes, where, repeats = given
    device = torch.device(where)
    generator = torch.Generator().manual_seed(0)
    side, grid = sizes.prototype_side, (sizes.prototype_side - 1) // 8 + 1
    phi = torch.rand(1, sizes.prototype_maps, grid, grid, generator=generator).to(device)
    labels = torch.arange(side * side).view(1, side, side) * sizes.prototype_classes // (side * side)
    labels = labels.to(device)
    inside = (torch.rand(labels.shape, generator=generator) < 0.8).to(device)
    values = []

    def run() -> None:
        features = phi.detach().requires_grad_()
        if name == "pooled":
            protos = prototypes(features, class_masks(labels, inside, sizes.classes, features))
            inter, intra = inter_class(protos).sum(), intra_class(protos, ALL_CLASSES).sum()
        else:
            inter, intra = resized_terms(features, labels, inside)
        torch.autograd.grad(inter + intra, features)
        values.append(inter.item())

    if device.type == "cuda":
        run()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        before = megabytes("VmRSS")
    spent = [seconds(run, device) for _ in range(repeats + (name == "pooled"))][name == "pooled" :]
    if device.type == "cuda":
        return spent, (torch.cuda.max_memory_allocated(device) - before) / 1e6, values[-1]
    return spent, megabytes("VmHWM") - before, values[-1]


def resized_terms(features: Tensor, labels: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Both terms as in the program, but for its defects: features at full size, and a loop over classes."""
    full = F.interpolate(features, size=labels.shape[1:], mode="bilinear", align_corners=True)[0]
    means, terms = [], []
    for number in torch.unique(labels[inside]).tolist():
        chosen = ((labels == number) & inside)[0]
        pixels = (full * chosen)[:, chosen]
        means.append(pixels.mean(dim=1))
        similar = (1 + F.cosine_similarity(pixels, means[-1][:, None], dim=0)) / 2
        low, high = similar[similar < 0.9], similar[similar >= 0.9]
        terms.append(sum(w * part.mean() for w, part in ((0.75, low), (0.25, high)) if len(part)))
    units = F.normalize(torch.stack(means), dim=1)
    pairs = torch.triu_indices(len(means), len(means), 1)
    return ((1 + (units @ units.T)[pairs[0], pairs[1]]) / 2).mean(), torch.stack(terms).mean()


def memory_part(given: tuple[int, str]) -> tuple[float, float]:
    """MB gained between the first tenth and the last of so many steps, and seconds of all."""
    steps, where = given
    device = torch.device(where)
    torch.manual_seed(0)
    net = UNet(1, 3, init_channels=4).to(device)
    images, labels = torch.rand(1, 1, 32, 32, device=device), torch.randint(0, 3, (1, 32, 32), device=device)

    def used() -> float:
        return torch.cuda.memory_allocated(device) / 1e6 if device.type == "cuda" else megabytes("VmRSS")

    def attack() -> None:
        ATTACKS["rp_pgd_pp"](net, images, labels, eps=EPS, steps=steps // 10, feature_layer="down.4")

    spent = [seconds(attack, device)]
    before = used()
    spent += [seconds(attack, device) for _ in range(9)]
    return max(used() - before, 0.0), sum(spent)


def main() -> None:
    parser = command_line(__doc__, "attack_speed", ITEMS)
    parser.add_argument("--repeats", type=int, help="timed turns of each measurement; default 3, on CUDA 5")
    given = parsed(parser)
    sizes = QUICK if given.quick else CUDA if given.device == "cuda" else Sizes()
    if given.repeats:
        sizes = replace(sizes, repeats=given.repeats)
    bench = Bench(sizes, torch.device(given.device))
    measure(parser, given, asdict(sizes), {name: getattr(bench, name) for name in ITEMS})


if __name__ == "__main__":
    main()
