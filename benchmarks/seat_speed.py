"""How fast training against attacks and attacks on patches are, beside the order of work of SEAT's released program.

    python benchmarks/seat_speed.py --threads 1

The program computes the gradients of all weights in an attack, waits for the device in every iteration, and reads,
turns and cuts each volume anew for every patch. Results: docs/seat.md, Speed.
"""

import gzip
import io
from dataclasses import asdict, dataclass, replace

import nibabel as nib
import numpy as np
import torch
from measuring import Figure, command_line, measure, parsed, ratios, worked
from scipy import ndimage
from segarena.agents.seat.config import TrainingConfig
from segarena.agents.seat.trainers import NoiseBuffer, Trainer
from segarena.attacks.budget import LinfBall, image_range
from segarena.attacks.replays import Replays
from segarena.attacks.victims import NETWORKS
from segarena.datasets.decathlon.augmentation import AugmentationConfig
from segarena.datasets.decathlon.cases import DecathlonConfig, PhantomCases, load_decathlon
from segarena.datasets.decathlon.sampling import PatchSampler
from segarena.segmenters.dice_ce import dice_ce, dice_ce_of_images
from torch import Tensor

ITEMS = ("attack", "epoch", "ladder")
EPS = 8 / 255
LADDER = tuple(level / 255 for level in (2, 4, 6, 8, 10))


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    task: int | str = 4
    network: str = "segresnet"
    cases: int = 8
    batch: int = 4
    steps: int = 5
    """Of an attack, and iterations of a batch."""
    repeats: int = 3


QUICK = Sizes(task="toy", network="small3d", cases=4, batch=2, steps=2, repeats=1)
CUDA = Sizes(network="rog", cases=64, batch=22, repeats=5)


class Bench:
    """The measurements, each of which gives rows of the table."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        self.sizes, self.device = sizes, device
        torch.manual_seed(0)
        self.data = DecathlonConfig(task=sizes.task, phantom_cases=PhantomCases(labelled=max(2 * sizes.cases, 10)))
        self.plan = self.data.resolved_plan()
        self.pool = load_decathlon(self.data, f"train[:{sizes.cases}]").to(device)
        self.net = NETWORKS[sizes.network](len(self.pool.channels), len(self.pool.classes)).to(device)
        self.images, self.labels = PatchSampler(self.pool, self.plan, seed=0).batch(
            torch.arange(sizes.batch, device=device), 0
        )

    def attack(self) -> list[Figure]:
        """PGD: the program's order of work, which also computes the gradients of the weights, divided by ours."""

        def ours() -> Tensor:
            replays = Replays(self.net, dice_ce_of_images)
            for step in range(self.sizes.steps):
                if step == 0:
                    replays.begin(LinfBall.of_range(self.images, EPS), self.labels)
                else:
                    replays.advance(0.25)
            replays.move(0.25)
            return replays.adversarial

        def plain() -> Tensor:
            low, high = image_range(self.images)
            radius, delta, norms = EPS * (high - low), torch.zeros_like(self.images), []
            self.net.eval()
            for _ in range(self.sizes.steps):
                moved = torch.minimum(torch.maximum(self.images + delta, low), high).requires_grad_()
                self.net.zero_grad()
                loss = dice_ce(self.net(moved), self.labels)
                loss.backward()  # type: ignore[no-untyped-call]
                assert moved.grad is not None
                norms.append(moved.grad.abs().sum().item())
                delta = torch.minimum(torch.maximum(delta + 0.25 * radius * moved.grad.sign(), -radius), radius)
                delta = torch.minimum(torch.maximum(self.images + delta, low), high) - self.images
            return self.images + delta

        self.net.eval()
        apart = float(((ours() - plain()).abs() > 1e-4).float().mean())
        spent = worked({"ours": ours, "plain": plain}, self.sizes.repeats, self.device)
        ratio = ratios(spent["plain"], spent["ours"])
        return [
            Figure(
                "attack: order of the released program per ours",
                "x",
                ratio,
                1.8,
                details={"share of voxels that differ": apart},
            ),
            Figure("attack: patches a second, gradients counted", "patches/s", self._rates(spent["ours"])),
        ]

    def epoch(self) -> list[Figure]:
        """An epoch of Free-AT with its data: volumes unpacked, turned by splines and cut one by one, per ours."""
        config = TrainingConfig(schedule="constant", most_iterations=self.sizes.steps, batch_size=self.sizes.batch)
        files = [packed(self.pool[row].image.cpu().numpy()) for row in range(len(self.pool))]
        truth = [packed(self.pool[row].label.cpu().numpy()[None]) for row in range(len(self.pool))]  # type: ignore[union-attr]
        sampler = PatchSampler(self.pool, self.plan, AugmentationConfig(), seed=0)
        generator = np.random.default_rng(0)
        rows = range(len(self.pool))
        firsts = [*range(0, len(self.pool), self.sizes.batch)]

        def ours() -> None:
            trainer = Trainer(self.net, self._optimizer(), config, NoiseBuffer())
            self.net.train()
            for batch in sampler.order(0).split(self.sizes.batch):
                trainer.batch(*sampler.batch(batch, 0), self.sizes.steps)

        def plain() -> None:
            optimizer, noise, norms = self._optimizer(), None, []
            self.net.train()
            for first in firsts:
                cut = [self._cut(files[row], truth[row], generator) for row in rows[first : first + self.sizes.batch]]
                images, labels = (torch.stack(part).to(self.device) for part in zip(*cut, strict=True))
                low, high = image_range(images)
                radius = EPS * (high - low)
                noise = torch.zeros_like(images) if noise is None else noise[: len(images)]
                for _ in range(self.sizes.steps):
                    moved = torch.minimum(torch.maximum(images + noise, low), high).requires_grad_()
                    optimizer.zero_grad()
                    loss = dice_ce(self.net(moved), labels)
                    loss.backward()  # type: ignore[no-untyped-call]
                    assert moved.grad is not None
                    norms.append((loss.item(), moved.grad.abs().sum().item()))
                    noise = torch.minimum(torch.maximum(noise + 0.5 * radius * moved.grad.sign(), -radius), radius)
                    optimizer.step()

        spent = worked({"ours": ours, "plain": plain}, self.sizes.repeats, self.device)
        drawn = worked(
            {"draw": lambda: [sampler.batch(batch, 0) for batch in sampler.order(0).split(self.sizes.batch)]},
            self.sizes.repeats,
            self.device,
        )
        share = ratios(drawn["draw"], spent["ours"])
        return [
            Figure("epoch: order of the released program per ours", "x", ratios(spent["plain"], spent["ours"]), 3.0),
            Figure("epoch: share that drawing and augmenting patches takes", "", share),
        ]

    def ladder(self) -> list[Figure]:
        """PGD on one patch at five radii: one after the other per all in one batch."""
        image, label = self.images[:1], self.labels[:1]
        parts = [LinfBall.of_range(image, eps) for eps in LADDER]
        fields = ([getattr(one, name) for one in parts] for name in ("images", "lower", "upper", "radius"))
        stacked = LinfBall(*(torch.cat(part) for part in fields))

        def run(ball: LinfBall) -> Tensor:
            replays = Replays(self.net, dice_ce_of_images)
            replays.begin(ball, label.expand(len(ball.images), -1, -1, -1))
            for _ in range(1, self.sizes.steps):
                replays.advance(0.25)
            return replays.adversarial

        together, single = run(stacked), torch.cat([run(one) for one in parts])
        apart = float(((together - single).abs() > 1e-4).float().mean())
        spent = worked(
            {"together": lambda: run(stacked), "single": lambda: [run(one) for one in parts]},
            self.sizes.repeats,
            self.device,
        )
        ratio = ratios(spent["single"], spent["together"])
        return [
            Figure(
                "five radii of a patch: one by one per stacked",
                "x",
                ratio,
                details={"share of voxels that differ": apart},
            )
        ]

    def _cut(self, image: bytes, label: bytes, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """A patch as the program makes it: the whole volume unpacked in double precision, cut, turned by splines."""
        volume, truth = unpacked(image), unpacked(label)[0]
        size = self.plan.p_size
        pads = [max(0, (p - s + 1) // 2 + 3) if s <= p else 0 for p, s in zip(size, truth.shape, strict=True)]
        volume = np.pad(volume, [(0, 0), *((pad, pad) for pad in pads)], mode="reflect")
        truth = np.pad(truth, [(pad, pad) for pad in pads], mode="reflect")
        corner = [generator.integers(0, s - p + 1) for p, s in zip(size, truth.shape, strict=True)]
        place = tuple(slice(a, a + p) for a, p in zip(corner, size, strict=True))
        angle = float(generator.uniform(-15, 15))
        turned = [ndimage.rotate(one[place], angle, reshape=False, order=3) for one in volume]
        labels = ndimage.rotate(truth[place], angle, reshape=False, order=0)
        inside = tuple(slice((p - n) // 2, (p - n) // 2 + n) for p, n in zip(size, self.plan.in_size, strict=True))
        picture = np.stack([one[inside] for one in turned]).astype(np.float32)
        return torch.from_numpy(picture), torch.from_numpy(labels[inside].astype(np.int64))

    def _optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net.parameters(), lr=1e-3, weight_decay=1e-5, amsgrad=True)

    def _rates(self, spent: list[float]) -> list[float]:
        return [self.sizes.batch * self.sizes.steps / one for one in spent]


def packed(volume: np.ndarray) -> bytes:
    """A volume [C, X, Y, Z] as a gzipped NIfTI file."""
    image = nib.Nifti1Image(np.moveaxis(volume.astype(np.float32), 0, -1), np.eye(4))
    return gzip.compress(image.to_bytes(), compresslevel=1)


def unpacked(content: bytes) -> np.ndarray:
    """The volume [C, X, Y, Z] of such a file, in double precision."""
    image = nib.Nifti1Image.from_stream(io.BytesIO(gzip.decompress(content)))
    return np.moveaxis(np.asarray(image.get_fdata()), -1, 0)


def main() -> None:
    parser = command_line(__doc__, "seat_speed", ITEMS)
    given = parsed(parser)
    sizes = QUICK if given.quick else CUDA if given.device == "cuda" else Sizes()
    if given.device == "cuda" and given.quick:
        sizes = replace(sizes, repeats=1)
    bench = Bench(sizes, torch.device(given.device))
    measure(parser, given, asdict(sizes), {item: getattr(bench, item) for item in ITEMS})


if __name__ == "__main__":
    main()
