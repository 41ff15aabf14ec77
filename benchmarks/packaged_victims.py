"""Train the small victims that come with the package, on phantoms, in some minutes each on one core:

    python benchmarks/packaged_victims.py --out segmenters/weights

Scenes come from the split train (numbers from 0), slices with tumour from classifier_train; a quarter of the epochs is
added at a tenth of the learning rate, and the last epoch is kept. Figures are of scenes of val and slices of
classifier_val. Volumes come from phantoms that no fold holds (numbers from 50), in augmented patches; figures are of
the middle of the 50 that folds divide. Their cards stand beside the weights.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from segarena.attacks.victim import Normalized
from segarena.attacks.victims import save_victim
from segarena.common.overlap import class_counts, dice_case
from segarena.common.runs import Run
from segarena.datasets.decathlon.augmentation import AugmentationConfig
from segarena.datasets.decathlon.cases import DecathlonConfig, PhantomCases, load_decathlon
from segarena.datasets.decathlon.sampling import PatchSampler, centre_corners
from segarena.datasets.images import IGNORED, IMAGENET_MEAN, IMAGENET_STD
from segarena.datasets.liver.cases import LiverDataConfig
from segarena.datasets.liver.slices import load_slices
from segarena.datasets.scenes.images import PhantomScenes, SceneDataConfig, load_scenes
from segarena.evaluation.robustness_metrics import Counts, metrics
from segarena.segmenters.dice_ce import dice_ce
from segarena.segmenters.inference import segment
from segarena.segmenters.training import SupervisedConfig, train_segmenter
from segarena.segmenters.unet import UNet
from segarena.segmenters.volume_networks import SmallVolumeNet

WIDTH = 6
"""init_channels: 275,000 parameters, 1.1 MB."""


def scene_pools(args):
    config = SceneDataConfig(size=65, phantom_scenes=PhantomScenes(train=args.scenes, val=100))
    return [load_scenes(config, split).pool() for split in ("train", "val")], (IMAGENET_MEAN, IMAGENET_STD)


def slice_pools(args):
    splits = (f"classifier_train[:{args.livers}]", "classifier_val")
    return [load_slices(LiverDataConfig(split=split), "tumour") for split in splits], ((0.5,), (0.25,))


MADE = {"scene_phantom": (scene_pools, "scene_epochs"), "liver_slice_phantom": (slice_pools, "liver_epochs")}
VOLUMES = {"toy_volume_phantom": ("toy", 30)}
"""Task, and epochs of 200 phantoms."""
DIVIDED = 50
"""Phantoms that folds divide."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--only", choices=[*MADE, *VOLUMES], help="one of them")
    parser.add_argument("--scenes", type=int, default=1400)
    parser.add_argument("--livers", type=int, default=100)
    parser.add_argument("--scene_epochs", type=int, default=36)
    parser.add_argument("--liver_epochs", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, (pools, epochs) in MADE.items():
        if args.only in (None, name):
            (train, val), normal = pools(args)
            make(name, train, val, normal, getattr(args, epochs), args.out)
    for name, (task, epochs) in VOLUMES.items():
        if args.only in (None, name):
            make_of_volumes(name, task, epochs, args.out)


def make(name, train, val, normal, epochs, out):
    torch.manual_seed(0)
    net = UNet(train.images.shape[1], len(train.classes), init_channels=WIDTH)
    victim = Normalized(net, *normal)
    ignore = IGNORED if bool((train.labels == IGNORED).any()) else None
    for seed, (length, rate) in enumerate(((epochs, 3e-3), (epochs // 4, 3e-4))):
        config = SupervisedConfig(epochs=length, learning_rate=rate, batch_size=32)
        with tempfile.TemporaryDirectory() as folder:
            train_segmenter(victim, train, None, config, Run(Path(folder)), seed=seed, ignore_index=ignore)
    counts = class_counts(segment(victim, val.images), val.labels, len(val.classes))
    both, union = (part.sum(dim=0).double() for part in (counts.both, counts.union))
    found = metrics(Counts(*(part.numpy() for part in counts)))
    figures = {
        "images": len(train),
        "epochs": [epochs, epochs // 4],
        "miou": round(found.miou, 4),
        "aacc": round(found.aacc, 4),
        "iou": {cls: round(float(x), 4) for cls, x in zip(val.classes, both / union, strict=True)},
    }
    save_victim(out / f"{name}.safetensors", victim, val.classes, {"trained_on": train.origin, "val": figures})
    print(name, json.dumps(figures), f"{(out / f'{name}.safetensors').stat().st_size} bytes")


def make_of_volumes(name, task, epochs, out, number=200):
    config = DecathlonConfig(task=task, phantom_cases=PhantomCases(labelled=DIVIDED + number))
    pool, plan = load_decathlon(config, "train+val"), config.resolved_plan()
    of_folds = [row for row, case in enumerate(pool.ids) if int(case.removeprefix("phantom_")) < DIVIDED]
    train, val = pool.take(sorted({*range(len(pool))} - {*of_folds})), pool.take(of_folds)
    torch.manual_seed(0)
    net = SmallVolumeNet(len(pool.channels), len(pool.classes))
    victim = Normalized(net, [0.0] * len(pool.channels), [1.0] * len(pool.channels))
    sampler = PatchSampler(train, plan, AugmentationConfig(), seed=0)
    adam = torch.optim.Adam(net.parameters(), 1e-2, amsgrad=True, weight_decay=1e-5)
    steps = epochs * len([*range(0, len(train), plan.batch)])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for epoch in range(epochs):
        for images, labels in sampler.epoch(epoch):
            adam.zero_grad()
            dice_ce(victim(images), labels).backward()
            adam.step()
            schedule.step()
    patches = val.patches(torch.arange(len(val)), centre_corners(val, plan.val_size), plan.val_size)
    with torch.no_grad():
        predicted = torch.cat([victim.eval()(part).argmax(dim=1) for part in patches.images.split(4)])
    dice = dice_case(class_counts(predicted, patches.labels, len(val.classes))).mean(dim=0)
    figures = {
        "volumes": len(train),
        "epochs": epochs,
        "dice": {cls: round(float(x), 4) for cls, x in zip(val.classes[1:], dice, strict=True)},
    }
    save_victim(out / f"{name}.safetensors", victim, val.classes, {"trained_on": train.origin, "val": figures})
    print(name, json.dumps(figures), f"{(out / f'{name}.safetensors').stat().st_size} bytes")


if __name__ == "__main__":
    main()
