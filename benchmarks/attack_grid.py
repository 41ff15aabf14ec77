"""Attacks at equal steps on victims of phantoms (docs/rp-pgd.md, Results).

    python benchmarks/attack_grid.py --victim standard=runs/none_0/segmenter/victim.safetensors,runs/none_1/... \
        --victim robust=runs/sat_0/segmenter/victim.safetensors,... --victim liver=segmenters/weights/...

A victim is one network, or several of other seeds. Those of scenes see images of the split test, those of liver slices
one slice of each of 40 phantoms; on both nothing was chosen. Tuned step sizes are those of the lowest mIoU on other
images. Each network and eps is written as it is done, and not computed again: a killed run goes on. Writes
results/attack_grid.json and .png beside this and prints the tables.
"""

import argparse
import json
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from segarena.attacks.budget import Epsilon
from segarena.attacks.methods import ATTACKS
from segarena.attacks.victims import feature_layer_of, load_victim
from segarena.common.files import replacing
from segarena.common.overlap import class_counts
from segarena.datasets.images import IGNORED
from segarena.datasets.liver.cases import LiverDataConfig
from segarena.datasets.liver.slices import NAMES, load_slices
from segarena.datasets.scenes.images import PhantomScenes, SceneDataConfig, load_scenes
from segarena.evaluation.machine import describe_machine
from segarena.evaluation.robustness_metrics import Counts, image_miou, metrics
from segarena.evaluation.statistics import bootstrap_interval
from segarena.segmenters.inference import segment

RESULT = Path(__file__).parent / "results" / "attack_grid.json"
STEPS = (1, 3, 5, 10, 20)
SHARES = {1: (1.0,), 3: (1 / 3, 0.5, 0.75, 1.0), 5: (0.2, 1 / 3, 0.5, 0.75), 10: (0.1, 0.2, 1 / 3, 0.5)}
"""Step sizes that are tried, as shares of the radius, by the number of steps."""
ATTACK_NAMES = ["bim", *(name for name, attack in ATTACKS.items() if not attack.single and name not in ("bim", "pgd"))]
LIVERS = {"val": "phantom_2000-2019", "test": "phantom_6000-6039"}
BATCH = 16


def pools(classes, images):
    """Images to tune on and images to judge by, of what a victim with these classes segments."""
    if classes == NAMES:
        return [one_slice_each(load_slices(LiverDataConfig(cases=[cases]), "tumour")) for cases in LIVERS.values()]
    data = SceneDataConfig(size=65, phantom_scenes=PhantomScenes(val=images // 2, test=images))
    return [load_scenes(data, split).pool() for split in ("val", "test")]


def one_slice_each(pool):
    """The middle slice of each patient: slices of one patient are alike."""
    groups = dict.fromkeys(pool.groups)
    rows = [[row for row, group in enumerate(pool.groups) if group == name] for name in groups]
    return pool.take([of_one[len(of_one) // 2] for of_one in rows])


def attacked_counts(attack, victim, pool, **arguments):
    """Pixels of each class in each image after an attack with these arguments."""
    found = []
    for rows in torch.arange(len(pool)).split(BATCH):
        images, labels = pool.at(rows), pool.labels[rows].long()
        moved = attack(victim, images, labels, ignore_index=IGNORED, **arguments)
        with torch.inference_mode():
            found.append(class_counts(victim(moved).argmax(dim=1), labels, len(pool.classes), IGNORED))
    return Counts(*(torch.cat(parts).numpy() for parts in zip(*found, strict=True)))


def scripted_counts(victim, pool, name, eps, steps, share, *, random_start):
    """Those of an attack of `ATTACKS`; share: step size, a share of the radius, or None for its own."""
    arguments = {"eps": eps, "steps": steps, "random_start": random_start}
    if ATTACKS[name].regional:
        arguments["feature_layer"] = feature_layer_of(victim)
    if share is not None:
        arguments["step_size"] = share * eps.value
    return attacked_counts(ATTACKS[name], victim, pool, generator=torch.Generator().manual_seed(0), **arguments)


def summary(counts):
    """mIoU of all images together, and that of each."""
    return {"miou": metrics(counts).miou, "images": [round(float(value), 4) for value in image_miou(counts)]}


def grid(victim, test, val, eps, *, tune):
    """Rows by attack, steps and way (given, random start, tuned step size)."""
    rows = []
    for name in ATTACK_NAMES:
        for steps in STEPS:
            ways = {"given": (None, False), "random": (None, True)}
            if tune and steps in SHARES:
                tried = {
                    share: metrics(scripted_counts(victim, val, name, eps, steps, share, random_start=False)).miou
                    for share in SHARES[steps]
                }
                ways["tuned"] = (min(tried, key=tried.get), False)
            for way, (share, random_start) in ways.items():
                counts = scripted_counts(victim, test, name, eps, steps, share, random_start=random_start)
                rows.append({"attack": name, "steps": steps, "way": way, "step_share": share, **summary(counts)})
        print(f"{eps}: {name}", flush=True)
    return rows


def by_key(networks, eps):
    """Of each attack, way and number of steps: mIoU [networks], and that of each image [networks, images]."""
    keys = [(row["attack"], row["way"], row["steps"]) for row in networks[0][eps]]
    return {
        key: (
            np.array([network[eps][number]["miou"] for network in networks]),
            np.array([network[eps][number]["images"] for network in networks]),
        )
        for number, key in enumerate(keys)
    }


def table_of(found):
    """Markdown: mean mIoU by steps and way, and the difference to BIM image by image."""
    ways = ("given", "tuned") if any(way == "tuned" for _, way, _ in found) else ("given", "random")
    title = {"given": "N = {}", "tuned": "tuned, N = {}", "random": "random start, N = {}"}
    columns = [(way, steps) for way in ways for steps in (STEPS if way == "given" else STEPS[1:-1])]
    lines = [["attack", *(title[way].format(steps) for way, steps in columns), "N = 3 less BIM", "N = 20 less BIM"]]
    lines.append(["---"] * len(lines[0]))
    for name in dict.fromkeys(attack for attack, _, _ in found):
        shown = "BIM, PGD from x" if name == "bim" else ATTACKS[name].title
        cells = [f"{100 * found[name, way, steps][0].mean():.1f}" for way, steps in columns]
        for steps in (3, 20):
            less = bootstrap_interval(100 * (found[name, "given", steps][1] - found["bim", "given", steps][1]))
            cells.append("–" if name == "bim" else "{:+.1f} [{:.1f}, {:.1f}]".format(*less))
        lines.append([shown, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def picture(results, path):
    """mIoU against steps, one panel for each victim, at its first eps; a band from the lowest to the highest seed."""
    figure, axes = plt.subplots(1, len(results), figsize=(5 * len(results), 4.2), squeeze=False)
    for axis, (victim, networks) in zip(axes[0], results.items(), strict=True):
        eps = next(key for key in networks[0] if key != "clean")
        found = by_key(networks, eps)
        for number, name in enumerate(ATTACK_NAMES):
            title = "BIM = PGD" if name == "bim" else ATTACKS[name].title
            values = 100 * np.stack([found[name, "given", steps][0] for steps in STEPS])
            style, color = "-o" if name.startswith("rp") else "--.", f"C{number % 10}"
            axis.plot(STEPS, values.mean(axis=1), style, label=title, color=color)
            axis.fill_between(STEPS, values.min(axis=1), values.max(axis=1), color=color, alpha=0.08, lw=0)
        axis.set(title=f"{victim}, eps {eps}", xlabel="gradient steps", xscale="log", xticks=STEPS)
        axis.set_xticklabels(STEPS)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("mIoU (%), lower: stronger attack")
    axes[0][-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--victim", action="append", required=True, metavar="NAME=FILE[,FILE ...]")
    parser.add_argument("--eps", nargs="+", default=["8/255", "0.03"], help="the first one with tuned step sizes, too")
    parser.add_argument("--images", type=int, default=48, help="test scenes; half as many to tune on")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    results = json.loads(args.out.read_text())["results"] if args.out.exists() else {}
    for name, paths in (one.split("=", 1) for one in args.victim):
        networks = results.setdefault(name, [])
        for number, path in enumerate(paths.split(",")):
            victim, classes = load_victim(path)
            val, test = pools(classes, args.images)
            if number == len(networks):
                clean = class_counts(segment(victim, test.images), test.labels.long(), len(classes), IGNORED)
                networks.append({"clean": summary(Counts(*(part.numpy() for part in clean)))})
            for place, eps in enumerate(map(Epsilon.parse, args.eps)):
                if eps.given in networks[number]:
                    continue
                began = time.perf_counter()
                networks[number][eps.given] = grid(victim, test, val, eps, tune=place == 0)
                print(f"{name} {number}, {eps}: {time.perf_counter() - began:.0f} s", flush=True)
                about = {"machine": describe_machine(), "results": results}
                with replacing(args.out) as unfinished:
                    unfinished.write_text(json.dumps(about))
    for name, networks in results.items():
        clean = [100 * network["clean"]["miou"] for network in networks]
        print(f"\n{name}, clean: {np.mean(clean):.1f} ({', '.join(f'{value:.1f}' for value in clean)})")
        for eps in networks[0]:
            whole = [network for network in networks if eps in network]
            if eps != "clean":
                print(f"\neps {eps}, {len(whole)} network(s)\n\n{table_of(by_key(whole, eps))}")
    picture(results, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
